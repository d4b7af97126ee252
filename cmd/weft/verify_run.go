package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/results"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/workers"
)

const (
	verifyPoll = 500 * time.Millisecond
	// differencesMax bounds what is listed: the first few say what is wrong.
	differencesMax = 10
	lagsMax        = 5
)

// offsets are by topic and partition.
type offsets map[string]map[int32]int64

// verification compares a generation with replays of what it has read.
type verification struct {
	*reader
	version string
	job     *operator.Job
	files   []backfill.Input
	memory  int64

	objects objstore.Store // checkpoints and archive; nil: files alone
	ends    func(ctx context.Context, topic string) (map[int32]int64, error)
	wait    time.Duration
	poll    time.Duration
	bar     *waitLine

	late    map[identity]bool // events that came late; true: it counts in a session all the same
	rejects map[string]int64  // of the stream
}

// identity is that of an event.
type identity struct {
	source    uint16
	partition int32
	offset    int64
	index     int
}

// verifyResult is what a verification found; its JSON is a contract.
type verifyResult struct {
	Job         string             `json:"job"`
	Version     string             `json:"version"`
	Generation  int64              `json:"generation"`
	Equal       bool               `json:"equal"`
	Compared    []verifyRow        `json:"compared"` // the stream first
	Late        verifyLate         `json:"late"`
	Differences []verifyDifference `json:"differences"`
	Notes       []string           `json:"notes"`
}

type verifyRow struct {
	What     string           `json:"what"` // stream, archive or files
	Records  *int64           `json:"records,omitempty"`
	Sessions int64            `json:"sessions"`
	Digest   string           `json:"digest"`
	Reports  string           `json:"reports"`
	Rejects  map[string]int64 `json:"rejects"`         // by source/reason
	Equal    *bool            `json:"equal,omitempty"` // to the stream
}

type verifyLate struct {
	Events  int64 `json:"events"`
	LeftOut int64 `json:"left_out"`
	Counted int64 `json:"counted"` // a repeat of an event that counts in a session
}

type verifyDifference struct {
	ID      string `json:"id"`
	What    string `json:"what"`
	Against string `json:"against"` // the replay
}

func (v *verification) run(ctx context.Context) (*verifyResult, error) {
	var until offsets
	if v.objects != nil {
		var err error
		if until, err = v.settle(ctx); err != nil {
			return nil, err
		}
	}
	v.bar.show("reading the store")
	stream, err := v.stream(ctx)
	if err != nil {
		return nil, err
	}
	r := &verifyResult{Job: v.scope.Job, Version: v.version, Generation: v.scope.Generation, Equal: true, Compared: []verifyRow{*stream},
		Differences: []verifyDifference{}, Notes: []string{}}
	if err := v.findLate(ctx, r); err != nil {
		return nil, err
	}
	if v.objects != nil {
		cfg := backfill.ReplayConfig{Until: until}
		for _, s := range v.job.Spec.Sources {
			cfg.Archives = append(cfg.Archives, backfill.ArchiveInput{Source: s.Name, Objects: workers.ArchiveObjects{Store: v.objects}})
		}
		if err := v.compare(ctx, r, "archive", cfg); err != nil {
			return nil, err
		}
	}
	if len(v.files) > 0 {
		if err := v.compare(ctx, r, "files", backfill.ReplayConfig{Inputs: v.files}); err != nil {
			return nil, err
		}
	}
	if v.objects != nil {
		if err := v.unchanged(ctx, stream); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// stream reads what the store holds.
func (v *verification) stream(ctx context.Context) (*verifyRow, error) {
	sessions, err := v.Digest(ctx, v.scope, 0, 0)
	if err != nil {
		return nil, err
	}
	reports, err := v.ReportDigest(ctx, v.scope, store.NewEncoder(&v.job.Config, results.MetaOf(v.job.Spec)), 0, 0)
	if err != nil {
		return nil, err
	}
	list, err := v.CountExceptions(ctx, v.scope.Job, v.scope.Generation, store.Rejected)
	if err != nil {
		return nil, err
	}
	row := &verifyRow{What: "stream", Sessions: int64(sessions.Count), Digest: sessions.String(), Reports: reports.String(), Rejects: map[string]int64{}}
	for _, n := range list {
		row.Rejects[n.Source+"/"+n.Reason] = n.Count
	}
	v.rejects = row.Rejects
	return row, nil
}

// unchanged makes sure that the store still holds what was read first.
func (v *verification) unchanged(ctx context.Context, stream *verifyRow) error {
	now, err := v.stream(ctx)
	if err == nil && (now.Digest != stream.Digest || now.Reports != stream.Reports || !maps.Equal(now.Rejects, stream.Rejects)) {
		err = errors.New("the stream went on while it was compared: verify needs topics that rest, or a job that is stopped")
	}
	return err
}

// findLate reads which events came late. Some of them may count all the same: a repeat of what the stream has forgotten
// already comes late, too. Their identities stand in a session.
func (v *verification) findLate(ctx context.Context, r *verifyResult) error {
	v.late = map[identity]bool{}
	numbers := map[string]uint16{}
	for i, s := range v.job.Spec.Sources {
		numbers[s.Name] = uint16(i)
	}
	q := store.ExceptionQuery{Scope: v.scope, Kind: store.Late, Page: store.Page{Limit: store.PageRowsMax}}
	for {
		page, err := v.Exceptions(ctx, q)
		if err != nil {
			return err
		}
		for i := range page.Items {
			e := &page.Items[i]
			v.late[identity{numbers[e.Source], e.Partition, e.Offset, e.Index}] = false
		}
		if q.After = page.Next; q.After == "" {
			break
		}
	}
	if len(v.late) == 0 {
		return nil
	}
	err := v.eachSession(ctx, func(x *session) {
		for _, e := range x.Events {
			id := identity{numbers[e.Source], e.Partition, e.Offset, e.Index}
			if counted, ok := v.late[id]; ok && !counted {
				v.late[id] = true
				r.Late.Counted++
			}
		}
	})
	r.Late.Events = int64(len(v.late))
	r.Late.LeftOut = r.Late.Events - r.Late.Counted
	return err
}

func (v *verification) eachSession(ctx context.Context, yield func(*session)) error {
	q := store.SessionQuery{}
	for {
		rows, next, err := sessions(ctx, v.reader, q, store.PageRowsMax)
		if err != nil {
			return err
		}
		for _, x := range rows {
			yield(x)
		}
		if q.After = next; next == "" {
			return nil
		}
	}
}

func (v *verification) replay(ctx context.Context, what string, cfg backfill.ReplayConfig) (*backfill.Summary, error) {
	cfg.Job, cfg.MemoryBytes = v.job, v.memory
	if len(v.late) > 0 {
		cfg.Exclude = func(source uint16, partition int32, offset int64, index uint16) bool {
			counted, ok := v.late[identity{source, partition, offset, int(index)}]
			return ok && !counted
		}
	}
	cfg.Progress = func(p backfill.Progress) {
		v.bar.show(fmt.Sprintf("replaying the %s: %s, %s records", what, p.Phase, thousands(p.Records)))
	}
	s, err := backfill.Replay(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("replay the %s: %w", what, err)
	}
	return s, nil
}

// compare adds a replay to the result.
func (v *verification) compare(ctx context.Context, r *verifyResult, what string, cfg backfill.ReplayConfig) error {
	s, err := v.replay(ctx, what, cfg)
	if err != nil {
		return err
	}
	stream := &r.Compared[0]
	row := verifyRow{What: what, Records: &s.Records, Sessions: s.Sessions, Digest: s.Parts["sessions"], Reports: s.Parts["reports"], Rejects: map[string]int64{}}
	for source, in := range s.Inputs {
		for reason, n := range in.Rejects {
			row.Rejects[source+"/"+reason] = n
		}
		if in.Lost > 0 {
			r.Notes = append(r.Notes, fmt.Sprintf("%s records of source %s were deleted before they were archived", thousands(in.Lost), source))
		}
	}
	if len(s.NoInput) > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("the %s have nothing of the sources %s", what, strings.Join(s.NoInput, ", ")))
	}
	same := row.Digest == stream.Digest
	if !same || !maps.Equal(row.Rejects, stream.Rejects) {
		if err := v.explain(ctx, r, &row, cfg); err != nil {
			return err
		}
	}
	equal := same && row.Reports == stream.Reports && maps.Equal(row.Rejects, stream.Rejects)
	row.Equal = &equal
	r.Equal = r.Equal && equal
	r.Compared = append(r.Compared, row)
	if same && row.Reports != stream.Reports {
		r.Notes = append(r.Notes, "the sessions are equal and the reports are not: look for windows that differ with `weft reports NAME --json`")
	}
	if !maps.Equal(row.Rejects, stream.Rejects) {
		r.Notes = append(r.Notes, fmt.Sprintf("rejects of the stream: %s; of the %s: %s", sortedRejects(stream.Rejects), what, sortedRejects(row.Rejects)))
	}
	return nil
}

// explain replays once more, into files, and looks for what differs. A record that was produced twice is rejected twice by a
// replay and stored once by the stream, so rejects are counted by identity.
func (v *verification) explain(ctx context.Context, r *verifyResult, row *verifyRow, cfg backfill.ReplayConfig) (err error) {
	dir, err := os.MkdirTemp("", "weft-verify-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cfg.Out, cfg.Format = dir, results.JSONL
	if _, err := v.replay(ctx, row.What, cfg); err != nil {
		return err
	}
	if row.Rejects, err = distinctRejects(filepath.Join(dir, "rejects.jsonl")); err != nil {
		return err
	}
	if row.Digest == r.Compared[0].Digest {
		return nil
	}
	found, err := v.differences(ctx, filepath.Join(dir, "sessions.jsonl"), row.What)
	if err != nil {
		return err
	}
	r.Differences = append(r.Differences, found[:min(len(found), differencesMax)]...)
	if len(found) > differencesMax {
		r.Notes = append(r.Notes, fmt.Sprintf("%s differ from the %s; %d are listed", count(len(found), "session"), row.What, differencesMax))
	}
	r.Notes = append(r.Notes, "look at one with `weft sessions ID`, and search its keys in the replay: `weft replay --format jsonl`")
	return nil
}

// distinctRejects counts the rejects of a replay by source and reason, each record once.
func distinctRejects(file string) (map[string]int64, error) {
	counts := map[string]int64{}
	seen := map[[sha256.Size]byte]bool{}
	err := eachLine(file, func(line []byte) error {
		var x struct {
			Source, Topic, Reason string
			Partition             int32
			Offset                int64
		}
		if err := json.Unmarshal(line, &x); err != nil {
			return err
		}
		id := sha256.Sum256(fmt.Appendf(nil, "%s/%d/%d", x.Topic, x.Partition, x.Offset))
		if !seen[id] {
			seen[id] = true
			counts[x.Source+"/"+x.Reason]++
		}
		return nil
	})
	return counts, err
}

func eachLine(file string, yield func([]byte) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	in := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			if err := yield(bytes.TrimSuffix(line, []byte("\n"))); err != nil {
				return fmt.Errorf("read %s: %w", file, err)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// differences compares the sessions of the store with those of a replay: both write one session alike.
func (v *verification) differences(ctx context.Context, file, what string) (list []verifyDifference, err error) {
	replayed := map[correlate.ID][16]byte{}
	hash := func(body []byte) (h [16]byte) {
		sum := sha256.Sum256(body)
		copy(h[:], sum[:])
		return h
	}
	err = eachLine(file, func(line []byte) error {
		var x struct{ ID string }
		if err := json.Unmarshal(line, &x); err != nil {
			return err
		}
		id, err := correlate.ParseID(x.ID)
		replayed[id] = hash(line)
		return err
	})
	if err != nil {
		return nil, err
	}
	add := func(id correlate.ID, is string) {
		list = append(list, verifyDifference{id.String(), is, what})
	}
	err = v.eachSession(ctx, func(x *session) {
		id := x.row.ID
		switch h, ok := replayed[id]; {
		case !ok:
			add(id, "is in the stream and not in the")
		case h != hash(bytes.TrimSpace(x.row.Body)):
			add(id, "differs from the")
		}
		delete(replayed, id)
	})
	for id := range replayed {
		add(id, "is not in the stream, but in the")
	}
	slices.SortFunc(list, func(a, b verifyDifference) int { return cmp.Compare(a.ID, b.ID) })
	return list, err
}

// checkpointed is what a verification needs of a checkpoint's manifest.
type checkpointed struct {
	Sequence   uint64 `json:"sequence"`
	StateEpoch uint64 `json:"stateEpoch"`
	Pending    int    `json:"pending"`
	Partitions []struct {
		Topic string `json:"topic"`
		ID    int32  `json:"partition"`
		Next  int64  `json:"next"`
	} `json:"partitions"`
	Groups *struct {
		Shards int `json:"shards"`
	} `json:"groups"`
}

// settle waits until every shard has saved all that the topics held when it was called, the store is as the checkpoints
// are, and the archive has the same records. It returns the offsets behind them.
func (v *verification) settle(ctx context.Context) (offsets, error) {
	ends := offsets{}
	for _, s := range v.job.Spec.Sources {
		if ends[s.Topic] != nil {
			continue
		}
		of, err := v.ends(ctx, s.Topic)
		if err != nil {
			return nil, fmt.Errorf("look up the end of %s: %w", s.Topic, err)
		}
		ends[s.Topic] = of
	}
	archived := map[string]int64{} // by prefix of a partition: the last sequence that was read
	until := time.Now().Add(v.wait)
	tick := time.NewTicker(v.poll)
	defer tick.Stop()
	for {
		at, lags, err := v.read(ctx, ends)
		if err != nil {
			return nil, err
		}
		if len(lags) == 0 {
			if lags, err = v.archiveLags(ctx, at, archived); err != nil {
				return nil, err
			}
		}
		if len(lags) == 0 {
			v.bar.clear()
			return at, nil
		}
		text := strings.Join(lags[:min(len(lags), lagsMax)], "; ")
		if more := len(lags) - lagsMax; more > 0 {
			text += fmt.Sprintf("; and %d more", more)
		}
		if time.Now().After(until) {
			v.bar.clear()
			return nil, fmt.Errorf("not comparable after %s: %s; see that the job and its archivers run and the topics rest, or wait longer with --wait", v.wait, text)
		}
		v.bar.show("waiting: " + text)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// read looks how far the shards are. Without a lag, at says what exactly the store holds.
func (v *verification) read(ctx context.Context, ends offsets) (at offsets, lags []string, err error) {
	shards, err := v.checkpoints(ctx)
	if err != nil {
		return nil, nil, err
	}
	progress, err := v.Progress(ctx, v.scope)
	if err != nil {
		return nil, nil, err
	}
	if len(shards) == 0 {
		return nil, []string{"no shard has saved a checkpoint"}, nil
	}
	for _, n := range slices.Sorted(maps.Keys(shards)) {
		if g := shards[n].Groups; g != nil && g.Shards != len(shards) {
			lags = append(lags, fmt.Sprintf("%d of %d shards have saved a checkpoint", len(shards), g.Shards))
			break
		}
	}
	for _, p := range progress.Shards {
		if m, ok := shards[p.Shard]; !ok {
			lags = append(lags, fmt.Sprintf("shard %d has no checkpoint", p.Shard))
		} else if own := (store.Position{Epoch: m.StateEpoch, Seq: m.Sequence}); p.Position.Epoch > own.Epoch || p.Position.Epoch == own.Epoch && p.Position.Seq != own.Seq {
			lags = append(lags, fmt.Sprintf("shard %d has written more than its last checkpoint", p.Shard))
		} else if m.Pending > 0 {
			lags = append(lags, fmt.Sprintf("shard %d has %d changes to write", p.Shard, m.Pending))
		}
	}
	at = offsets{}
	for topic, of := range ends {
		at[topic] = map[int32]int64{}
		for id := range of {
			at[topic][id] = -1
		}
	}
	for _, n := range slices.Sorted(maps.Keys(shards)) {
		for _, p := range shards[n].Partitions {
			was, ok := at[p.Topic][p.ID]
			if !ok {
				continue // of a topic that the spec does not read any more
			}
			if was >= 0 && was != p.Next {
				lags = append(lags, fmt.Sprintf("shards are at different offsets of %s/%d", p.Topic, p.ID))
			}
			at[p.Topic][p.ID] = max(was, p.Next)
		}
	}
	for _, topic := range slices.Sorted(maps.Keys(ends)) {
		for _, id := range slices.Sorted(maps.Keys(ends[topic])) {
			if next := max(0, at[topic][id]); next < ends[topic][id] {
				lags = append(lags, fmt.Sprintf("the stream has saved %s/%d up to %d of %d", topic, id, next, ends[topic][id]))
			}
			at[topic][id] = max(0, at[topic][id])
		}
	}
	return at, lags, nil
}

// checkpoints reads the manifests of the version's shards.
func (v *verification) checkpoints(ctx context.Context) (map[int]*checkpointed, error) {
	prefix := fmt.Sprintf("checkpoints/%s/%s/", v.scope.Job, v.version)
	shards := map[int]*checkpointed{}
	for after := prefix; ; {
		// The keys of a shard's state are many: its manifest is asked for, and the list goes on behind them.
		key := ""
		for info, err := range v.objects.List(ctx, prefix, after) {
			if err != nil {
				return nil, err
			}
			key = info.Key
			break
		}
		if key == "" {
			return shards, nil
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(key, prefix), "/")
		after = prefix + name + "/\x7f"
		n, err := strconv.Atoi(name)
		if err != nil || n < 0 {
			continue // not of a shard
		}
		data, _, err := v.objects.Get(ctx, prefix+name+"/manifest.json")
		if errors.Is(err, objstore.ErrNotFound) {
			continue
		}
		m := &checkpointed{}
		if err == nil {
			err = json.Unmarshal(data, m)
		}
		if err != nil {
			return nil, fmt.Errorf("read the checkpoint of shard %d: %w", n, err)
		}
		shards[n] = m
	}
}

// archiveLags tells which partitions are not archived up to where they were read.
func (v *verification) archiveLags(ctx context.Context, at offsets, last map[string]int64) (lags []string, err error) {
	for _, topic := range slices.Sorted(maps.Keys(at)) {
		for _, id := range slices.Sorted(maps.Keys(at[topic])) {
			to, err := v.archivedTo(ctx, topic, id, last)
			if err != nil {
				return nil, err
			}
			if to < at[topic][id] {
				lags = append(lags, fmt.Sprintf("the archive has %s/%d up to %d of %d", topic, id, to, at[topic][id]))
			}
		}
	}
	return lags, nil
}

// archivedTo returns the offset behind the last that a manifest of a partition has; last remembers where to look next.
func (v *verification) archivedTo(ctx context.Context, topic string, partition int32, last map[string]int64) (to int64, err error) {
	prefix := archive.Prefix(topic, partition)
	found, ok := last[prefix]
	for info, err := range v.objects.List(ctx, prefix, archive.SequenceStart(topic, partition, found)) {
		if err != nil {
			return 0, err
		}
		if sequence, nonce, isKey := archive.ParseKey(topic, partition, info.Key); isKey && nonce == "" {
			found, ok = sequence, true
		}
	}
	if !ok {
		return 0, nil
	}
	last[prefix] = found
	key := archive.ManifestKey(topic, partition, found)
	data, _, err := v.objects.Get(ctx, key)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", key, err)
	}
	m, err := archive.DecodeManifest(key, data)
	if err != nil {
		return 0, err
	}
	return m.To, nil
}
