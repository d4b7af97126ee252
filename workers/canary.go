package workers

import (
	"context"
	"errors"
	"slices"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/store"
)

// canaryTries bounds how often the serving map may change while a canary is set beside it.
const canaryTries = 5

// Canary leads a share of the users to a candidate, or ends that.
func (s *Stage) Canary(ctx context.Context, in activities.CanaryInput) error {
	st := s.Versions.Env.Store
	r := store.CanaryRequest{Job: in.Job, At: event.Micros(in.At), Actor: in.Actor, Reason: in.Reason}
	if in.Weight == 0 {
		if err := st.SetCanary(ctx, r); !errors.Is(err, store.ErrStale) { // else a later request holds
			return err
		}
		return nil
	}
	candidate, err := s.Versions.generation(ctx, in.Job, in.Version)
	if err != nil {
		return err
	}
	current, err := s.Versions.generation(ctx, in.Job, in.Current)
	if err != nil {
		return err
	}
	r.Canary = store.Canary{Generation: candidate, From: event.Micros(in.From), Weight: in.Weight}
	for range canaryTries {
		m, err := st.ServingMap(ctx, in.Job)
		if err != nil {
			return err
		}
		// Another version is served by now, so this one is given up.
		if !slices.ContainsFunc(m.Ranges, func(a store.Assignment) bool { return a.To == event.MaxTime && a.Generation == current }) {
			return nil
		}
		if m.Canary != nil && *m.Canary == r.Canary {
			return nil
		}
		r.ExpectedEpoch = m.Epoch
		if err = st.SetCanary(ctx, r); !errors.Is(err, store.ErrStale) {
			return err
		}
	}
	return nil // a later request holds, or the next look sets it
}
