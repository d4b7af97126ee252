// Package decode turns raw records into events: one file a format, each a single pass over the bytes that takes only
// the values the spec names. Decoders copy nothing that they can point to, use no reflection and build no map per record.
//
// A decoder has two halves. The format's half finds the wanted values in the bytes; the frame, which all formats share,
// checks them and builds the event (frame.go).
package decode

import (
	"fmt"
	"slices"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// Decoder decodes the records of one source. A Decoder keeps scratch memory: use one per goroutine.
type Decoder interface {
	// Decode appends the events of record r (whose bytes are b.Raw(r)) to b, or one Reject and no event. It may
	// append text to b.Data; it never changes bytes that are already there.
	Decode(b *event.Batch, r event.Record)
}

// Assets reads a file that a spec names (a schema, a descriptor set), relative to the spec.
type Assets func(name string) ([]byte, error)

// Options are common to all decoders of a job.
type Options struct {
	Seed   uint64 // of the hash of key values; the core must have the same
	Assets Assets // nil: a spec that names a file does not compile
}

// New compiles the decoder of spec.Sources[source]. Its errors are of type *jobspec.Problem where they point into the spec.
func New(spec *jobspec.Spec, source int, o Options) (Decoder, error) {
	if source < 0 || source >= len(spec.Sources) {
		return nil, fmt.Errorf("the spec has no source number %d", source)
	}
	src := &spec.Sources[source]
	f, err := newFrame(spec, source, o)
	if err != nil {
		return nil, err
	}
	d, err := newFormat(src, f, o)
	if err != nil {
		return nil, err
	}
	if !f.time.set {
		return nil, f.problem(src.Time.Pos, "time", "the time needs a layout",
			"one of unix_s, unix_ms, unix_us, unix_ns, rfc3339, or a Go layout such as 2006-01-02 15:04:05")
	}
	return d, nil
}

// NewRows compiles the decoder of a source's rows: JSON records that were made of the columns of a table, whatever the format of
// its records is (see package columns).
func NewRows(spec *jobspec.Spec, source int, o Options) (Decoder, error) {
	src := spec.Sources[source]
	if src.Time.Layout == "" {
		src.Time.Layout = "rfc3339"
	}
	rows := *spec
	rows.Sources = slices.Clone(spec.Sources)
	rows.Sources[source] = src
	f, err := newFrame(&rows, source, o)
	if err != nil {
		return nil, err
	}
	return newJSON(&src, f, o)
}

func newFormat(src *jobspec.Source, f *frame, o Options) (Decoder, error) {
	switch src.Format.Name {
	case "json":
		return newJSON(src, f, o)
	case "canal":
		return newCanal(src, f, o)
	case "debezium":
		return newDebezium(src, f, o)
	case "maxwell":
		return newMaxwell(src, f, o)
	case "nginx":
		return newNginx(src, f, o)
	case "csv":
		return newCSV(src, f, o)
	case "logfmt":
		return newLogfmt(src, f, o)
	case "regex":
		return newRegex(src, f, o)
	case "avro":
		return newAvro(src, f, o)
	case "protobuf":
		return newProtobuf(src, f, o)
	}
	return nil, f.problem(src.Format.Pos, "format", fmt.Sprintf("there is no format %q", src.Format.Name),
		"one of json, canal, debezium, maxwell, nginx, csv, logfmt, regex, avro, protobuf")
}
