package archive

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/weftdata/weft/event"
)

// Limits of a manifest. They bound what a reader allocates for a damaged one.
const (
	ManifestBytesMax = 16 << 20
	FileBytesMax     = 512 << 20 // of a data file: a reader holds three at once
	FilesMax         = 8         // data files of one manifest
	GapsMax          = 1024      // gaps listed in one manifest; with more, neighbours are listed as one

	manifestVersion = 1
	root            = "archive/"
	partitionDigits = 5
	sequenceDigits  = 10
	manifestSuffix  = ".json"
	dataSuffix      = ".parquet"
	offsetMax       = math.MaxInt64 - 1
)

// ErrManifest is in the error of a manifest that is not what an archiver writes.
var ErrManifest = errors.New("the manifest is damaged")

// Manifest is one step of the archive of a partition: all records of a range of offsets, and the files that hold them. The
// manifests of a partition are numbered from 0 on and each begins where the one before ended.
type Manifest struct {
	Version   int        `json:"version"`
	Topic     string     `json:"topic"`
	Partition int32      `json:"partition"`
	Identity  string     `json:"identity"` // of the topic, which a topic that is made again does not share; empty: not known
	Sequence  int64      `json:"sequence"`
	Nonce     string     `json:"nonce"` // of the attempt that wrote it, as in the names of its files
	From      int64      `json:"from"`
	To        int64      `json:"to"`      // the range of offsets is [From, To)
	Records   int64      `json:"records"` // of all files
	Gaps      []Gap      `json:"gaps,omitempty"`
	Files     []DataFile `json:"files"`
}

// Gap is a range [From, To) in which offsets are missing: all of it, where Missing is To − From.
type Gap struct {
	From    int64     `json:"from"`
	To      int64     `json:"to"`
	Missing int64     `json:"missing"`
	Reason  GapReason `json:"reason"`
}

// GapReason says why offsets are missing.
type GapReason string

// The reasons for a gap.
const (
	// Absent offsets were never given to a reader: markers of transactions, aborted ones, what compaction removed.
	Absent GapReason = "absent"
	// Deleted offsets were removed by retention, or by hand, before they were archived: records are lost.
	Deleted GapReason = "deleted"
)

// DataFile is an archive file with what a plan needs to know of it. Its rows are a part of the manifest's range, in order.
type DataFile struct {
	Key            string  `json:"key"`
	Bytes          int64   `json:"bytes"`
	SHA256         string  `json:"sha256"` // of the file, 64 hexadecimal digits
	Records        int64   `json:"records"`
	LeastOffset    int64   `json:"least_offset"`
	GreatestOffset int64   `json:"greatest_offset"`
	Timestamps     *Span   `json:"timestamps,omitempty"` // of the broker; nil: no record has one
	Timeless       int64   `json:"timeless,omitempty"`   // records without a timestamp
	Times          []Times `json:"times,omitempty"`      // in order of job, source and fingerprint
}

// Span is a range of times, both ends included, in microseconds UTC.
type Span struct {
	Least    event.Micros `json:"least"`
	Greatest event.Micros `json:"greatest"`
}

// Times says which event times a job's source finds in a file. It holds for sources with the same fingerprint only.
type Times struct {
	Job         string `json:"job"`
	Source      string `json:"source"`
	Fingerprint string `json:"fingerprint"`
	Events      int64  `json:"events"`
	Rejects     int64  `json:"rejects"`        // records that do not decode and so have no event time
	Event       *Span  `json:"span,omitempty"` // of the events; nil: there are none
}

// TopicPrefix is what the keys of a topic's objects start with.
func TopicPrefix(topic string) string { return root + topic + "/" }

// Prefix is what the keys of a partition's objects start with.
func Prefix(topic string, partition int32) string {
	return fmt.Sprintf("%s%0*d/", TopicPrefix(topic), partitionDigits, partition)
}

// ManifestKey names the object of a manifest.
func ManifestKey(topic string, partition int32, sequence int64) string {
	return sequenceKey(topic, partition, sequence) + manifestSuffix
}

// DataKey names the object of a manifest's data file; piece counts the files.
func DataKey(topic string, partition int32, sequence int64, nonce string, piece int) string {
	return fmt.Sprintf("%s-%s-%d%s", sequenceKey(topic, partition, sequence), nonce, piece, dataSuffix)
}

func sequenceKey(topic string, partition int32, sequence int64) string {
	return fmt.Sprintf("%s%0*d", Prefix(topic, partition), sequenceDigits, sequence)
}

// SequenceStart is a key less than that of every object of a sequence, and greater than that of any before it.
func SequenceStart(topic string, partition int32, sequence int64) string {
	return sequenceKey(topic, partition, sequence)
}

// ParseKey reads a key of a partition's objects: of a manifest, whose nonce is empty, or of a data file.
func ParseKey(topic string, partition int32, key string) (sequence int64, nonce string, ok bool) {
	name, ok := strings.CutPrefix(key, Prefix(topic, partition))
	if !ok || len(name) < sequenceDigits {
		return 0, "", false
	}
	sequence, err := strconv.ParseInt(name[:sequenceDigits], 10, 64)
	if err != nil || sequence < 0 {
		return 0, "", false
	}
	if name[sequenceDigits:] == manifestSuffix {
		return sequence, "", ManifestKey(topic, partition, sequence) == key
	}
	rest, ok := strings.CutSuffix(name[sequenceDigits:], dataSuffix)
	parts := strings.Split(rest, "-")
	if !ok || len(parts) != 3 || parts[0] != "" || !isNonce(parts[1]) {
		return 0, "", false
	}
	piece, err := strconv.Atoi(parts[2])
	return sequence, parts[1], err == nil && DataKey(topic, partition, sequence, parts[1], piece) == key
}

func isNonce(text string) bool {
	for _, c := range text {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return text != "" && len(text) <= 64
}

// Encode returns the manifest as it is stored.
func (m *Manifest) Encode() ([]byte, error) {
	m.Version = manifestVersion
	if m.Files == nil {
		m.Files = []DataFile{}
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(m, "", " ")
	return append(text, '\n'), err
}

// DecodeManifest reads the manifest that is stored under a key, and checks all that it says.
func DecodeManifest(key string, data []byte) (*Manifest, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s: %w", ErrManifest, key, fmt.Errorf(format, args...))
	}
	if len(data) > ManifestBytesMax {
		return nil, bad("it has %d bytes; at most %d are allowed", len(data), ManifestBytesMax)
	}
	var version struct{ Version int }
	if err := json.Unmarshal(data, &version); err != nil {
		return nil, bad("%w", err)
	}
	if version.Version != manifestVersion {
		return nil, bad("it has version %d; this program reads version %d", version.Version, manifestVersion)
	}
	m := new(Manifest)
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return nil, bad("%w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, bad("something stands behind its end")
	}
	if err := m.Validate(); err != nil {
		return nil, bad("%w", err)
	}
	if want := ManifestKey(m.Topic, m.Partition, m.Sequence); want != key {
		return nil, bad("it belongs at %s", want)
	}
	return m, nil
}

// Validate reports the first thing in the manifest that cannot be.
func (m *Manifest) Validate() error {
	switch {
	case m.Topic == "" || strings.ContainsRune(m.Topic, '/'):
		return fmt.Errorf("topic %q", m.Topic)
	case m.Partition < 0 || m.Sequence < 0 || m.Sequence >= int64(math.Pow10(sequenceDigits)):
		return fmt.Errorf("partition %d, sequence %d", m.Partition, m.Sequence)
	case !isNonce(m.Nonce):
		return fmt.Errorf("nonce %q", m.Nonce)
	case m.From < 0 || m.To <= m.From || m.To > offsetMax:
		return fmt.Errorf("offsets [%d, %d)", m.From, m.To)
	case len(m.Files) > FilesMax || len(m.Gaps) > GapsMax:
		return fmt.Errorf("%d files, %d gaps; at most %d and %d are allowed", len(m.Files), len(m.Gaps), FilesMax, GapsMax)
	}
	left := m.To - m.From // offsets that are not accounted for
	at := m.From
	for i, g := range m.Gaps {
		whole := g.To - g.From
		if g.From < at || g.To > m.To || g.To <= g.From || g.Missing <= 0 || g.Missing > whole || g.Reason != Absent && (g.Reason != Deleted || g.Missing != whole) {
			return fmt.Errorf("gap %d: [%d, %d), %d %s", i, g.From, g.To, g.Missing, g.Reason)
		}
		at = g.To
		left -= g.Missing
	}
	for i := range m.Files {
		f := &m.Files[i]
		if want := DataKey(m.Topic, m.Partition, m.Sequence, m.Nonce, i); f.Key != want {
			return fmt.Errorf("file %d is %q; expected %q", i, f.Key, want)
		}
		if f.Records > left {
			return fmt.Errorf("file %d holds %d records; at most %d are left", i, f.Records, left)
		}
		left -= f.Records
		if err := f.validate(m.From, m.To); err != nil {
			return fmt.Errorf("file %d: %w", i, err)
		}
	}
	if records := m.To - m.From - m.missing(); left != 0 || m.Records != records {
		return fmt.Errorf("offsets [%d, %d): %d records and %d missing offsets, %d of neither", m.From, m.To, m.Records, m.missing(), left)
	}
	return nil
}

// missing counts the offsets of the range that no record has.
func (m *Manifest) missing() (n int64) {
	for _, g := range m.Gaps {
		n += g.Missing
	}
	return n
}

// Lost counts the offsets whose records were deleted before they were archived.
func (m *Manifest) Lost() (n int64) {
	for _, g := range m.Gaps {
		if g.Reason == Deleted {
			n += g.Missing
		}
	}
	return n
}

func (f *DataFile) validate(from, to int64) error {
	switch {
	case f.Bytes <= 0 || f.Bytes > FileBytesMax:
		return fmt.Errorf("%d bytes; at most %d are allowed", f.Bytes, FileBytesMax)
	case len(f.SHA256) != 64 || strings.ToLower(f.SHA256) != f.SHA256 || !isHex(f.SHA256):
		return fmt.Errorf("sha256 %q", f.SHA256)
	case f.LeastOffset < from || f.GreatestOffset >= to || f.GreatestOffset < f.LeastOffset:
		return fmt.Errorf("offsets %d to %d of [%d, %d)", f.LeastOffset, f.GreatestOffset, from, to)
	case f.Records <= 0 || f.Records > f.GreatestOffset-f.LeastOffset+1:
		return fmt.Errorf("%d records with offsets %d to %d", f.Records, f.LeastOffset, f.GreatestOffset)
	case f.Timeless < 0 || f.Timeless > f.Records:
		return fmt.Errorf("%d of %d records without a timestamp", f.Timeless, f.Records)
	case !f.Timestamps.valid():
		return fmt.Errorf("timestamps %d to %d", f.Timestamps.Least, f.Timestamps.Greatest)
	}
	for i := range f.Times {
		t := &f.Times[i]
		if i > 0 && !f.Times[i-1].less(t) {
			return fmt.Errorf("the times of %s/%s are out of order", t.Job, t.Source)
		}
		if t.Job == "" || t.Source == "" || t.Fingerprint == "" || t.Events < 0 || t.Rejects < 0 || t.Rejects > f.Records ||
			(t.Events > 0) != (t.Event != nil) || !t.Event.valid() {
			return fmt.Errorf("times of %q/%q: %d events, %d rejects of %d records", t.Job, t.Source, t.Events, t.Rejects, f.Records)
		}
	}
	return nil
}

func (s *Span) valid() bool { return s == nil || s.Least <= s.Greatest }

func (t *Times) less(other *Times) bool {
	if t.Job != other.Job {
		return t.Job < other.Job
	}
	if t.Source != other.Source {
		return t.Source < other.Source
	}
	return t.Fingerprint < other.Fingerprint
}

func isHex(text string) bool {
	_, err := hex.DecodeString(text)
	return err == nil
}

// TimesOf returns what the file knows of a source; nil: nothing that holds for it.
func (f *DataFile) TimesOf(job, source, fingerprint string) *Times {
	for i := range f.Times {
		if t := &f.Times[i]; t.Job == job && t.Source == source && t.Fingerprint == fingerprint {
			return t
		}
	}
	return nil
}

// Follows checks that a manifest goes on where another of the partition ended.
func (m *Manifest) Follows(before *Manifest) error {
	switch {
	case m.Topic != before.Topic || m.Partition != before.Partition:
		return fmt.Errorf("%w: %s/%d does not follow %s/%d", ErrManifest, m.Topic, m.Partition, before.Topic, before.Partition)
	case m.Identity != before.Identity && m.Identity != "" && before.Identity != "":
		return fmt.Errorf("%w: %s is of another topic of that name than the one before it", ErrManifest, ManifestKey(m.Topic, m.Partition, m.Sequence))
	case m.Sequence != before.Sequence+1 || m.From != before.To:
		return fmt.Errorf("%w: %s starts at offset %d; the one before it is number %d and ends at %d", ErrManifest,
			ManifestKey(m.Topic, m.Partition, m.Sequence), m.From, before.Sequence, before.To)
	}
	return nil
}
