package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/weftdata/weft/objstore"
)

// Objects is where logs go, as objstore.Store has it.
type Objects interface {
	PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) (objstore.Info, error)
	List(ctx context.Context, prefix, after string) iter.Seq2[objstore.Info, error]
	Get(ctx context.Context, key string) ([]byte, objstore.Info, error)
	Delete(ctx context.Context, key string) error
}

const (
	logsRoot = "logs/"
	// segmentMax bounds an object of a log.
	segmentMax = 1 << 20
	// segmentsMax is how many objects of a process's log are kept: at one every few seconds, most of an hour of a process that
	// always writes, and much longer of one that has nothing to say.
	segmentsMax = 1000
	// trimEvery is after how many objects the oldest are deleted.
	trimEvery = 100
	// lastShip bounds how long the rest of a log is passed on after its process has ended.
	lastShip = 10 * time.Second
)

// LogPrefix is where the logs of a job are, of one version or of all (0), and of one process or of all (negative).
func LogPrefix(job string, version, process int) string {
	prefix := logsRoot + job + "/"
	if version > 0 {
		prefix += strconv.Itoa(version) + "/"
		if process >= 0 {
			prefix += strconv.Itoa(process) + "/"
		}
	}
	return prefix
}

// Segment is a part of a log.
type Segment struct {
	Key              string
	Version, Process int
	At               time.Time // that it was put at
	Output           bool      // not what the process logged, but what it wrote besides
}

// ParseSegment reads the key of an object below LogPrefix.
func ParseSegment(key string) (s Segment, ok bool) {
	parts := strings.Split(strings.TrimPrefix(key, logsRoot), "/")
	if len(parts) != 4 || !strings.HasPrefix(key, logsRoot) {
		return s, false
	}
	s.Key = key
	var err [3]error
	s.Version, err[0] = strconv.Atoi(parts[1])
	s.Process, err[1] = strconv.Atoi(parts[2])
	stamp, kind, _ := strings.Cut(parts[3], "-")
	at, e := strconv.ParseInt(stamp, 10, 64)
	err[2], s.At, s.Output = e, time.UnixMilli(at).UTC(), kind == "output"
	return s, errors.Join(err[:]...) == nil
}

// shipped is how far a log was passed on; it is kept, so that the next agent goes on there.
type shipped struct {
	File   uint64 `json:"file"` // number of the file, which a rotation changes
	Offset int64  `json:"offset"`
}

// tail is a log that is passed on.
type tail struct {
	path, kind string
	at         shipped
	last       int64 // stamp of the last object
	count      int
}

// ship passes the log of a process on until ctx is done, and then what is left of it.
func (a *Agent) ship(ctx context.Context, c *child) {
	if a.cfg.Logs == nil {
		<-ctx.Done()
		return
	}
	state := c.folder.file("shipped.json")
	places := map[string]shipped{}
	if err := readJSON(state, &places); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.cfg.Log.Warn("a log may be passed on again", "error", err)
	}
	tails := []*tail{{path: c.folder.WorkerLog(), kind: "log"}, {path: c.folder.outputLog(), kind: "output"}}
	for _, t := range tails {
		t.at = places[t.kind]
	}
	pass := func(ctx context.Context) {
		for _, t := range tails {
			if err := a.shipTail(ctx, &c.record, t); err != nil {
				a.cfg.Log.Warn("a log was not passed on; it is tried again", "process", c.record.name(), "error", err)
			}
			places[t.kind] = t.at
		}
		if err := writeJSON(state, places); err != nil {
			a.cfg.Log.Warn("a log may be passed on again", "error", err)
		}
	}
	tick := time.NewTicker(a.cfg.Timing.Ship)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			pass(ctx)
			continue
		case <-ctx.Done():
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastShip)
		defer cancel()
		pass(last)
		return
	}
}

// shipTail passes on what is new in a log, first of the file that was there before a rotation.
func (a *Agent) shipTail(ctx context.Context, r *Record, t *tail) error {
	f, err := os.Open(t.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	number, err := fileNumber(f)
	if err != nil {
		return err
	}
	if t.at.File != number {
		if err := a.shipRotated(ctx, r, t); err != nil {
			return err
		}
		t.at = shipped{File: number}
	}
	return a.shipFile(ctx, r, t, f)
}

// shipRotated passes on the rest of the file that was the log before; where it is gone, so is the rest.
func (a *Agent) shipRotated(ctx context.Context, r *Record, t *tail) error {
	if t.at.File == 0 {
		return nil
	}
	base := strings.TrimSuffix(t.path, filepath.Ext(t.path))
	names, _ := filepath.Glob(base + "*") // the pattern is well formed: the agent made it
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			continue // it was removed just now
		}
		number, err := fileNumber(f)
		if err == nil && number == t.at.File && name != t.path {
			err = a.shipFile(ctx, r, t, f)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// shipFile passes on what is new in a file, in whole lines where there are some.
func (a *Agent) shipFile(ctx context.Context, r *Record, t *tail, f *os.File) error {
	data := make([]byte, segmentMax)
	for {
		n, err := f.ReadAt(data, t.at.Offset)
		if n == 0 || err != nil && !errors.Is(err, io.EOF) {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		part := data[:n]
		if end := strings.LastIndexByte(string(part), '\n'); end >= 0 {
			part = part[:end+1]
		} else if n < len(data) {
			return nil // the rest of the line is still to come
		}
		t.last = max(t.last+1, time.Now().UnixMilli()) // in order, whatever the clock does
		key := fmt.Sprintf("%s%013d-%s", LogPrefix(r.Job, r.Version, r.Process), t.last, t.kind)
		_, err = a.cfg.Logs.PutIfAbsent(ctx, key, part, fmt.Sprintf("%d-%d", t.at.File, t.at.Offset))
		if errors.Is(err, objstore.ErrPrecondition) {
			continue // another agent had the same moment
		}
		if err != nil {
			return err
		}
		t.at.Offset += int64(len(part))
		if t.count++; t.count%trimEvery == 0 {
			a.trimLogs(ctx, r)
		}
	}
}

// trimLogs deletes the oldest objects of a process's log.
func (a *Agent) trimLogs(ctx context.Context, r *Record) {
	var keys []string
	var err error
	for info, e := range a.cfg.Logs.List(ctx, LogPrefix(r.Job, r.Version, r.Process), "") {
		if err = e; err != nil {
			break
		}
		keys = append(keys, info.Key)
	}
	slices.Sort(keys)
	for _, key := range keys[:max(0, len(keys)-segmentsMax)] {
		err = errors.Join(err, a.cfg.Logs.Delete(ctx, key))
	}
	if err != nil {
		a.cfg.Log.Warn("old logs were not deleted", "process", r.name(), "error", err)
	}
}

// fileNumber returns the number that tells a file from the one that takes its name.
func fileNumber(f *os.File) (uint64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.New("files have no numbers here")
	}
	return s.Ino, nil
}
