-- How far each shard has seen time: written with its rows, so that both are seen in one snapshot.
CREATE TABLE shard_progress (
	generation   BIGINT NOT NULL,
	shard        INTEGER NOT NULL,
	epoch        BIGINT NOT NULL,
	seq          BIGINT NOT NULL,
	watermark_us BIGINT NOT NULL,
	settle_us    BIGINT NOT NULL,
	span_us      BIGINT NOT NULL,
	written_us   BIGINT NOT NULL,
	PRIMARY KEY (generation, shard)
);
