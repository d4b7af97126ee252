package workers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/objstore"
)

// Differences are the sessions that a comparison found to differ, as an object keeps them.
type Differences struct {
	Job       string           `json:"job"`
	Current   int              `json:"current"`   // the version that was served
	Candidate int              `json:"candidate"` // the version that was compared with it
	Result    activities.Trial `json:"result"`
	Sessions  []Difference     `json:"sessions"` // the newest, at most a hundred
}

// Difference is a session that the versions have differently.
type Difference struct {
	ID        string   `json:"id"`
	Start     string   `json:"start"` // RFC 3339
	What      []string `json:"what"`  // only_current, only_candidate, or the parts of the session that differ
	Current   []string `json:"current_scenarios,omitempty"`
	Candidate []string `json:"candidate_scenarios,omitempty"`
	// The session as each had it, with the keys of sessions.jsonl; left out where it had none, or where the sessions before it
	// have filled the object.
	CurrentSession   json.RawMessage `json:"current_session,omitempty"`
	CandidateSession json.RawMessage `json:"candidate_session,omitempty"`
}

// What is said of a session that one version does not have.
const (
	OnlyCurrent   = "only_current"
	OnlyCandidate = "only_candidate"
)

// ReadDifferences reads what a comparison kept.
func ReadDifferences(ctx context.Context, objects objstore.Store, key string) (d Differences, err error) {
	data, _, err := objects.Get(ctx, key)
	if err != nil {
		return d, fmt.Errorf("read the differences: %w", err)
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return d, fmt.Errorf("read the differences: the object %s is damaged: %w", key, err)
	}
	return d, nil
}

// FindDifferences returns the key of what the last comparison of a version kept that found any; empty: none did.
func FindDifferences(ctx context.Context, objects objstore.Store, job string, version int) (key string, err error) {
	var best objstore.Info
	number := func(key string) int {
		_, text, _ := strings.Cut(key[strings.LastIndexByte(key, '/')+1:], "differences-")
		n, err := strconv.Atoi(strings.TrimSuffix(text, ".json"))
		if err != nil {
			return 0
		}
		return n
	}
	for info, err := range objects.List(ctx, fmt.Sprintf("rollouts/%s/%d/", job, version), "") {
		if err != nil {
			return "", fmt.Errorf("list the comparisons of version %d of %s: %w", version, job, err)
		}
		if number(info.Key) == 0 {
			continue
		}
		// Of one rollout the highest number is the last; of several, the latest.
		if best.Key == "" || info.Modified.After(best.Modified) || info.Modified.Equal(best.Modified) && number(info.Key) > number(best.Key) {
			best = info
		}
	}
	return best.Key, nil
}

// keepDifferences writes the sessions that differ to an object; an earlier try may have written it.
func (s *Stage) keepDifferences(ctx context.Context, in activities.TrialInput, c *comparison, r *activities.Trial) error {
	data, err := json.Marshal(Differences{Job: in.Job, Current: in.Current, Candidate: in.Version, Result: *r, Sessions: c.differences})
	if err != nil {
		return err
	}
	_, err = s.Versions.Env.Objects.PutIfAbsent(ctx, in.Key, data, strconv.Itoa(len(data)))
	if errors.Is(err, objstore.ErrPrecondition) {
		return nil
	}
	return err
}
