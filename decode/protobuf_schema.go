package decode

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/weftdata/weft/jobspec"
)

func newProtobuf(src *jobspec.Source, f *frame, o Options) (Decoder, error) {
	md, err := parseDescriptors(src, o)
	if err != nil {
		return nil, f.problem(src.Format.Pos, "format.schema", err.Error(), "")
	}
	timeSlot := f.slot(src.Time.Field, src.Time.Pos, "time")
	w, err := wantedOf(f, src.Each, func(message, hint string) error { return f.problem(src.Pos, "each", message, hint) })
	if err != nil {
		return nil, err
	}
	d := &protobuf{wire: newWire(f), confluent: src.Format.Confluent, indexes: messageIndexes(md)}
	c := protoCompiler{misses: newMisses(f), stamps: make([]bool, len(f.slots)), elem: w.elem}
	d.root = c.message(md, c.nonEmpty(w.root), false)
	if src.Each != "" {
		d.each = c.message(md, c.nonEmpty([]want{{w.each, eachSlot}}), false)
		if !c.foundEach {
			return nil, f.problem(src.Pos, "each", fmt.Sprintf("the message has no repeated message %q", src.Each), "")
		}
	}
	if err := c.misses.problem(f); err != nil {
		return nil, err
	}
	if c.tooMany {
		return nil, f.problem(src.Pos, "keys", "the paths lead to too many fields of one message",
			fmt.Sprintf("at most %d numbers, and %d repeated fields by index", protoDefaultsMax, protoCountersMax))
	}
	const layout = "unix_us" // of a Timestamp as it is delivered
	switch {
	case c.stamps[timeSlot] && !f.time.set:
		return d, f.setTime(src, src.Time.Field, layout)
	case c.stamps[timeSlot] && src.Time.Layout != layout:
		return nil, f.problem(src.Time.Pos, "time", "a google.protobuf.Timestamp has no layout", "leave the layout out")
	}
	return d, nil
}

// parseDescriptors reads the descriptor set that the spec names and finds the source's message in it.
func parseDescriptors(src *jobspec.Source, o Options) (protoreflect.MessageDescriptor, error) {
	if o.Assets == nil {
		return nil, fmt.Errorf("no files can be read here, and the descriptor set %q is one", src.Format.Schema)
	}
	raw, err := o.Assets(src.Format.Schema)
	if err != nil {
		return nil, fmt.Errorf("read the descriptor set: %w", err)
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(raw, &set); err != nil {
		return nil, errors.New("the file is no FileDescriptorSet; make one with protoc --include_imports --descriptor_set_out=FILE")
	}
	// Imports that the set lacks stay unresolved: a Timestamp is known by its name.
	files, err := protodesc.FileOptions{AllowUnresolvable: true}.NewFiles(&set)
	if err != nil {
		return nil, fmt.Errorf("read the descriptor set: %w", err)
	}
	found, err := files.FindDescriptorByName(protoreflect.FullName(src.Format.Message))
	md, ok := found.(protoreflect.MessageDescriptor)
	if err != nil || !ok {
		return nil, fmt.Errorf("the descriptor set has no message %q; it has %s", src.Format.Message, messageNames(&set))
	}
	return md, nil
}

func messageNames(set *descriptorpb.FileDescriptorSet) string {
	const namesMax = 20
	var names []string
	for _, file := range set.File {
		for _, m := range file.MessageType {
			names = append(names, strings.TrimPrefix(file.GetPackage()+"."+m.GetName(), "."))
		}
	}
	if len(names) > namesMax {
		names = append(names[:namesMax], "…")
	}
	return strings.Join(names, " ")
}

// messageIndexes returns the place of a message in its file: its index, after those of the messages around it.
func messageIndexes(md protoreflect.MessageDescriptor) []int {
	var indexes []int
	for d := protoreflect.Descriptor(md); d != nil; d = d.Parent() {
		if _, ok := d.(protoreflect.MessageDescriptor); ok {
			indexes = append(indexes, d.Index())
		}
	}
	slices.Reverse(indexes)
	return indexes
}

const protoDefaultsMax = 64 // a bit each

// protoCompiler makes the tree of what is wanted of a message.
type protoCompiler struct {
	misses    misses
	stamps    []bool // by slot: a Timestamp was found there
	elem      []want // what is wanted of each element of the array of `each`
	foundEach bool
	tooMany   bool
}

func (c *protoCompiler) message(md protoreflect.MessageDescriptor, wants []want, many bool) *protoMessage {
	m := &protoMessage{}
	var descriptors []protoreflect.FieldDescriptor
	for _, w := range wants {
		seg := w.path[0]
		fd := md.Fields().ByName(protoreflect.Name(seg.name))
		if seg.every || fd == nil {
			c.misses.add([]want{w}, fmt.Sprintf("the message %s has no such field", md.Name()), "it has "+protoFieldNames(md))
			continue
		}
		if slices.Contains(descriptors, fd) {
			continue
		}
		descriptors = append(descriptors, fd)
		sub := below(wants, func(other segment) bool { return !other.every && other.name == seg.name })
		m.fields = append(m.fields, c.field(m, fd, sub, many))
	}
	for i, fd := range descriptors { // now that the fields have their places
		f := &m.fields[i]
		if f.number < uint64(len(m.small)) {
			m.small[f.number] = uint16(i + 1)
		}
		if def := protoZero(fd); def.kind != kindAbsent && !fd.HasPresence() && len(f.leaf.slots) > 0 {
			if len(m.defaults) == protoDefaultsMax {
				c.tooMany = true
				break
			}
			f.seen = 1 << len(m.defaults)
			def.seen, def.leaf = f.seen, &f.leaf
			m.defaults = append(m.defaults, def)
		}
	}
	return m
}

// protoZero returns the zero value of a number, boolean or enum that is not repeated, else none.
func protoZero(fd protoreflect.FieldDescriptor) protoDefault {
	def := protoDefault{kind: kindNumber, text: constant{text: "0"}}
	switch fd.Kind() {
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind, protoreflect.GroupKind:
		return protoDefault{}
	case protoreflect.BoolKind:
		def = protoDefault{kind: kindBool, text: constant{text: "false"}}
	case protoreflect.EnumKind:
		zero := fd.Enum().Values().ByNumber(0)
		if zero == nil {
			return protoDefault{}
		}
		def = protoDefault{kind: kindString, text: constant{text: string(zero.Name())}}
	}
	if fd.Cardinality() == protoreflect.Repeated {
		return protoDefault{}
	}
	return def
}

func protoFieldNames(md protoreflect.MessageDescriptor) string {
	const namesMax = 50
	var names []string
	for i := range min(md.Fields().Len(), namesMax) {
		names = append(names, string(md.Fields().Get(i).Name()))
	}
	if md.Fields().Len() > namesMax {
		names = append(names, "…")
	}
	return strings.Join(names, " ")
}

// field compiles a field of message m. The paths of the wants begin after the field's name.
func (c *protoCompiler) field(m *protoMessage, fd protoreflect.FieldDescriptor, wants []want, many bool) protoField {
	switch {
	case fd.IsMap():
		return c.entries(fd, wants, many)
	case fd.IsList():
		return c.list(m, fd, wants, many)
	}
	return c.single(fd, wants, many)
}

func (c *protoCompiler) list(m *protoMessage, fd protoreflect.FieldDescriptor, wants []want, many bool) protoField {
	here, further := ended(wants)
	c.misses.add(here, "the path ends at a repeated field", "add [] for every element, or .0 for the first")
	if len(here) > 0 && here[0].slot == eachSlot && fd.Kind() == protoreflect.MessageKind {
		c.foundEach = true
		return protoField{number: uint64(fd.Number()), op: protoEach, message: c.message(fd.Message(), c.nonEmpty(c.elem), false)}
	}
	every := below(further, func(seg segment) bool { return seg.every })
	f := c.single(fd, every, true)
	for _, w := range further {
		seg := w.path[0]
		switch {
		case seg.every:
		case seg.index < 0:
			c.misses.add([]want{w}, fmt.Sprintf("%q stands where a repeated field is", seg.name), "write [] for every element, or a number")
		case !slices.ContainsFunc(f.elems, func(e protoElem) bool { return e.index == seg.index }):
			sub := below(further, func(other segment) bool { return other.every || other.index == seg.index })
			f.elems = append(f.elems, protoElem{index: seg.index, field: c.single(fd, sub, many || len(every) > 0)})
		}
	}
	if len(f.elems) > 0 {
		f.counter = m.counters
		if m.counters++; m.counters > protoCountersMax {
			c.tooMany = true
		}
	}
	return f
}

// nonEmpty leaves out wants that end at a message itself.
func (c *protoCompiler) nonEmpty(wants []want) []want {
	here, further := ended(wants)
	c.misses.add(here, "the path ends at a message", "add the name of a field")
	return further
}

func (c *protoCompiler) entries(fd protoreflect.FieldDescriptor, wants []want, many bool) protoField {
	here, further := ended(wants)
	c.misses.add(here, "the path ends at a map", "add the key of an entry")
	f := protoField{number: uint64(fd.Number()), op: protoMap, key: protoOpOf(fd.MapKey().Kind())}
	for _, w := range further {
		seg := w.path[0]
		switch {
		case seg.every:
			c.misses.add([]want{w}, "[] stands where a map is", "write the key of an entry")
		case !slices.ContainsFunc(f.elems, func(e protoElem) bool { return e.key == seg.name }):
			sub := below(further, func(other segment) bool { return !other.every && other.name == seg.name })
			f.elems = append(f.elems, protoElem{key: seg.name, field: c.single(fd.MapValue(), sub, many), zero: protoZero(fd.MapValue())})
		}
	}
	return f
}

// single compiles one value of a field.
func (c *protoCompiler) single(fd protoreflect.FieldDescriptor, wants []want, many bool) protoField {
	f := protoField{number: uint64(fd.Number()), op: protoOpOf(fd.Kind()), repeated: fd.IsList()}
	here, further := ended(wants)
	switch {
	case fd.Kind() == protoreflect.GroupKind:
		c.misses.add(wants, "groups are not supported", "")
		f.op = protoBytes
		return f
	case fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Timestamp" && len(here) > 0:
		f.op = protoTimestamp
	case fd.Message() != nil:
		c.misses.add(here, fmt.Sprintf("the path ends at the message %s", fd.Message().Name()), "it has "+protoFieldNames(fd.Message()))
		f.message = c.message(fd.Message(), further, many)
		return f
	}
	c.misses.add(further, fmt.Sprintf("the path leads into a value of type %s", fd.Kind()), "leave out what follows it")
	f.leaf = c.misses.leafOf(here, many)
	f.leaf.last = true
	if f.op == protoTimestamp {
		for _, slot := range f.leaf.slots {
			c.stamps[slot] = true
		}
	}
	if fd.Kind() == protoreflect.EnumKind {
		f.names = protoNames(fd.Enum())
	}
	return f
}

// protoNames returns the names of an enum by number; of several names for one number the first.
func protoNames(ed protoreflect.EnumDescriptor) []protoName {
	var names []protoName
	for i := range ed.Values().Len() {
		v := ed.Values().Get(i)
		names = append(names, protoName{int32(v.Number()), constant{text: string(v.Name())}})
	}
	slices.SortStableFunc(names, func(a, b protoName) int { return int(a.number) - int(b.number) })
	return slices.CompactFunc(names, func(a, b protoName) bool { return a.number == b.number })
}

func protoOpOf(kind protoreflect.Kind) protoOp {
	switch kind {
	case protoreflect.MessageKind:
		return protoSubmessage
	case protoreflect.BoolKind:
		return protoBool
	case protoreflect.EnumKind:
		return protoEnum
	case protoreflect.Int32Kind:
		return protoInt32
	case protoreflect.Int64Kind:
		return protoInt64
	case protoreflect.Uint32Kind:
		return protoUint32
	case protoreflect.Uint64Kind:
		return protoUint64
	case protoreflect.Sint32Kind:
		return protoSint32
	case protoreflect.Sint64Kind:
		return protoSint64
	case protoreflect.Fixed32Kind:
		return protoFixed32
	case protoreflect.Sfixed32Kind:
		return protoSfixed32
	case protoreflect.FloatKind:
		return protoFloat
	case protoreflect.Fixed64Kind:
		return protoFixed64
	case protoreflect.Sfixed64Kind:
		return protoSfixed64
	case protoreflect.DoubleKind:
		return protoDouble
	}
	return protoBytes
}
