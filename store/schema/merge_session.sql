-- Merges the staged sessions. The highest (epoch, seq) wins; what is equal is the same change again.
INSERT INTO session{g} AS t (generation, id, shard, epoch, seq, deleted, start_us, end_us, events, user_key, digest, body)
SELECT {generation}, s.id, {shard}, {epoch}, s.seq, s.deleted, s.start_us, s.end_us, s.events, s.user_key, s.digest, s.body
FROM stage_session s WHERE true
ON CONFLICT (id) DO UPDATE SET
	shard = excluded.shard, epoch = excluded.epoch, seq = excluded.seq, deleted = excluded.deleted,
	-- A tombstone keeps the range of what it ends, so that readers of changes know whether that was served.
	start_us = coalesce(excluded.start_us, t.start_us), end_us = coalesce(excluded.end_us, t.end_us),
	events = excluded.events, user_key = excluded.user_key, digest = excluded.digest, body = excluded.body
WHERE (t.epoch, t.seq) < (excluded.epoch, excluded.seq);

-- Keys and hits follow the sessions that this batch has decided. CROSS JOIN: SQLite then starts from the small table.
DELETE FROM session_key{g} WHERE id IN (
	SELECT s.id FROM stage_session s CROSS JOIN session{g} t WHERE t.id = s.id AND t.epoch = {epoch} AND t.seq = s.seq)
AND NOT EXISTS (
	SELECT 1 FROM stage_key k
	WHERE k.id = session_key{g}.id AND k.kind = session_key{g}.kind AND k.value_key = session_key{g}.value_key);
INSERT INTO session_key{g} (generation, id, kind, value_key)
SELECT {generation}, k.id, k.kind, k.value_key
FROM stage_session s CROSS JOIN session{g} t CROSS JOIN stage_key k
WHERE t.id = s.id AND t.epoch = {epoch} AND t.seq = s.seq AND k.id = s.id
ON CONFLICT (id, kind, value_key) DO NOTHING;

DELETE FROM session_hit{g} WHERE id IN (
	SELECT s.id FROM stage_session s CROSS JOIN session{g} t WHERE t.id = s.id AND t.epoch = {epoch} AND t.seq = s.seq);
INSERT INTO session_hit{g} (generation, id, scenario, start_us, decided_us)
SELECT {generation}, h.id, h.scenario, h.start_us, h.decided_us
FROM stage_hit h CROSS JOIN stage_session s CROSS JOIN session{g} t
WHERE s.id = h.id AND t.id = s.id AND t.epoch = {epoch} AND t.seq = s.seq;
