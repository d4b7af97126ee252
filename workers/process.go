package workers

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/streaming"
)

// liveKind is the kind of the generation that a version's live output is.
const liveKind = "live"

// switchTries bounds how often the serving map may change while a first version is put into it.
const switchTries = 10

// Versions runs and prepares registered job versions on the servers of an Env.
type Versions struct {
	Env *Env
	Log *slog.Logger
	// Work is the folder for files of state that does not fit the memory. They can be lost: checkpoints have what counts.
	Work string
	// Slots is how many shards share the memory that a job's spec allows a process; 0 is 1.
	Slots int
	// Observe is given every status of a shard, for metrics and displays; may be nil. It must not block.
	Observe func(in activities.ShardInput, job *operator.Job, s streaming.Status)
}

// compile reads a version from the registry and compiles it.
func (v *Versions) compile(ctx context.Context, job string, number int) (*operator.Job, error) {
	return CompileVersion(ctx, v.Env.Objects, job, number)
}

// CompileVersion reads a version from the registry in an object store and compiles it.
func CompileVersion(ctx context.Context, objects objstore.Store, job string, number int) (*operator.Job, error) {
	r := registry.New(objects)
	version, err := r.Get(ctx, job, number)
	if err != nil {
		return nil, err
	}
	spec, err := version.Parse()
	if err != nil {
		return nil, err
	}
	var seed [8]byte
	rand.Read(seed[:]) // never fails
	compiled, err := operator.Compile(spec, binary.LittleEndian.Uint64(seed[:]), r.Assets(ctx, version))
	if err != nil {
		return nil, fmt.Errorf("compile version %d of %s: %w", number, job, err)
	}
	return compiled, nil
}

func (v *Versions) generation(ctx context.Context, job string, number int) (int64, error) {
	g, err := v.Env.Store.CreateGeneration(ctx, job, strconv.Itoa(number), liveKind)
	return g.ID, err
}

// RunShard runs a shard of a version until ctx is done.
func (v *Versions) RunShard(ctx context.Context, in activities.ShardInput, progress func(streaming.Status)) (err error) {
	if in.Shard < 0 || in.Shard >= in.Shards {
		return userError("shard %d of %d: expected 0 to %d", in.Shard, in.Shards, in.Shards-1)
	}
	job, err := v.compile(ctx, in.Job, in.Version)
	if err != nil {
		return err
	}
	generation, err := v.generation(ctx, in.Job, in.Version)
	if err != nil {
		return err
	}
	committing, stop := context.WithCancel(ctx)
	defer stop()
	logger := v.Log.With("job", in.Job, "version", in.Version)
	commit := CommitOffsets(committing, v.Env.Kafka, fmt.Sprintf("weft.%s.%d", in.Job, in.Version), CommitEvery, logger)
	cfg := streaming.Config{
		Job:       job,
		Name:      fmt.Sprintf("checkpoints/%s/%d/%d", in.Job, in.Version, in.Shard),
		Sink:      NewSink(v.Env.Store, job, generation, in.Shard),
		Objects:   Objects{Store: v.Env.Objects},
		SpillDir:  v.Work,
		Retryable: Retryable,
		Logger:    logger,
		Progress: func(s streaming.Status) {
			progress(s)
			commit(s)
			if v.Observe != nil {
				v.Observe(in, job, s)
			}
		},
	}
	// A process needs about twice as much memory beside the state, which its shards share.
	cfg.MemoryBytes = job.Spec.Resources.MemoryBytes / 3 / int64(max(1, v.Slots))
	return RunShard(ctx, Part{Client: v.Env.Kafka, Version: in.Version, Shard: in.Shard, Shards: in.Shards,
		Archive: ArchiveObjects{Store: v.Env.Objects}}, cfg)
}

// Prepare checks that a version compiles and that its topics are there, and creates its generation. A job that serves
// nothing yet serves it from then on.
func (v *Versions) Prepare(ctx context.Context, in activities.PrepareInput) (p activities.Prepared, err error) {
	job, err := v.compile(ctx, in.Job, in.Version)
	if err != nil {
		return p, err
	}
	if p.Shards = in.Shards; p.Shards == 0 {
		p.Shards = 1
	}
	switch {
	case p.Shards > event.KeyGroups:
		return p, userError("%d shards: at most %d, as there are key groups", p.Shards, event.KeyGroups)
	case p.Shards > 1 && job.Spec.ShardBy == "":
		return p, userError("%d shards: the spec of %s says nothing to divide them by; name a field in shard_by, or run one shard", p.Shards, in.Job)
	}
	records := NewLog(v.Env.Kafka)
	_, err = records.Partitions(ctx, job)
	if err = errors.Join(err, records.Close()); err != nil {
		return p, err
	}
	for _, s := range job.Spec.Sources {
		p.Topics = append(p.Topics, s.Topic)
	}
	p.Sinks = job.Spec.Sinks.Topic != "" || job.Spec.Sinks.Parquet
	if p.Generation, err = v.generation(ctx, in.Job, in.Version); err != nil {
		return p, err
	}
	p.Served, err = v.serve(ctx, in, p.Generation)
	return p, err
}

// serve tells whether the job serves a generation, and makes it do so where it serves none.
func (v *Versions) serve(ctx context.Context, in activities.PrepareInput, generation int64) (served bool, err error) {
	for range switchTries {
		m, err := v.Env.Store.ServingMap(ctx, in.Job)
		if err != nil {
			return false, err
		}
		for _, r := range m.Ranges {
			served = served || r.Generation == generation
		}
		if len(m.Ranges) > 0 || m.Epoch > 0 { // emptied on purpose is not new
			return served, nil
		}
		_, err = v.Env.Store.Switch(ctx, store.SwitchRequest{
			Job: in.Job, RequestID: fmt.Sprintf("first/%d", in.Version), ExpectedEpoch: m.Epoch,
			Assignments: []store.Assignment{{From: event.MinTime, To: event.MaxTime, Generation: generation}},
			Actor:       "weft", Reason: "the job served nothing yet",
		})
		if !errors.Is(err, store.ErrStale) {
			return err == nil, err
		}
	}
	return false, fmt.Errorf("put the first version of %s into its serving map: it changed %d times meanwhile", in.Job, switchTries)
}

// problem is an error of whoever asked for what cannot be.
type problem struct{ error }

func userError(format string, args ...any) error { return problem{fmt.Errorf(format, args...)} }
