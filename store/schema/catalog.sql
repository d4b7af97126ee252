-- What the store knows beside data: generations, what is served, who did what.
-- {bytes} and the like are filled in per database; see schema.go.

CREATE TABLE generation (
	id         BIGINT PRIMARY KEY,
	job        TEXT NOT NULL,
	version    TEXT NOT NULL,
	kind       TEXT NOT NULL,
	state      TEXT NOT NULL,
	created_us BIGINT NOT NULL
);
-- Rows stay when a generation is dropped, so that its number never comes back.
CREATE UNIQUE INDEX generation_name ON generation (job, version, kind) WHERE state <> 'dropped';

CREATE TABLE counter (
	name  TEXT PRIMARY KEY,
	value BIGINT NOT NULL
);
INSERT INTO counter (name, value) VALUES ('generation', 0), ('audit', 0);

CREATE TABLE serving_map (
	job   TEXT PRIMARY KEY,
	epoch BIGINT NOT NULL
);
CREATE TABLE serving (
	job        TEXT NOT NULL,
	from_us    BIGINT NOT NULL,
	to_us      BIGINT NOT NULL,
	generation BIGINT NOT NULL REFERENCES generation (id),
	PRIMARY KEY (job, from_us),
	CHECK (from_us < to_us)
);
CREATE TABLE serving_switch (
	job        TEXT NOT NULL,
	request_id TEXT NOT NULL,
	request    TEXT NOT NULL,
	result     TEXT NOT NULL,
	PRIMARY KEY (job, request_id)
);

CREATE TABLE audit (
	id         BIGINT PRIMARY KEY,
	at_us      BIGINT NOT NULL,
	actor      TEXT NOT NULL,
	job        TEXT NOT NULL,
	action     TEXT NOT NULL,
	reason     TEXT NOT NULL,
	request_id TEXT NOT NULL,
	detail     TEXT NOT NULL
);
CREATE INDEX audit_job ON audit (job, id);
CREATE UNIQUE INDEX audit_request ON audit (job, action, request_id) WHERE request_id <> '';
