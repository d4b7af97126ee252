package workers

import (
	"context"
	"errors"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/store"
)

// Classify puts errors of the adapters into classes for Temporal. What none of them made is a defect of this program,
// which may pass: it is tried again, and seen where it does not.
func Classify(err error) activities.Failure {
	var (
		k        *kafka.Error
		o        *objstore.Error
		s        *store.Error
		r        *registry.Error
		problems jobspec.Problems
		asked    problem
	)
	switch {
	case errors.As(err, &problems), errors.As(err, &asked), errors.Is(err, backfill.ErrUsage), errors.Is(err, backfill.ErrUnsealed),
		errors.Is(err, backfill.ErrOpenState):
		return activities.Failure{Type: activities.User}
	case errors.As(err, &k):
		return activities.Failure{Type: string(k.Class), Retryable: k.Class != kafka.User}
	case errors.As(err, &o):
		return activities.Failure{Type: string(o.Class), Retryable: o.Class != objstore.User}
	case errors.As(err, &s):
		return activities.Failure{Type: string(s.Class), Retryable: s.Retryable || s.Class == store.Internal}
	case errors.As(err, &r):
		return activities.Failure{Type: string(r.Class), Retryable: r.Class != registry.User}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return activities.Failure{Type: activities.External, Retryable: true}
	}
	return activities.Failure{Type: activities.Internal, Retryable: true}
}
