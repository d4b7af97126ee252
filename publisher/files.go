package publisher

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"github.com/weftdata/weft/archive/pqfile"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/objstore"
)

const (
	manifestFormat = 1
	rowBytes       = 64        // of a row beside its body, roughly
	takenMax       = 10_000    // numbers that others may have taken before this publisher
	filePageBytes  = 256 << 10 // readers of some columns skip what they do not want by pages
	rowsAtOnce     = 256
)

// Manifest describes a file of published rows. A file that no manifest names is garbage.
type Manifest struct {
	Format    int    `json:"format"`
	Job       string `json:"job"`
	Sequence  int64  `json:"sequence"`       // from 0 without gaps; in the key of the manifest
	File      string `json:"file,omitempty"` // key of the Parquet file; empty: no rows
	Bytes     int64  `json:"bytes"`
	SHA256    string `json:"sha256,omitempty"`
	Rows      int64  `json:"rows"`
	Deleted   int64  `json:"deleted"` // of them, of sessions that are gone
	StartMin  int64  `json:"start_min_us"`
	StartMax  int64  `json:"start_max_us"` // of the sessions, in microseconds
	Publisher uint64 `json:"publisher"`    // number of the start that wrote it
	// Switch is there where a switch of the serving map is complete with this file.
	Switch *Switched `json:"switch,omitempty"`
}

// fileRow is a row of a file.
type fileRow struct {
	ID         string   `parquet:"id"`
	MapEpoch   int64    `parquet:"map_epoch"`
	Generation int64    `parquet:"generation"`
	Shard      int32    `parquet:"shard"`
	Epoch      int64    `parquet:"epoch"`
	Seq        int64    `parquet:"seq"`
	Deleted    bool     `parquet:"deleted"`
	Start      int64    `parquet:"start,timestamp(microsecond)"`
	End        *int64   `parquet:"end,optional,timestamp(microsecond)"`
	User       *string  `parquet:"user,optional"`
	Scenarios  []string `parquet:"scenarios,list"`
	Body       *string  `parquet:"body,optional"`
}

func filesFolder(job string) string { return folder(job) + "sessions/" }

func manifestKey(job string, sequence int64) string {
	return fmt.Sprintf("%s%010d.json", filesFolder(job), sequence)
}

// filesMark is where the files stood at a checkpoint.
type filesMark struct {
	Next int64 `json:"next"` // sequence of the next manifest
}

// files writes Parquet files. Rows wait in memory, of each session the last, until a checkpoint is due.
type files struct {
	*Config
	epoch    uint64
	next     int64
	rows     []Row
	place    map[correlate.ID]int
	bytes    int
	complete *Switched
}

func newFiles(cfg *Config, _ *Status) *files {
	return &files{Config: cfg, place: map[correlate.ID]int{}}
}

func (f *files) close() error { return nil }

func (f *files) open(ctx context.Context, s *state) (known bool, err error) {
	f.epoch = s.Epoch
	var mark filesMark
	if len(s.Mark) > 0 {
		if err := json.Unmarshal(s.Mark, &mark); err != nil {
			return false, fmt.Errorf("read the checkpoint's mark of the files: %w", err)
		}
	}
	f.next = mark.Next
	for n, err := range manifests(ctx, f.Objects, f.Job, mark.Next) {
		if err != nil {
			return false, err
		}
		f.next = n + 1 // written after the checkpoint: its rows come again
	}
	if len(s.Mark) == 0 {
		s.reset()
		return f.next == 0, nil
	}
	return true, nil
}

// manifests yields the sequences of the manifests from one on, in order.
func manifests(ctx context.Context, objects Objects, job string, from int64) func(func(int64, error) bool) {
	return func(yield func(int64, error) bool) {
		after := ""
		if from > 0 {
			after = manifestKey(job, from-1)
		}
		for info, err := range objects.List(ctx, filesFolder(job), after) {
			if err != nil {
				yield(0, fmt.Errorf("list published files: %w", err))
				return
			}
			var n int64
			if _, err := fmt.Sscanf(strings.TrimPrefix(info.Key, filesFolder(job)), "%010d.json", &n); err != nil || manifestKey(job, n) != info.Key {
				continue
			}
			if !yield(n, nil) {
				return
			}
		}
	}
}

func (f *files) put(_ context.Context, r *Row) error {
	if i, ok := f.place[r.ID]; ok {
		f.bytes += len(r.Body) - len(f.rows[i].Body)
		f.rows[i] = *r
		return nil
	}
	f.place[r.ID] = len(f.rows)
	f.rows = append(f.rows, *r)
	f.bytes += rowBytes + len(r.Body)
	return nil
}

func (f *files) full() bool { return f.bytes >= f.FileBytes }

func (f *files) switched(_ context.Context, m Switched) error {
	f.complete = &m
	return nil
}

// flush writes what waits to a file, and the manifest that makes it count.
func (f *files) flush(ctx context.Context, _ *state) (mark []byte, strays []Row, err error) {
	if len(f.rows) > 0 || f.complete != nil {
		if err := f.write(ctx); err != nil {
			return nil, nil, err
		}
		f.rows, f.bytes, f.complete = nil, 0, nil
		clear(f.place)
	}
	mark, err = json.Marshal(filesMark{f.next})
	return mark, nil, err
}

func (f *files) write(ctx context.Context) error {
	m := Manifest{Format: manifestFormat, Job: f.Job, Sequence: f.next, Rows: int64(len(f.rows)), Publisher: f.epoch, Switch: f.complete}
	if len(f.rows) > 0 {
		slices.SortFunc(f.rows, func(a, b Row) int { return bytes.Compare(a.ID[:], b.ID[:]) })
		clear(f.place) // the rows have moved; they are not replaced any more
		data, err := f.encode()
		if err != nil {
			return err
		}
		m.StartMin, m.StartMax = int64(f.rows[0].Start), int64(f.rows[0].Start)
		for i := range f.rows {
			m.StartMin, m.StartMax = min(m.StartMin, int64(f.rows[i].Start)), max(m.StartMax, int64(f.rows[i].Start))
			if f.rows[i].Deleted {
				m.Deleted++
			}
		}
		sum := sha256.Sum256(data)
		m.Bytes, m.SHA256 = int64(len(data)), hex.EncodeToString(sum[:])
		m.File = fmt.Sprintf("%s%010d-%s.parquet", filesFolder(f.Job), f.next, strings.ToLower(rand.Text()))
		if _, err := f.Objects.Put(ctx, m.File, bytes.NewReader(data), m.Bytes); err != nil {
			return fmt.Errorf("write published sessions: %w", err)
		}
	}
	return f.list(ctx, &m)
}

// list puts the manifest at the next number that nobody has.
func (f *files) list(ctx context.Context, m *Manifest) error {
	nonce := rand.Text()
	for range takenMax {
		m.Sequence = f.next
		data, err := json.Marshal(m)
		if err != nil {
			return err
		}
		_, err = f.Objects.PutIfAbsent(ctx, manifestKey(f.Job, f.next), data, nonce)
		if err != nil && !errors.Is(err, objstore.ErrPrecondition) {
			return fmt.Errorf("write the manifest of published sessions: %w", err)
		}
		f.next++
		if err == nil {
			return nil
		}
		other, err := readManifest(ctx, f.Objects, f.Job, f.next-1)
		if err != nil {
			return err
		}
		if other.Publisher > f.epoch {
			return fmt.Errorf("%w: manifest %d is of start %d, this one is %d", ErrFenced, other.Sequence, other.Publisher, f.epoch)
		}
		// An earlier start wrote until now. Its rows are as good as any: positions tell which hold.
	}
	return fmt.Errorf("%d numbers of manifests in a row are taken", takenMax)
}

func (f *files) encode() ([]byte, error) {
	var b bytes.Buffer
	w := parquet.NewGenericWriter[fileRow](&b, parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}),
		parquet.PageBufferSize(filePageBytes), parquet.CreatedBy("weft", "publisher", "1"), parquet.SkipPageBounds("body"),
		parquet.KeyValueMetadata("weft.job", f.Job), parquet.KeyValueMetadata("weft.kind", "published"),
		parquet.SortingWriterConfig(parquet.SortingColumns(parquet.Ascending("id"))))
	for i := range f.rows {
		row, err := fileRowOf(&f.rows[i])
		if err != nil {
			return nil, err
		}
		if _, err := w.Write([]fileRow{row}); err != nil {
			return nil, fmt.Errorf("encode published sessions: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("encode published sessions: %w", err)
	}
	return b.Bytes(), nil
}

func fileRowOf(r *Row) (fileRow, error) {
	row := fileRow{ID: r.ID.String(), MapEpoch: int64(r.At.Map), Generation: r.At.Generation, Shard: int32(r.At.Shard),
		Epoch: int64(r.At.Epoch), Seq: int64(r.At.Seq), Deleted: r.Deleted, Start: int64(r.Start)}
	if r.Deleted {
		return row, nil
	}
	var parts struct {
		User      *string
		Scenarios []string
	}
	if err := json.Unmarshal(r.Body, &parts); err != nil {
		return row, fmt.Errorf("session %s of generation %d in the store is damaged: %w", r.ID, r.At.Generation, err)
	}
	end, body := int64(r.End), string(r.Body)
	row.End, row.Body, row.User, row.Scenarios = &end, &body, parts.User, parts.Scenarios
	return row, nil
}

func (f *files) view(ctx context.Context, yield func(*Row) error) error {
	return ReadFiles(ctx, f.Objects, f.Job, yield)
}

// ReadFiles yields every published row of a job in order of the files. A Latest of them has what is served. A missing or
// damaged file is an ErrDamaged.
func ReadFiles(ctx context.Context, objects Objects, job string, yield func(*Row) error) error {
	next := int64(0)
	for n, err := range manifests(ctx, objects, job, 0) {
		if err == nil && n != next {
			err = fmt.Errorf("%w: manifest %d of the published files is missing, although there is %d", ErrDamaged, next, n)
		}
		if err != nil {
			return err
		}
		next++
		m, err := readManifest(ctx, objects, job, n)
		if err != nil {
			return err
		}
		if m.File == "" {
			continue
		}
		if err := readFile(ctx, objects, &m, yield); err != nil {
			return err
		}
	}
	return nil
}

// ReadManifests returns the manifests of a job's published files from a sequence on, in order.
func ReadManifests(ctx context.Context, objects Objects, job string, from int64) (list []Manifest, err error) {
	for n, err := range manifests(ctx, objects, job, from) {
		if err != nil {
			return nil, err
		}
		m, err := readManifest(ctx, objects, job, n)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

func readManifest(ctx context.Context, objects Objects, job string, sequence int64) (m Manifest, err error) {
	key := manifestKey(job, sequence)
	data, _, err := objects.Get(ctx, key)
	if err != nil {
		return m, fmt.Errorf("read the manifest of published sessions: %w", err)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("read %s: %w: %w", key, ErrDamaged, err)
	}
	if m.Format != manifestFormat || m.Job != job || m.Sequence != sequence || m.File != "" && !strings.HasPrefix(m.File, filesFolder(job)) {
		return m, fmt.Errorf("read %s: %w: it is manifest %d of %.80q in format %d", key, ErrDamaged, m.Sequence, m.Job, m.Format)
	}
	return m, nil
}

func readFile(ctx context.Context, objects Objects, m *Manifest, yield func(*Row) error) error {
	data, _, err := objects.Get(ctx, m.File)
	if err != nil {
		return fmt.Errorf("read published sessions: %w", err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != m.SHA256 {
		return fmt.Errorf("read %s: %w: its hash is %x, the manifest says %s", m.File, ErrDamaged, sum, m.SHA256)
	}
	rows, err := decodeFile(data)
	if err != nil {
		return fmt.Errorf("read %s: %w", m.File, err)
	}
	if int64(len(rows)) != m.Rows {
		return fmt.Errorf("read %s: %w: it has %d rows, the manifest says %d", m.File, ErrDamaged, len(rows), m.Rows)
	}
	for i := range rows {
		r := &rows[i]
		row := Row{At: Position{uint64(r.MapEpoch), r.Generation, int(r.Shard), uint64(r.Epoch), uint64(r.Seq)}, Start: event.Micros(r.Start), Deleted: r.Deleted}
		if row.ID, err = correlate.ParseID(r.ID); err != nil {
			return fmt.Errorf("read %s: %w: %w", m.File, ErrDamaged, err)
		}
		if r.End != nil {
			row.End = event.Micros(*r.End)
		}
		if r.Body != nil {
			row.Body = []byte(*r.Body)
		}
		if err := yield(&row); err != nil {
			return err
		}
	}
	return nil
}

// decodeFile reads a file whose hash was right: what is damaged in it was written so.
func decodeFile(data []byte) (rows []fileRow, err error) {
	err = pqfile.Guard(func() error {
		r := parquet.NewGenericReader[fileRow](bytes.NewReader(data))
		for {
			page := make([]fileRow, rowsAtOnce)
			n, err := r.Read(page)
			rows = append(rows, page[:n]...)
			if errors.Is(err, io.EOF) {
				return r.Close()
			}
			if err != nil {
				return errors.Join(err, r.Close())
			}
		}
	})
	return rows, err
}
