package decode

import (
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// jsonDecoder decodes records that are one JSON value each, of one event or (with `each`) of an array of events.
type jsonDecoder struct {
	f    *frame
	s    scanner
	root *node
	elem *node // of the elements of the source's `each`; nil: the record is one event
}

const jsonEach = 0 // span of the array of `each`

func newJSON(src *jobspec.Source, f *frame, _ Options) (Decoder, error) {
	d := &jsonDecoder{f: f, s: scanner{f: f}}
	var fromRoot, fromElem []want
	each := src.Each != ""
	d.s.each.early = true
	for i := range f.slots {
		segs, root, err := parsePath(f.slots[i].path)
		if err == nil && len(segs) == 0 {
			return nil, f.badPath(i, "the path names the whole record; expected a member of it", "such as order.id")
		}
		if err != nil {
			return nil, f.badPath(i, err.Error(), "")
		}
		if each && !root {
			fromElem = append(fromElem, want{segs, i})
			continue
		}
		fromRoot = append(fromRoot, want{segs, i})
		d.s.each.roots = append(d.s.each.roots, i)
		d.s.each.early = d.s.each.early && !hasEvery(segs)
	}
	var err error
	if d.root, err = buildNode(fromRoot); err != nil {
		return nil, f.problem(src.Pos, "keys", err.Error(), "")
	}
	if each {
		return d, d.setEach(src, fromElem)
	}
	return d, nil
}

// setEach puts the node of one element at the path of the array of events.
func (d *jsonDecoder) setEach(src *jobspec.Source, wants []want) error {
	segs, _, err := parsePath(src.Each)
	if err != nil {
		return d.f.problem(src.Pos, "each", err.Error(), "")
	}
	n := d.root
	for _, s := range segs {
		if s.every || s.index >= 0 {
			return d.f.problem(src.Pos, "each", "the path of the array may hold member names only", "such as data.items, or $ where the record is the array")
		}
		if n = n.at(s.name); n == nil {
			return d.f.problem(src.Pos, "each", errTooManyNames.Error(), "")
		}
	}
	if n.every != nil || len(n.elems) > 0 {
		return d.f.problem(src.Pos, "each", "a path from the record's root leads through the array of each", "leave out its $.")
	}
	n.span = jsonEach
	if n.each, err = buildNode(wants); err != nil {
		return d.f.problem(src.Pos, "keys", err.Error(), "")
	}
	d.elem = n.each
	return nil
}

// Decode implements Decoder.
func (d *jsonDecoder) Decode(b *event.Batch, r event.Record) {
	if !d.f.begin(b, r) {
		return
	}
	d.s.start(b, r)
	if !d.s.document(d.root) {
		return
	}
	switch {
	case d.elem == nil:
		d.f.emit(b, 0)
	case d.s.each.pending >= 0:
		if d.s.events(d.elem, d.s.each.pending, event.DepthMax) < 0 {
			d.s.reject()
		}
	case !d.s.each.found: // no array, null, or an empty one
		if text := d.s.spanText(jsonEach); len(text) > 0 && text[0] != '[' && text[0] != 'n' {
			d.f.reject(b, event.ReasonSchema, "the value of each is not an array")
			return
		}
		d.f.skip(b)
	}
}
