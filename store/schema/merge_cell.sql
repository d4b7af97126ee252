INSERT INTO cell{g} AS t (generation, report, window_us, by_key, shard, epoch, seq, deleted, by_values, measures)
SELECT {generation}, s.report, s.window_us, s.by_key, {shard}, {epoch}, s.seq, s.deleted, s.by_values, s.measures
FROM stage_cell s WHERE true
ON CONFLICT (report, window_us, by_key, shard) DO UPDATE SET
	epoch = excluded.epoch, seq = excluded.seq, deleted = excluded.deleted, measures = excluded.measures
WHERE (t.epoch, t.seq) < (excluded.epoch, excluded.seq);
