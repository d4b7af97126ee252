INSERT INTO exception{g} AS t (generation, id, kind, shard, epoch, seq, time_us, source, topic, partition, record, idx, reason, detail, raw)
SELECT {generation}, s.id, s.kind, {shard}, {epoch}, s.seq, s.time_us, s.source, s.topic, s.partition, s.record, s.idx, s.reason, s.detail, s.raw
FROM stage_exception s WHERE true
ON CONFLICT (id) DO UPDATE SET
	shard = excluded.shard, epoch = excluded.epoch, seq = excluded.seq, time_us = excluded.time_us, source = excluded.source,
	reason = excluded.reason, detail = excluded.detail, raw = excluded.raw
WHERE (t.epoch, t.seq) < (excluded.epoch, excluded.seq);
