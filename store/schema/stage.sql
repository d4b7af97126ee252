-- Where a batch waits, on the writer's connection, to be merged in one statement per table.
CREATE TEMPORARY TABLE IF NOT EXISTS stage_session (
	id BYTEA PRIMARY KEY, seq BIGINT NOT NULL, deleted SMALLINT NOT NULL, start_us BIGINT, end_us BIGINT, events BIGINT,
	user_key BYTEA, digest BYTEA, body BYTEA
) {on_commit};
CREATE TEMPORARY TABLE IF NOT EXISTS stage_key (
	id BYTEA NOT NULL, kind TEXT NOT NULL, value_key BYTEA NOT NULL, PRIMARY KEY (id, kind, value_key)
) {on_commit};
CREATE TEMPORARY TABLE IF NOT EXISTS stage_hit (
	id BYTEA NOT NULL, scenario TEXT NOT NULL, start_us BIGINT NOT NULL, decided_us BIGINT NOT NULL
) {on_commit};
CREATE TEMPORARY TABLE IF NOT EXISTS stage_cell (
	report TEXT NOT NULL, window_us BIGINT NOT NULL, by_key BYTEA NOT NULL, seq BIGINT NOT NULL, deleted SMALLINT NOT NULL,
	by_values BYTEA NOT NULL, measures BYTEA NOT NULL
) {on_commit};
CREATE TEMPORARY TABLE IF NOT EXISTS stage_exception (
	id BYTEA NOT NULL, kind SMALLINT NOT NULL, seq BIGINT NOT NULL, time_us BIGINT NOT NULL, source TEXT NOT NULL,
	topic TEXT NOT NULL, partition INTEGER NOT NULL, record BIGINT NOT NULL, idx INTEGER NOT NULL, reason TEXT NOT NULL,
	detail BYTEA NOT NULL, raw BYTEA NOT NULL
) {on_commit};
