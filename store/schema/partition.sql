-- PostgreSQL: the partitions of one generation. They are attached rather than created in place, which would lock readers out.
CREATE TABLE session{g} (LIKE session, CHECK (generation = {generation}));
CREATE TABLE session_key{g} (LIKE session_key, CHECK (generation = {generation}));
CREATE TABLE session_hit{g} (LIKE session_hit, CHECK (generation = {generation}));
CREATE TABLE cell{g} (LIKE cell, CHECK (generation = {generation}));
CREATE TABLE exception{g} (LIKE exception, CHECK (generation = {generation}));
ALTER TABLE session ATTACH PARTITION session{g} FOR VALUES IN ({generation});
ALTER TABLE session_key ATTACH PARTITION session_key{g} FOR VALUES IN ({generation});
ALTER TABLE session_hit ATTACH PARTITION session_hit{g} FOR VALUES IN ({generation});
ALTER TABLE cell ATTACH PARTITION cell{g} FOR VALUES IN ({generation});
ALTER TABLE exception ATTACH PARTITION exception{g} FOR VALUES IN ({generation});
