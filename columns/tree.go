package columns

import (
	"errors"
	"fmt"
	"slices"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/weftdata/weft/event"
)

// node is a place in the records that rows become. Those below an object of the mapping's own (no leaf of its own decides
// whether it is there) are put together from several columns.
type node struct {
	kind    nodeKind
	text    []byte // of a constant, as JSON
	leaf    *leaf
	first   *leaf // the first of the columns below: its levels tell what is there
	level   byte  // definition level from which on it is there
	depth   byte  // repetition level of its elements after the first
	members []member
	elem    *node // of a list
	key     *node // of a map, whose values are elem
}

type member struct {
	name string
	text []byte // the name as JSON, with a colon
	node *node
}

type nodeKind uint8

const (
	objectNode nodeKind = iota
	leafNode
	listNode
	mapNode
	constantNode
)

// put puts a node at the end of a path of members.
func (n *node) put(names []string, x *node) {
	for i, name := range names {
		at := slices.IndexFunc(n.members, func(m member) bool { return m.name == name })
		if at < 0 {
			next := x
			if i < len(names)-1 {
				next = &node{kind: objectNode}
			}
			n.members = append(n.members, member{name, append(appendText(nil, []byte(name)), ':'), next})
			at = len(n.members) - 1
		}
		n = n.members[at].node
	}
}

// at returns the node at the end of a path of members; nil: there is none.
func (n *node) at(names []string) *node {
	for _, name := range names {
		i := slices.IndexFunc(n.members, func(m member) bool { return m.name == name })
		if i < 0 {
			return nil
		}
		n = n.members[i].node
	}
	return n
}

// annotation returns what a group of columns is.
func annotation(c *parquet.Column) any {
	if c.Leaf() {
		return nil
	}
	if t := c.Type().LogicalType(); t != nil {
		return t.Value
	}
	return nil
}

func isList(c *parquet.Column) bool { _, ok := annotation(c).(*format.ListType); return ok }
func isMap(c *parquet.Column) bool  { _, ok := annotation(c).(*format.MapType); return ok }

var errTooDeep = fmt.Errorf("its columns are nested deeper than %d", event.DepthMax)

// tree makes the node of a column and all below it.
func (f *File) tree(c *parquet.Column, depth int) (*node, error) {
	if depth > event.DepthMax/2 {
		return nil, errTooDeep
	}
	if c.Repeated() { // a list without the groups that mark one
		elem, err := f.single(c, depth)
		if err != nil {
			return nil, err
		}
		return &node{kind: listNode, first: elem.first, level: byte(c.MaxDefinitionLevel()), depth: byte(c.MaxRepetitionLevel()), elem: elem}, nil
	}
	return f.single(c, depth)
}

// single is tree of one of the elements, where a column is repeated.
func (f *File) single(c *parquet.Column, depth int) (*node, error) {
	if c.Leaf() {
		l := f.leaf(c)
		l.scalar = scalarOf(c.Type())
		return &node{kind: leafNode, leaf: l, first: l, level: byte(c.MaxDefinitionLevel())}, nil
	}
	below := c.Columns()
	level := byte(c.MaxDefinitionLevel())
	if len(below) == 0 {
		return nil, fmt.Errorf("column %q is a group of nothing", c.Path())
	}
	if repeated := below[0]; len(below) == 1 && repeated.Repeated() && (isList(c) || isMap(c)) {
		n := &node{kind: listNode, level: byte(repeated.MaxDefinitionLevel()), depth: byte(repeated.MaxRepetitionLevel())}
		var err error
		inner := repeated.Columns()
		switch {
		case isMap(c) && len(inner) == 2:
			n.kind = mapNode
			if n.key, err = f.tree(inner[0], depth+1); err != nil {
				return nil, err
			}
			if n.key.kind != leafNode {
				return nil, fmt.Errorf("column %q is a map by what is no plain value", c.Path())
			}
			n.elem, err = f.tree(inner[1], depth+1)
		case len(inner) == 1 && isElement(repeated, c): // list.element, however it is named
			n.elem, err = f.tree(inner[0], depth+1)
		default:
			n.elem, err = f.single(repeated, depth+1)
		}
		if err != nil {
			return nil, err
		}
		if n.first = n.elem.first; n.key != nil {
			n.first = n.key.first
		}
		return &node{kind: objectNode, first: n.first, level: level, elem: n}, nil
	}
	n := &node{kind: objectNode, level: level}
	for _, x := range below {
		m, err := f.tree(x, depth+1)
		if err != nil {
			return nil, err
		}
		if n.first == nil {
			n.first = m.first
		}
		n.put([]string{x.Name()}, m)
	}
	return n, nil
}

// isElement tells whether the repeated group of a list only wraps its elements. Old writers have lists whose repeated group is
// the element itself, as the format's rules for reading them say.
func isElement(repeated, list *parquet.Column) bool {
	return !repeated.Leaf() && repeated.Name() != "array" && repeated.Name() != list.Name()+"_tuple"
}

// appendJSON writes what a row has at a place, and steps over it.
func (n *node) appendJSON(b []byte) ([]byte, error) {
	switch n.kind {
	case constantNode:
		return append(b, n.text...), nil
	case leafNode:
		if err := n.leaf.Need(); err != nil {
			return b, err
		}
		if at := n.leaf.Take(); at >= 0 {
			return n.leaf.scalar.append(b, n.leaf, at), nil
		}
		return append(b, "null"...), nil
	case listNode, mapNode:
		return n.appendElements(b)
	}
	if n.first != nil {
		if err := n.first.Need(); err != nil {
			return b, err
		}
		if n.first.Level() < n.level {
			return append(b, "null"...), n.skip()
		}
	}
	if n.elem != nil {
		return n.elem.appendJSON(b)
	}
	return n.appendMembers(b)
}

// appendMembers writes an object. A member without a value is left out.
func (n *node) appendMembers(b []byte) (_ []byte, err error) {
	b = append(b, '{')
	for i := range n.members {
		m := &n.members[i]
		start := len(b)
		if b[start-1] != '{' {
			b = append(b, ',')
		}
		b = append(b, m.text...)
		value := len(b)
		if b, err = m.node.appendJSON(b); err != nil {
			return b, err
		}
		if string(b[value:]) == "null" || m.node.members != nil && string(b[value:]) == "{}" {
			b = b[:start]
		}
	}
	return append(b, '}'), nil
}

// appendElements writes a list, or a map as an object.
func (n *node) appendElements(b []byte) (_ []byte, err error) {
	open, end := byte('['), byte(']')
	if n.kind == mapNode {
		open, end = '{', '}'
	}
	b = append(b, open)
	if err := n.first.Need(); err != nil {
		return b, err
	}
	if n.first.Level() < n.level {
		return append(b, end), n.skip()
	}
	for count := 0; ; count++ {
		if count > 0 {
			b = append(b, ',')
		}
		if n.kind == mapNode {
			at := len(b)
			if b, err = n.key.appendJSON(b); err != nil {
				return b, err
			}
			if b[at] != '"' { // JSON has no other keys
				b = append(b, '"')
				b = slices.Insert(b, at, '"')
			}
			b = append(b, ':')
		}
		if b, err = n.elem.appendJSON(b); err != nil {
			return b, err
		}
		switch more, err := n.first.Next(); {
		case err != nil:
			return b, err
		case !more || n.first.Repetition() < n.depth:
			return append(b, end), nil
		case n.first.Repetition() > n.depth:
			return b, errors.New("its repetition levels are damaged")
		}
	}
}

// skip steps over one entry of each column below.
func (n *node) skip() error {
	if n.leaf != nil {
		if err := n.leaf.Need(); err != nil {
			return err
		}
		n.leaf.Take()
		return nil
	}
	var errs []error
	for _, x := range []*node{n.key, n.elem} {
		if x != nil {
			errs = append(errs, x.skip())
		}
	}
	for i := range n.members {
		errs = append(errs, n.members[i].node.skip())
	}
	return errors.Join(errs...)
}
