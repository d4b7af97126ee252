package decode

import (
	"errors"
	"fmt"
	"strings"

	avrolib "github.com/hamba/avro/v2"

	"github.com/weftdata/weft/jobspec"
)

const (
	avroNodesMax = 1 << 16 // nodes of one compiled schema
	avroScaleMax = 38      // digits after a decimal's point
)

// parseAvroSchema parses the schema that the spec holds or names.
func parseAvroSchema(src *jobspec.Source, o Options) (avrolib.Schema, error) {
	text := []byte(strings.TrimSpace(src.Format.Schema))
	if len(text) == 0 {
		return nil, errors.New("the format needs a schema: its JSON, or the name of a file")
	}
	if text[0] != '{' && text[0] != '[' && text[0] != '"' {
		if o.Assets == nil {
			return nil, fmt.Errorf("no files can be read here: give the schema's JSON in place of %q", text)
		}
		var err error
		if text, err = o.Assets(string(text)); err != nil {
			return nil, fmt.Errorf("read the schema: %w", err)
		}
	}
	// A cache of its own keeps the names of one job's schema from another's.
	schema, err := avrolib.ParseBytesWithCache(text, "", &avrolib.SchemaCache{})
	if err != nil {
		return nil, fmt.Errorf("parse the schema: %.300w", err)
	}
	return schema, nil
}

// avroCompiler makes the tree of nodes of a schema.
type avroCompiler struct {
	misses  misses
	layouts []string                     // by slot: the layout of the timestamp found there
	skips   map[avrolib.Schema]*avroNode // records to step over, which may hold themselves
	count   int

	elem     []want    // what is wanted of each element of the array of `each`
	elemNode *avroNode // its node, once found
	crossed  bool      // something else is wanted from inside that array
}

// node compiles a schema and what is wanted of it.
func (c *avroCompiler) node(schema avrolib.Schema, wants []want, many bool) *avroNode {
	if ref, ok := schema.(*avrolib.RefSchema); ok {
		schema = ref.Schema()
	}
	if c.count++; c.count > avroNodesMax {
		return &avroNode{}
	}
	if n := c.skips[schema]; n != nil && len(wants) == 0 {
		return n
	}
	n := &avroNode{skip: len(wants) == 0}
	switch s := schema.(type) {
	case *avrolib.RecordSchema:
		c.record(n, s, wants, many)
	case *avrolib.UnionSchema:
		n.op = avroUnion
		for _, branch := range s.Types() {
			n.nodes = append(n.nodes, c.node(branch, wants, many))
		}
	case *avrolib.ArraySchema:
		c.array(n, s, wants, many)
	case *avrolib.MapSchema:
		c.entries(n, s, wants, many)
	default:
		c.scalar(n, schema, wants, many)
	}
	return n
}

func (c *avroCompiler) record(n *avroNode, s *avrolib.RecordSchema, wants []want, many bool) {
	n.op = avroRecord
	if n.skip {
		c.skips[s] = n
	}
	here, further := ended(wants)
	c.misses.add(here, fmt.Sprintf("the path ends at the record %s", s.Name()), "it has "+avroFieldNames(s))
	taken := 0
	n.empty = true
	for _, field := range s.Fields() {
		sub := below(further, func(seg segment) bool { return !seg.every && seg.name == field.Name() })
		taken += len(sub)
		child := c.node(field.Type(), sub, many)
		n.nodes = append(n.nodes, child)
		n.empty = n.empty && child.empty
	}
	if taken < len(further) {
		c.misses.add(further, fmt.Sprintf("the record %s has no such field", s.Name()), "it has "+avroFieldNames(s))
	}
	if n.empty { // nothing to read, however many parts it has
		n.op = avroNull
	}
}

func avroFieldNames(s *avrolib.RecordSchema) string {
	const namesMax = 50
	var names []string
	for _, f := range s.Fields() {
		if len(names) == namesMax {
			return strings.Join(names, " ") + " …"
		}
		names = append(names, f.Name())
	}
	return strings.Join(names, " ")
}

func (c *avroCompiler) array(n *avroNode, s *avrolib.ArraySchema, wants []want, many bool) {
	n.op = avroArray
	here, further := ended(wants)
	for _, w := range here {
		if w.slot == eachSlot && c.elemNode == nil {
			n.each = true
			c.elemNode = c.node(s.Items(), c.elem, false)
		}
	}
	if n.each {
		c.crossed = c.crossed || len(further) > 0
		further = nil
	}
	c.misses.add(here, "the path ends at an array", "add [] for every element, or .0 for the first")
	every := below(further, func(seg segment) bool { return seg.every })
	n.nodes = []*avroNode{c.node(s.Items(), every, true)}
	for _, w := range further {
		seg := w.path[0]
		if !seg.every && seg.index < 0 {
			c.misses.add([]want{w}, fmt.Sprintf("%q stands where an array is", seg.name), "write [] for every element, or a number")
		}
		if seg.index >= 0 && !seg.every && n.element(seg.index) == n.nodes[0] {
			sub := below(further, func(seg2 segment) bool { return seg2.every || seg2.index == seg.index })
			n.elems = append(n.elems, avroElem{index: seg.index, node: c.node(s.Items(), sub, many || len(every) > 0)})
		}
	}
	n.skip = len(every) == 0 && len(n.elems) == 0
}

func (c *avroCompiler) entries(n *avroNode, s *avrolib.MapSchema, wants []want, many bool) {
	n.op = avroMap
	here, further := ended(wants)
	c.misses.add(here, "the path ends at a map", "add the key of an entry")
	n.nodes = []*avroNode{c.node(s.Values(), nil, false)}
	seen := map[string]bool{}
	for _, w := range further {
		seg := w.path[0]
		if seg.every {
			c.misses.add([]want{w}, "[] stands where a map is", "write the key of an entry")
		} else if !seen[seg.name] {
			seen[seg.name] = true
			sub := below(further, func(other segment) bool { return !other.every && other.name == seg.name })
			n.elems = append(n.elems, avroElem{key: seg.name, node: c.node(s.Values(), sub, many)})
		}
	}
}

func (c *avroCompiler) scalar(n *avroNode, schema avrolib.Schema, wants []want, many bool) {
	n.op, n.size = avroScalarOp(schema)
	n.empty = n.op == avroNull || n.op == avroFixed && n.size == 0
	if d, ok := avroLogical(schema).(*avrolib.DecimalLogicalSchema); ok && d.Scale() <= avroScaleMax {
		n.scale = d.Scale()
		switch n.op {
		case avroBytes:
			n.op = avroDecimal
		case avroFixed:
			n.op = avroFixedDecimal
		}
	}
	if e, ok := schema.(*avrolib.EnumSchema); ok {
		for _, symbol := range e.Symbols() {
			n.symbols = append(n.symbols, constant{text: symbol})
		}
	}
	if n.op == avroNull { // a miss in one branch of a union says nothing
		return
	}
	here, further := ended(wants)
	c.misses.add(further, fmt.Sprintf("the path leads into a value of type %s", schema.Type()), "leave out what follows it")
	n.leaf = c.misses.leafOf(here, many)
	n.skip = len(n.leaf.slots) == 0
	for _, slot := range n.leaf.slots {
		if layout := avroTimeLayout(schema); layout != "" {
			c.layouts[slot] = layout
		}
	}
}

func avroScalarOp(schema avrolib.Schema) (op avroOp, size int) {
	switch schema.Type() {
	case avrolib.Boolean:
		return avroBoolean, 1
	case avrolib.Int:
		return avroInt, 0
	case avrolib.Long:
		return avroLong, 0
	case avrolib.Float:
		return avroFloat, 4
	case avrolib.Double:
		return avroDouble, 8
	case avrolib.Bytes, avrolib.String:
		return avroBytes, 0
	case avrolib.Enum:
		return avroEnum, 0
	case avrolib.Fixed:
		return avroFixed, schema.(*avrolib.FixedSchema).Size()
	}
	return avroNull, 0
}

func avroLogical(schema avrolib.Schema) avrolib.LogicalSchema {
	if s, ok := schema.(avrolib.LogicalTypeSchema); ok {
		return s.Logical()
	}
	return nil
}

// avroTimeLayout returns the layout of a timestamp's number. A local timestamp has none: its zone is not in the schema.
func avroTimeLayout(schema avrolib.Schema) string {
	name := ""
	if l := avroLogical(schema); l != nil {
		name = string(l.Type())
	} else if s, ok := schema.(*avrolib.PrimitiveSchema); ok {
		name, _ = s.Prop("logicalType").(string) // one that the parser does not know
	}
	switch name {
	case "timestamp-millis":
		return "unix_ms"
	case "timestamp-micros":
		return "unix_us"
	case "timestamp-nanos":
		return "unix_ns"
	}
	return ""
}
