-- The indexes of one generation: of its partitions or its file.
CREATE UNIQUE INDEX session_id{g} ON session{g} (id);
CREATE INDEX session_start{g} ON session{g} (start_us, id);
CREATE INDEX session_user{g} ON session{g} (user_key, start_us, id) WHERE user_key IS NOT NULL;
CREATE INDEX session_change{g} ON session{g} (shard, epoch, seq);
CREATE UNIQUE INDEX session_key_id{g} ON session_key{g} (id, kind, value_key);
CREATE INDEX session_key_value{g} ON session_key{g} (value_key, kind);
CREATE UNIQUE INDEX session_hit_id{g} ON session_hit{g} (id, scenario);
CREATE INDEX session_hit_start{g} ON session_hit{g} (scenario, start_us, id);
CREATE UNIQUE INDEX cell_id{g} ON cell{g} (report, window_us, by_key, shard);
CREATE INDEX cell_change{g} ON cell{g} (shard, epoch, seq);
CREATE UNIQUE INDEX exception_id{g} ON exception{g} (id);
CREATE INDEX exception_time{g} ON exception{g} (kind, time_us, id);
CREATE INDEX exception_change{g} ON exception{g} (shard, epoch, seq);
