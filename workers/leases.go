package workers

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/objstore"
)

// leaseTries bounds how often the leases of a job may change while one is being taken.
const leaseTries = 20

// Leases keeps the ranges of jobs that backfills hold, in one object a job: leases/<job>.json.
//
// A lease ends when it is released, when its time is over, and when the workflow that has it does not run any more. What
// such a workflow has left running cannot spoil anything: publishing is one compare-and-set on the serving map.
type Leases struct {
	Objects   objstore.Store
	Describer activities.Describer
	Now       func() time.Time
}

// lease is one range that is held.
type lease struct {
	Workflow string    `json:"workflow"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Until    time.Time `json:"until"`
}

func leaseKey(job string) string { return "leases/" + job + ".json" }

// Hold takes a range for a workflow, or keeps it. A workflow holds one range: the last that it asked for.
func (l *Leases) Hold(ctx context.Context, in activities.HoldInput) (held activities.Held, err error) {
	err = l.change(ctx, in.Job, func(list []lease) ([]lease, error) {
		held = activities.Held{}
		now := l.Now().UTC()
		var kept []lease
		for _, x := range list {
			if x.Workflow == in.Workflow || !x.Until.After(now) {
				continue
			}
			if x.From.Before(in.To) && in.From.Before(x.To) {
				runs, err := l.runs(ctx, x.Workflow)
				if err != nil {
					return nil, err
				}
				if runs {
					held = activities.Held{By: x.Workflow, Theirs: activities.Range{From: x.From, To: x.To}, Until: x.Until}
					return nil, errKeep
				}
				continue
			}
			kept = append(kept, x)
		}
		held = activities.Held{Granted: true, Until: now.Add(in.For)}
		return append(kept, lease{in.Workflow, in.From.UTC(), in.To.UTC(), held.Until}), nil
	})
	return held, err
}

// Release gives back what a workflow holds.
func (l *Leases) Release(ctx context.Context, in activities.ReleaseInput) error {
	return l.change(ctx, in.Job, func(list []lease) ([]lease, error) {
		if !slices.ContainsFunc(list, func(x lease) bool { return x.Workflow == in.Workflow }) {
			return nil, errKeep
		}
		return slices.DeleteFunc(list, func(x lease) bool { return x.Workflow == in.Workflow }), nil
	})
}

// errKeep says that nothing is to be changed.
var errKeep = errors.New("leave it as it is")

// change replaces the leases of a job, if nobody else did meanwhile.
func (l *Leases) change(ctx context.Context, job string, change func([]lease) ([]lease, error)) error {
	for range leaseTries {
		data, info, err := l.Objects.Get(ctx, leaseKey(job))
		there := err == nil
		if err != nil && !errors.Is(err, objstore.ErrNotFound) {
			return err
		}
		var list []lease
		if there {
			if err := json.Unmarshal(data, &list); err != nil {
				return userError("%s is damaged: %w (remove it when no backfill of %s runs)", leaseKey(job), err, job)
			}
		}
		after, err := change(list)
		if errors.Is(err, errKeep) {
			return nil
		}
		if err != nil {
			return err
		}
		if after == nil {
			after = []lease{}
		}
		if data, err = json.MarshalIndent(after, "", " "); err != nil {
			return err
		}
		nonce := strings.ToLower(rand.Text())
		if there {
			_, err = l.Objects.PutIfMatch(ctx, leaseKey(job), data, info.ETag, nonce)
		} else {
			_, err = l.Objects.PutIfAbsent(ctx, leaseKey(job), data, nonce)
		}
		if !errors.Is(err, objstore.ErrPrecondition) {
			return err
		}
	}
	return fmt.Errorf("%s changed %d times while a range was being taken", leaseKey(job), leaseTries)
}

// runs tells whether a workflow runs.
func (l *Leases) runs(ctx context.Context, id string) (bool, error) {
	d, err := (&activities.Control{Describer: l.Describer}).Describe(ctx, activities.DescribeInput{IDs: []string{id}})
	if err != nil {
		return false, err
	}
	return d.Running[0], nil
}
