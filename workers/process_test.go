package workers

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/store"
)

func TestFirstVersionIsServed(t *testing.T) {
	ctx := t.Context()
	s, err := store.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "weft.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() // only a test's
	v := &Versions{Env: &Env{Store: s}, Log: slog.New(slog.DiscardHandler)}
	for _, c := range []struct {
		version int
		want    bool
	}{{1, true}, {2, false}, {1, true}} {
		g, err := v.generation(ctx, "payments", c.version)
		if err != nil {
			t.Fatal(err)
		}
		served, err := v.serve(ctx, activities.PrepareInput{Job: "payments", Version: c.version}, g)
		if err != nil || served != c.want {
			t.Errorf("version %d: served %v, %v", c.version, served, err)
		}
	}
	m, err := s.ServingMap(ctx, "payments")
	if err != nil || m.Epoch != 1 || len(m.Ranges) != 1 {
		t.Errorf("the map is %+v, %v", m, err)
	}
}

func TestMapThatWasEmptiedStaysEmpty(t *testing.T) {
	ctx := t.Context()
	s, err := store.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "weft.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() // only a test's
	v := &Versions{Env: &Env{Store: s}, Log: slog.New(slog.DiscardHandler)}
	_, err = s.Switch(ctx, store.SwitchRequest{Job: "payments", RequestID: "empty", Actor: "me", Reason: "nothing is to be seen",
		Assignments: []store.Assignment{{From: 0, To: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	g, err := v.generation(ctx, "payments", 1)
	if err != nil {
		t.Fatal(err)
	}
	if served, err := v.serve(ctx, activities.PrepareInput{Job: "payments", Version: 1}, g); err != nil || served {
		t.Errorf("served %v, %v", served, err)
	}
}

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err  error
		want activities.Failure
	}{
		{&kafka.Error{Class: kafka.User, Err: kafka.ErrNoTopic}, activities.Failure{Type: activities.User}},
		{&kafka.Error{Class: kafka.External, Err: kafka.ErrUnreachable}, activities.Failure{Type: activities.External, Retryable: true}},
		{&objstore.Error{Class: objstore.User, Err: errors.New("x")}, activities.Failure{Type: activities.User}},
		{&objstore.Error{Class: objstore.External, Err: errors.New("x")}, activities.Failure{Type: activities.External, Retryable: true}},
		{&store.Error{Class: store.External, Retryable: true, Err: errors.New("x")}, activities.Failure{Type: activities.External, Retryable: true}},
		{&store.Error{Class: store.External, Err: errors.New("damaged")}, activities.Failure{Type: activities.External}},
		{&store.Error{Class: store.Internal, Err: errors.New("x")}, activities.Failure{Type: activities.Internal, Retryable: true}},
		{&registry.Error{Class: registry.User, Err: registry.ErrNotFound}, activities.Failure{Type: activities.User}},
		{jobspec.Problems{{Message: "x"}}, activities.Failure{Type: activities.User}},
		{userError("no"), activities.Failure{Type: activities.User}},
		{errors.New("what is this"), activities.Failure{Type: activities.Internal, Retryable: true}},
	} {
		if got := Classify(fmt.Errorf("doing something: %w", c.err)); got != c.want {
			t.Errorf("%T %v: %+v, want %+v", c.err, c.err, got, c.want)
		}
	}
}

func TestConfigReportsEverything(t *testing.T) {
	err := (&Config{Roles: []string{"archiver"}, Job: "payments", Slots: -1}).Validate()
	if err == nil {
		t.Fatal("it is valid")
	}
	for _, want := range []string{`"archiver"`, "-1 shard slots", "version 0"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %s in: %v", want, err)
		}
	}
	c := Config{Roles: Roles()}
	if err := c.Validate(); err != nil || c.Slots != slotsDefault {
		t.Errorf("%+v: %v", c, err)
	}
	if (&Config{}).Validate() == nil {
		t.Error("a process without work is valid")
	}
}
