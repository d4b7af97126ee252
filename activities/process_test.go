package activities

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/temporal"
)

type beatsFunc func() error

func (f beatsFunc) RecordActivityHeartbeat(context.Context, []byte, ...any) error { return f() }

// TestLease says why a process has to end, and when.
func TestLease(t *testing.T) {
	away := errors.New("Temporal is away")
	for name, c := range map[string]struct {
		answer func(after time.Duration) error
		want   string
		within time.Duration
	}{
		"told to stop":      {func(d time.Duration) error { return errIf(d >= 7*time.Second, temporal.NewCanceledError()) }, Stopped, 8 * time.Second},
		"another has begun": {func(d time.Duration) error { return errIf(d >= 3*time.Second, serviceerror.NewNotFound("gone")) }, Superseded, 4 * time.Second},
		"nobody answers":    {func(d time.Duration) error { return errIf(d >= 3*time.Second, away) }, Lost, 13 * time.Second},
		"away for a moment": {func(d time.Duration) error { return errIf(d >= 3*time.Second && d < 11*time.Second, away) }, "", time.Minute},
		"the process ends":  {func(time.Duration) error { return nil }, "", time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				l := &Lease{Beats: beatsFunc(func() error { return c.answer(time.Since(began)) }), Beat: func() Beat { return Beat{} }, Log: slog.New(slog.DiscardHandler)}
				if got, took := l.Keep(ctx), time.Since(began); got != c.want || took > c.within {
					t.Errorf("%q after %s, want %q within %s", got, took, c.want, c.within)
				}
			})
		})
	}
}

func errIf(is bool, err error) error {
	if is {
		return err
	}
	return nil
}
