package store

import (
	"fmt"
	"testing"
)

func TestShards(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		s := open(t, dsn)
		g := get(s.CreateGeneration(t.Context(), "j", "1", "live"))(t)
		scope := Scope{Job: "j", Generation: g.ID}
		if list := get(s.Shards(t.Context(), scope))(t); len(list) > 0 {
			t.Errorf("shards that never started: %v", list)
		}
		for shard := range 3 {
			get(s.TakeEpoch(t.Context(), "j", g.ID, shard))(t)
		}
		epoch := get(s.TakeEpoch(t.Context(), "j", g.ID, 0))(t)
		for seq := range uint64(3) {
			b := Batch{Tombstones: []Tombstone{{Seq: seq + 1, ID: ID{byte(seq)}}}}
			must(t, s.Write(t.Context(), Owner{g.ID, 0, epoch}, &b))
		}
		must(t, s.Write(t.Context(), Owner{g.ID, 2, 3}, &Batch{Tombstones: []Tombstone{{Seq: 9, ID: ID{9}}}}))
		if got := fmt.Sprint(get(s.Shards(t.Context(), scope))(t)); got != "[{0 {4 3}} {1 {0 0}} {2 {3 9}}]" {
			t.Errorf("got %s", got)
		}
		other := get(s.CreateGeneration(t.Context(), "j", "2", "live"))(t)
		if list := get(s.Shards(t.Context(), Scope{Job: "j", Generation: other.ID}))(t); len(list) > 0 {
			t.Errorf("another generation has %v", list)
		}
		_, err := s.Shards(t.Context(), Scope{Job: "j", Generation: 99})
		fails(t, err, ErrNoGeneration, User)
	})
}
