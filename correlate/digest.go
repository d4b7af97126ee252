package correlate

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/bits"

	"github.com/weftdata/weft/event"
)

// Digest is a fingerprint of a set of rows and cells: the sum of a SHA-256 of each, so that it does not depend on their
// order and sets can be added. It is made of names, not of numbers, so versions and engines can be compared.
type Digest struct {
	Sum   [4]uint64
	Count int64
}

// Add adds the rows of another digest.
func (d *Digest) Add(o Digest) {
	d.Count += o.Count
	var carry uint64
	for i := range d.Sum {
		d.Sum[i], carry = bits.Add64(d.Sum[i], o.Sum[i], carry)
	}
}

func digestOf(canonical []byte) Digest {
	h := sha256.Sum256(canonical)
	one := Digest{Count: 1}
	for i := range one.Sum {
		one.Sum[i] = binary.LittleEndian.Uint64(h[8*i:])
	}
	return one
}

// String returns the digest as 64 hexadecimal digits.
func (d Digest) String() string {
	var b [32]byte
	for i, v := range d.Sum {
		binary.BigEndian.PutUint64(b[24-8*i:], v)
	}
	return hex.EncodeToString(b[:])
}

// Digester computes digests of one job's rows and cells. It is not safe for concurrent use.
type Digester struct {
	Sessions Digest
	Reports  Digest

	cfg    *Config
	topics []uint64
	names  []uint64 // hashes of Row.StepNames, as far as they are known
	known  []string
	b      []byte
}

// NewDigester returns a digester for the rows of cores with this config.
func NewDigester(cfg *Config) *Digester {
	d := &Digester{cfg: cfg}
	for _, t := range cfg.Topics {
		d.topics = append(d.topics, event.Hash(0, []byte(t)))
	}
	return d
}

func (d *Digester) step(r *Row, n uint32) uint64 {
	for int(n) >= len(d.names) {
		d.names = append(d.names, 0)
		d.known = append(d.known, "")
	}
	if name := r.StepNames[n]; d.known[n] != name {
		d.known[n], d.names[n] = name, event.Hash(0, []byte(name))
	}
	return d.names[n]
}

// Row adds a session.
func (d *Digester) Row(r *Row) { d.Sessions.Add(d.RowDigest(r)) }

// RowDigest returns the digest of one session and adds nothing: a store keeps it with the row and adds up what it serves.
func (d *Digester) RowDigest(r *Row) Digest {
	le := binary.LittleEndian
	b := append(d.b[:0], r.ID[:]...)
	b = le.AppendUint64(b, uint64(r.Start))
	b = le.AppendUint64(b, uint64(r.End))
	b = le.AppendUint64(b, uint64(r.Count))
	for _, k := range r.Keys {
		b = appendText(append(b, 'k'), []byte(d.cfg.Kinds[k.Kind].Name))
		b = appendText(b, k.Value)
	}
	for i := range r.Fields {
		if f := &r.Fields[i]; f.Present {
			b = appendText(append(b, 'f'), []byte(d.cfg.Fields[i].Name))
			if d.cfg.Fields[i].Int {
				b = le.AppendUint64(b, uint64(f.Int))
			} else {
				b = appendText(b, f.Text)
			}
		}
	}
	for _, h := range r.Hits {
		b = appendText(append(b, 's'), []byte(d.cfg.Scenarios[h.Scenario].Name))
		b = le.AppendUint64(b, uint64(h.DecidedAt))
	}
	for i := range r.Events {
		e := &r.Events[i]
		b = le.AppendUint64(append(b, 'e'), uint64(e.Time))
		b = le.AppendUint64(b, uint64(e.Offset))
		b = le.AppendUint32(b, uint32(d.topics[e.Source]))
		b = le.AppendUint32(b, uint32(d.step(r, e.Step)))
		b = le.AppendUint16(binary.AppendVarint(b, int64(e.Partition)), e.Index)
	}
	d.b = b
	return digestOf(b)
}

// Cell adds a report cell. Cells without sessions are no rows.
func (d *Digester) Cell(c *Cell) {
	r := &d.cfg.Reports[c.Report]
	b := appendText(d.b[:0], []byte(r.Name))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.Window))
	for i, v := range c.By {
		b = appendText(b, []byte(d.cfg.Fields[r.By[i]].Name))
		b = appendText(b, v)
	}
	for i, m := range c.Measures {
		b = appendText(b, []byte(r.Measures[i].Name))
		b = binary.LittleEndian.AppendUint64(b, uint64(m))
	}
	d.b = b
	d.Reports.Add(digestOf(b))
}
