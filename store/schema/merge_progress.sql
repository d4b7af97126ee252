-- After a restore a shard goes back with its rows: a later epoch holds, though it has seen less.
INSERT INTO shard_progress AS t (generation, shard, epoch, seq, watermark_us, settle_us, span_us, written_us)
VALUES ({generation}, {shard}, {epoch}, {seq}, {watermark}, {settle}, {span}, {written})
ON CONFLICT (generation, shard) DO UPDATE SET
	epoch = excluded.epoch, seq = excluded.seq, watermark_us = excluded.watermark_us, settle_us = excluded.settle_us,
	span_us = excluded.span_us, written_us = excluded.written_us
WHERE (t.epoch, t.seq) < (excluded.epoch, excluded.seq)
	OR (t.epoch, t.seq) = (excluded.epoch, excluded.seq) AND t.watermark_us < excluded.watermark_us;
