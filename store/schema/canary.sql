-- The share of users whose questions a candidate answers. A row holds for the map of its epoch only, so any switch ends it. It
-- stays with weight 0, so that a request which comes late is known to be older.
CREATE TABLE serving_canary (
	job        TEXT PRIMARY KEY,
	epoch      BIGINT NOT NULL,
	generation BIGINT NOT NULL,
	from_us    BIGINT NOT NULL,
	weight     BIGINT NOT NULL,
	at_us      BIGINT NOT NULL,
	CHECK (weight BETWEEN 0 AND 100)
);
