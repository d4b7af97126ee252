package decode

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// Limits of one record beyond those of package event. They stop a small record that expands into a large batch: an
// array of keys beside an array of events multiplies. What exceeds them is rejected as too_long.
const (
	eventValuesMax  = 1024 // values of one event that paths through arrays give beyond the first of each
	recordValuesMax = 1 << 21
	recordTextMax   = event.RecordBytesMax
)

// kind says what a value was in the record.
type kind uint8

const (
	kindAbsent kind = iota // nothing was found; the zero value
	kindNull
	kindString
	kindNumber
	kindBool
)

// ref is one value found in a record: Batch.Data[off:off+n]. Values of kindAbsent and kindNull have no bytes.
type ref struct {
	off, n uint32
	kind   kind
}

func (v ref) text(b *event.Batch) []byte { return b.Data[v.off : v.off+v.n] }

// slot is one distinct path that the source's spec names; a format reads paths and delivers values by slot number.
type slot struct {
	path string
	pos  jobspec.Pos // of the first mention
	at   string      // what mentions it, for problems: "keys.order"
}

// frame builds events from the values that a format finds. It is used so, for each record:
//
//	if !f.begin(b, r) { return }            // rejected for its size; all slots are empty
//	f.set(slot, off, n, kindString)         // for every value found, in any order
//	f.emit(b, 0)                            // append the event, or count it as skipped, or reject the record
//
// A record of several events calls keep once the values common to all of them are set, and next before each event:
// next empties all slots but the kept ones. When emit or reject has rejected the record, emit returns false and
// nothing of the record is left in the batch; the format must return.
type frame struct {
	slots []slot

	name   string // of the source
	source uint16
	seed   uint64
	ignore ignore
	where  []whereRule
	time   timeRule
	step   stepRule
	keys   []keyRule
	fields []fieldRule
	dedupe []int

	sharded bool   // the group comes from the field with fieldRule.shard
	shardBy string // its name
	group   uint16

	// Of the current record.
	record event.Record
	vals   []ref // the first value of each slot
	more   []moreRef
	base   []ref // kept values
	kept   int   // kept part of more
	mark   mark
}

// moreRef is a value of a slot after its first.
type moreRef struct {
	slot int
	ref  ref
}

// mark is the state of a batch before the current record.
type mark struct {
	events, values, data int
	skipped              int64
}

type whereRule struct {
	slot   int
	values []string
}

type timeRule struct {
	slot  int
	parse timeLayout
	set   bool
}

type stepRule struct {
	slot  int // -1: constant
	fixed stepName
	names map[string]*stepName
}

// stepName is a step known from the spec, with the number it had in the batch when last seen.
type stepName struct {
	text   []byte
	number uint32
}

type keyRule struct {
	slot int
	kind uint8
}

type fieldRule struct {
	slot   int // -1: constant
	field  uint8
	again  bool // another rule for the same field comes before this one and wins
	shard  bool
	isInt  bool
	scale  int
	text   *constant // of a constant string
	number int64     // of a constant integer
	names  map[string]*constant
}

// constant is text from the spec that events point to. It remembers where in Batch.Data it was put last; text found
// there again, in whichever batch, is as good as a new copy.
type constant struct {
	text string
	at   uint32
}

// ignore holds the key values that never link.
type ignore struct {
	values []string
	max    int // length of the longest
}

func (ig *ignore) has(p []byte) bool {
	if len(p) > ig.max {
		return len(p) == 0
	}
	for _, v := range ig.values {
		if string(p) == v {
			return true
		}
	}
	return len(p) == 0
}

func newFrame(spec *jobspec.Spec, source int, o Options) (*frame, error) {
	src := &spec.Sources[source]
	f := &frame{name: src.Name, source: uint16(source), seed: o.Seed, ignore: ignore{values: spec.Ignore}}
	for _, v := range spec.Ignore {
		f.ignore.max = max(f.ignore.max, len(v))
	}
	for _, c := range src.Where {
		f.where = append(f.where, whereRule{f.slot(c.Path, c.Pos, "where"), c.Values})
	}
	if src.Time.Field != "" && src.Time.Layout != "" {
		if err := f.setTime(src, src.Time.Field, src.Time.Layout); err != nil {
			return nil, err
		}
	}
	if err := f.compileStep(src); err != nil {
		return nil, err
	}
	for _, k := range src.Keys {
		if k.Kind > 255 {
			return nil, f.problem(k.Pos, "keys", "a job has at most 256 kinds of keys", "")
		}
		f.keys = append(f.keys, keyRule{f.slot(k.Path, k.Pos, "keys."+spec.Kinds[k.Kind].Name), uint8(k.Kind)})
	}
	if err := f.compileFields(spec, src); err != nil {
		return nil, err
	}
	for _, path := range src.Dedupe {
		f.dedupe = append(f.dedupe, f.slot(path, src.Pos, "dedupe"))
	}
	return f, nil
}

// slot returns the number of a path's slot, adding it when it is new.
func (f *frame) slot(path string, pos jobspec.Pos, at string) int {
	for i := range f.slots {
		if f.slots[i].path == path {
			return i
		}
	}
	n := f.hidden()
	f.slots[n] = slot{path, pos, at}
	return n
}

// hidden adds a slot for a format's own use.
func (f *frame) hidden() int {
	f.slots = append(f.slots, slot{})
	f.vals = append(f.vals, ref{})
	f.base = append(f.base, ref{})
	return len(f.slots) - 1
}

// setTime says where events' times stand. Formats with a time of their own call it when the spec leaves it open.
func (f *frame) setTime(src *jobspec.Source, field, layout string) error {
	l, err := newTimeLayout(layout, src.Time.Zone)
	if err != nil {
		return f.problem(src.Time.Pos, "time", err.Error(), "")
	}
	f.time = timeRule{f.slot(field, src.Time.Pos, "time"), l, true}
	return nil
}

func (f *frame) compileStep(src *jobspec.Source) error {
	names := append([]jobspec.Mapping{{To: src.Step.Value}}, src.Step.Map...)
	for _, m := range names {
		if len(m.To) > event.StepBytesMax {
			return f.problem(src.Step.Pos, "step", fmt.Sprintf("a step has at most %d bytes", event.StepBytesMax), "")
		}
	}
	if src.Step.Field == "" {
		f.step = stepRule{slot: -1, fixed: stepName{text: []byte(src.Step.Value)}}
		return nil
	}
	f.step.slot = f.slot(src.Step.Field, src.Step.Pos, "step")
	if len(src.Step.Map) == 0 {
		return nil
	}
	f.step.names = make(map[string]*stepName, len(src.Step.Map))
	for _, m := range src.Step.Map {
		f.step.names[m.From] = &stepName{text: []byte(m.To)}
	}
	return nil
}

func (f *frame) compileFields(spec *jobspec.Spec, src *jobspec.Source) error {
	if src.Shard != "" {
		f.group = event.Group([]byte(src.Shard))
	}
	f.shardBy = spec.ShardBy
	wantShard := spec.ShardBy != "" && src.Shard == ""
	for i, d := range src.Fields {
		def := spec.Fields[d.Field]
		at := "fields." + def.Name
		if d.Field > 255 {
			return f.problem(d.Pos, at, "a job has at most 256 fields", "")
		}
		if d.Scale < 0 || d.Scale > scaleMax {
			return f.problem(d.Pos, at, fmt.Sprintf("scale is %d; it must be 0 to %d", d.Scale, scaleMax), "")
		}
		if len(d.Value) > event.ValueBytesMax {
			return f.problem(d.Pos, at, fmt.Sprintf("a value has at most %d bytes", event.ValueBytesMax), "")
		}
		r := fieldRule{
			slot:  -1,
			field: uint8(d.Field),
			again: i > 0 && src.Fields[i-1].Field == d.Field,
			shard: wantShard && def.Name == spec.ShardBy,
			isInt: def.Type == jobspec.IntField,
			scale: d.Scale,
		}
		f.sharded = f.sharded || r.shard
		switch {
		case d.Path != "":
			r.slot = f.slot(d.Path, d.Pos, at)
		case r.isInt:
			n, ok := parseScaled([]byte(d.Value), d.Scale)
			if !ok {
				return f.problem(d.Pos, at, fmt.Sprintf("%q is not an integer after shifting by scale %d", d.Value, d.Scale), "")
			}
			r.number = n
		default:
			r.text = &constant{text: d.Value}
		}
		if len(d.Map) > 0 {
			r.names = make(map[string]*constant, len(d.Map))
			for _, m := range d.Map {
				r.names[m.From] = &constant{text: m.To}
			}
		}
		f.fields = append(f.fields, r)
	}
	if wantShard && !f.sharded {
		return f.problem(src.Pos, "fields", fmt.Sprintf("the job is sharded by %q, and this source has no such field", spec.ShardBy),
			"add the field, or give the source a constant with shard:")
	}
	return nil
}

// problem returns an error that points into the spec, at part `at` of the source.
func (f *frame) problem(pos jobspec.Pos, at, message, hint string) error {
	return &jobspec.Problem{Pos: pos, Path: "sources." + f.name + "." + at, Message: message, Hint: hint}
}

// badPath returns the problem that a slot's path is not one that the format has.
func (f *frame) badPath(slot int, message, hint string) error {
	s := &f.slots[slot]
	return f.problem(s.pos, s.at, message, hint)
}

// begin starts a record with all slots empty. It returns false when the record is rejected for its size.
func (f *frame) begin(b *event.Batch, r event.Record) bool {
	f.record = r
	f.mark = mark{len(b.Events), len(b.Values), len(b.Data), b.Skipped}
	clear(f.vals)
	f.more = f.more[:0]
	f.kept = 0
	if r.Len > event.RecordBytesMax {
		return f.reject(b, event.ReasonTooLong, "the record has "+strconv.Itoa(int(r.Len))+" bytes")
	}
	return true
}

// set delivers a value of a slot: b.Data[off:off+n]. A null is no value. Only paths through arrays deliver several;
// keys take them all, everything else takes the first.
func (f *frame) set(slot int, off, n uint32, k kind) {
	if k <= kindNull {
		return
	}
	if v := &f.vals[slot]; v.kind == kindAbsent {
		*v = ref{off, n, k}
		return
	}
	if len(f.more) <= eventValuesMax { // one too many makes emit reject the record
		f.more = append(f.more, moreRef{slot, ref{off, n, k}})
	}
}

// keep makes the values set so far common to all further events of the record.
func (f *frame) keep() {
	copy(f.base, f.vals)
	f.kept = len(f.more)
}

// next empties all slots but the kept ones.
func (f *frame) next() {
	copy(f.vals, f.base)
	f.more = f.more[:f.kept]
}

// skip counts one occurrence that makes no event.
func (f *frame) skip(b *event.Batch) { b.Skipped++ }

// reject takes back all that the record appended to the batch and adds a Reject. It returns false.
func (f *frame) reject(b *event.Batch, reason event.Reason, detail string) bool {
	b.Events = b.Events[:f.mark.events]
	b.Values = b.Values[:f.mark.values]
	b.Data = b.Data[:f.mark.data]
	b.Skipped = f.mark.skipped
	b.Rejects = append(b.Rejects, event.Reject{Record: f.record, Reason: reason, Detail: detail})
	return false
}

// rejectSlot rejects the record for the value of a slot; the detail names the path and quotes the value.
func (f *frame) rejectSlot(b *event.Batch, reason event.Reason, slot int) bool {
	const quoteMax = 120 // bytes of the value; an escape takes up to four
	v := f.vals[slot]
	detail := f.slots[slot].path
	if v.n > 0 {
		text := b.Data[v.off : v.off+min(v.n, quoteMax)]
		detail += ": " + strconv.Quote(string(text))
		if v.n > quoteMax {
			detail += "…"
		}
	}
	return f.reject(b, reason, detail)
}

// emit appends the event that the slots describe, with its index in the record. It returns false when the record is
// rejected. An event that fails the source's `where` is counted as skipped.
func (f *frame) emit(b *event.Batch, index int) bool {
	if index >= event.RecordEventsMax {
		return f.reject(b, event.ReasonTooManyEvents, "more than "+strconv.Itoa(event.RecordEventsMax))
	}
	if len(f.more) > eventValuesMax {
		return f.reject(b, event.ReasonTooLong, "an event of more than "+strconv.Itoa(eventValuesMax)+" values")
	}
	for i := range f.where {
		if !f.where[i].holds(b, f.vals) {
			b.Skipped++
			return true
		}
	}
	v := f.vals[f.time.slot]
	if v.n == 0 {
		return f.rejectSlot(b, event.ReasonNoTime, f.time.slot)
	}
	at, ok := f.time.parse.parse(v.text(b))
	if !ok {
		return f.rejectSlot(b, event.ReasonBadTime, f.time.slot)
	}
	step, ok := f.stepOf(b)
	if !ok {
		return false
	}
	if !f.addKeys(b) {
		return false
	}
	group, ok := f.addFields(b)
	if !ok {
		return false
	}
	if len(f.dedupe) > 0 && !f.addDedupe(b, step) {
		return false
	}
	if len(b.Values)-f.mark.values > recordValuesMax || len(b.Data)-f.mark.data > recordTextMax {
		return f.reject(b, event.ReasonTooLong, "the record expands into more than "+strconv.Itoa(recordValuesMax)+" values or "+
			strconv.Itoa(recordTextMax)+" bytes of text")
	}
	b.Events = append(b.Events, event.Event{
		Time:      at,
		Offset:    f.record.Offset,
		Partition: f.record.Partition,
		Index:     uint16(index),
		Source:    f.source,
		Step:      step,
		Vals:      uint32(len(b.Values)),
		Group:     group,
	})
	return true
}

// holds tells whether the first value of the slot is one of the condition's; the empty text stands for no value.
func (w *whereRule) holds(b *event.Batch, vals []ref) bool {
	v := vals[w.slot]
	text := v.text(b)
	for _, s := range w.values {
		if string(text) == s {
			return true
		}
	}
	return false
}

func (f *frame) stepOf(b *event.Batch) (uint32, bool) {
	if f.step.slot < 0 {
		return f.step.fixed.in(b), true
	}
	v := f.vals[f.step.slot]
	if v.n == 0 {
		return 0, f.rejectSlot(b, event.ReasonNoStep, f.step.slot)
	}
	text := v.text(b)
	if f.step.names != nil {
		if s := f.step.names[string(text)]; s != nil {
			return s.in(b), true
		}
	}
	if v.n > event.StepBytesMax {
		return 0, f.rejectSlot(b, event.ReasonTooLong, f.step.slot)
	}
	return b.Step(text), true
}

// in returns the step's number in the batch; the number it had last is right unless the batch is another.
func (s *stepName) in(b *event.Batch) uint32 {
	if int(s.number) >= len(b.Steps) || string(b.Steps[s.number]) != string(s.text) {
		s.number = b.Step(s.text)
	}
	return s.number
}

func (f *frame) addKeys(b *event.Batch) bool {
	first, last := len(b.Values), -1 // first value of the kind last seen
	for i := range f.keys {
		k := &f.keys[i]
		if int(k.kind) != last {
			first, last = len(b.Values), int(k.kind)
		}
		v := f.vals[k.slot]
		if v.n == 0 && len(f.more) == 0 {
			continue
		}
		if !f.addKey(b, k, v, first) {
			return false
		}
		for j := range f.more {
			if f.more[j].slot == k.slot && !f.addKey(b, k, f.more[j].ref, first) {
				return false
			}
		}
	}
	return true
}

// addKey appends a key value unless it is empty, ignored, or already among b.Values[first:].
func (f *frame) addKey(b *event.Batch, k *keyRule, v ref, first int) bool {
	text := v.text(b)
	if f.ignore.has(text) {
		return true
	}
	if len(text) > event.ValueBytesMax {
		return f.rejectSlot(b, event.ReasonTooLong, k.slot)
	}
	h := event.Hash(f.seed, text)
	for i := first; i < len(b.Values); i++ {
		if have := &b.Values[i]; have.Bits == h && string(b.Bytes(have)) == string(text) {
			return true
		}
	}
	b.Values = append(b.Values, event.Value{Bits: h, Off: v.off, Len: uint16(v.n), ID: k.kind, Kind: event.KeyValue})
	return true
}

// addFields appends the fields and returns the event's key group.
func (f *frame) addFields(b *event.Batch) (group uint16, ok bool) {
	group = f.group
	sharded, had := false, false
	for i := range f.fields {
		r := &f.fields[i]
		if r.again && had {
			continue
		}
		n := len(b.Values)
		if !f.addField(b, r) {
			return 0, false
		}
		had = len(b.Values) > n
		if r.shard && had {
			group, sharded = groupOf(b, &b.Values[n]), true
		}
	}
	if f.sharded && !sharded {
		return 0, f.reject(b, event.ReasonNoShard, f.shardBy)
	}
	return group, true
}

// groupOf returns the key group of a field's value; integers hash as decimal text, so that sources agree.
func groupOf(b *event.Batch, v *event.Value) uint16 {
	if v.Kind == event.IntValue {
		var text [20]byte
		return event.Group(strconv.AppendInt(text[:0], int64(v.Bits), 10))
	}
	return event.Group(b.Bytes(v))
}

// addField appends the field's value, if it has one.
func (f *frame) addField(b *event.Batch, r *fieldRule) bool {
	if r.slot < 0 {
		if r.isInt {
			b.Values = append(b.Values, event.Value{Bits: uint64(r.number), ID: r.field, Kind: event.IntValue})
		} else {
			appendString(b, r.field, r.text.in(b))
		}
		return true
	}
	v := f.vals[r.slot]
	if v.n == 0 {
		return true
	}
	if r.names != nil {
		if to := r.names[string(v.text(b))]; to != nil {
			v = to.in(b)
		}
	}
	if v.n > event.ValueBytesMax {
		return f.rejectSlot(b, event.ReasonTooLong, r.slot)
	}
	if !r.isInt {
		appendString(b, r.field, v)
		return true
	}
	if v.n == 0 {
		return true
	}
	n, ok := parseScaled(v.text(b), r.scale)
	if !ok {
		return f.rejectSlot(b, event.ReasonBadField, r.slot)
	}
	b.Values = append(b.Values, event.Value{Bits: uint64(n), ID: r.field, Kind: event.IntValue})
	return true
}

func appendString(b *event.Batch, field uint8, v ref) {
	if v.n > 0 {
		b.Values = append(b.Values, event.Value{Off: v.off, Len: uint16(v.n), ID: field, Kind: event.StringValue})
	}
}

// in returns the constant as a range of the batch's data.
func (c *constant) in(b *event.Batch) ref {
	end := int(c.at) + len(c.text)
	if end > len(b.Data) || string(b.Data[c.at:end]) != c.text {
		c.at = uint32(len(b.Data))
		b.Data = append(b.Data, c.text...)
	}
	return ref{c.at, uint32(len(c.text)), kindString}
}

// addDedupe appends the dedupe value: the source's number, the step, then each value with its length. A missing value
// differs from an empty one. An event in which all are missing gets none, or all such events would fold into one.
func (f *frame) addDedupe(b *event.Batch, step uint32) bool {
	missing := 0
	for _, s := range f.dedupe {
		if f.vals[s].kind == kindAbsent {
			missing++
		}
	}
	if missing == len(f.dedupe) {
		return true
	}
	at := len(b.Data)
	b.Data = binary.BigEndian.AppendUint16(b.Data, f.source)
	b.Data = binary.AppendUvarint(b.Data, uint64(len(b.Steps[step])))
	b.Data = append(b.Data, b.Steps[step]...)
	for _, s := range f.dedupe {
		v := f.vals[s]
		if v.kind == kindAbsent {
			b.Data = append(b.Data, 0)
			continue
		}
		if v.n > event.ValueBytesMax {
			return f.rejectSlot(b, event.ReasonTooLong, s)
		}
		b.Data = binary.AppendUvarint(b.Data, uint64(v.n)+1)
		b.Data = append(b.Data, v.text(b)...)
	}
	text := b.Data[at:]
	if len(text) > event.ValueBytesMax {
		return f.reject(b, event.ReasonTooLong, strings.Join(f.dedupePaths(), " ")+": too long together")
	}
	b.Values = append(b.Values, event.Value{
		Bits: event.Hash(f.seed, text), Off: uint32(at), Len: uint16(len(text)), Kind: event.DedupeValue,
	})
	return true
}

func (f *frame) dedupePaths() []string {
	paths := make([]string, len(f.dedupe))
	for i, s := range f.dedupe {
		paths[i] = f.slots[s].path
	}
	return paths
}
