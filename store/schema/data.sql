-- The tables of a generation. In PostgreSQL each is partitioned by generation; in SQLite a generation is a file with them.
-- What comes from records is bytes: it need not be UTF-8.

CREATE TABLE session (
	generation BIGINT NOT NULL,
	id         BYTEA NOT NULL,
	shard      INTEGER NOT NULL,
	epoch      BIGINT NOT NULL,
	seq        BIGINT NOT NULL,
	deleted    SMALLINT NOT NULL,
	start_us   BIGINT,
	end_us     BIGINT,
	events     BIGINT,
	user_key   BYTEA,
	digest     BYTEA,
	body       BYTEA
) {partition};

CREATE TABLE session_key (
	generation BIGINT NOT NULL,
	id         BYTEA NOT NULL,
	kind       TEXT NOT NULL,
	value_key  BYTEA NOT NULL
) {partition};

CREATE TABLE session_hit (
	generation BIGINT NOT NULL,
	id         BYTEA NOT NULL,
	scenario   TEXT NOT NULL,
	start_us   BIGINT NOT NULL,
	decided_us BIGINT NOT NULL
) {partition};

CREATE TABLE cell (
	generation BIGINT NOT NULL,
	report     TEXT NOT NULL,
	window_us  BIGINT NOT NULL,
	by_key     BYTEA NOT NULL,
	shard      INTEGER NOT NULL,
	epoch      BIGINT NOT NULL,
	seq        BIGINT NOT NULL,
	deleted    SMALLINT NOT NULL,
	by_values  BYTEA NOT NULL,
	measures   BYTEA NOT NULL
) {partition};

CREATE TABLE exception (
	generation BIGINT NOT NULL,
	id         BYTEA NOT NULL,
	kind       SMALLINT NOT NULL,
	shard      INTEGER NOT NULL,
	epoch      BIGINT NOT NULL,
	seq        BIGINT NOT NULL,
	time_us    BIGINT NOT NULL,
	source     TEXT NOT NULL,
	topic      TEXT NOT NULL,
	partition  INTEGER NOT NULL,
	record     BIGINT NOT NULL,
	idx        INTEGER NOT NULL,
	reason     TEXT NOT NULL,
	detail     BYTEA NOT NULL,
	raw        BYTEA NOT NULL
) {partition};

CREATE TABLE shard_epoch (
	generation BIGINT NOT NULL,
	shard      INTEGER NOT NULL,
	epoch      BIGINT NOT NULL,
	PRIMARY KEY (generation, shard)
);
