package decode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// segment is one step of a JSON path: into a member of an object or an element of an array.
type segment struct {
	name  string
	index int  // of an element, where the name is a plain number; else -1
	every bool // []: every element; name and index do not count
}

// parsePath parses a path such as order.id, items.0.id, items[].id, a."b.c" or $.region. A number names the element of
// an array or the member of an object, whichever the record has; a quoted number only the member. root tells that the
// path starts with $: it counts from the record even where the source has `each`.
func parsePath(path string) (segs []segment, root bool, err error) {
	rest := path
	if rest == "$" {
		return nil, true, nil
	}
	if strings.HasPrefix(rest, "$.") || strings.HasPrefix(rest, "$[") {
		root = true
		rest = strings.TrimPrefix(rest[1:], ".")
	}
	for first := true; first || rest != ""; first = false {
		if !first && rest[0] == '.' {
			rest = rest[1:]
		} else if !first && rest[0] != '[' {
			return nil, false, fmt.Errorf("path %q: expected a dot before %q", path, rest)
		}
		var s segment
		switch {
		case strings.HasPrefix(rest, "[]"):
			s, rest = segment{index: -1, every: true}, rest[2:]
		case strings.HasPrefix(rest, `"`):
			end := strings.IndexByte(rest[1:], '"')
			if end < 0 {
				return nil, false, fmt.Errorf("path %q: the quote is not closed", path)
			}
			s, rest = segment{name: rest[1 : 1+end], index: -1}, rest[end+2:]
		default:
			end := strings.IndexAny(rest, `.[]"`)
			if end < 0 {
				end = len(rest)
			}
			if end == 0 {
				return nil, false, fmt.Errorf("path %q: expected a name, got %q; write items[].id for every element, items.0.id for the first",
					path, rest)
			}
			s, rest = plainSegment(rest[:end]), rest[end:]
		}
		if len(segs) == pathSegmentsMax {
			return nil, false, fmt.Errorf("path %q: more than %d segments", path, pathSegmentsMax)
		}
		segs = append(segs, s)
	}
	return segs, root, nil
}

// pathSegmentsMax bounds a path. It keeps the trie small where paths mix indexes and [] at every level.
const pathSegmentsMax = 16

func plainSegment(name string) segment {
	if n, err := strconv.Atoi(name); err == nil && n >= 0 && strconv.Itoa(n) == name {
		return segment{name: name, index: n}
	}
	return segment{name: name, index: -1}
}

func hasEvery(segs []segment) bool {
	for _, s := range segs {
		if s.every {
			return true
		}
	}
	return false
}

// node is a place in a document where something is wanted: here (slots, span) or below.
type node struct {
	slots []int // that a scalar here fills
	span  int   // number of the scanner's span that notes the range of the value here; -1: none
	names []name
	elems []elem // elements wanted by index, which get what every element gets too
	every *node  // all other elements; nil: they are skipped

	// each is set where the elements of the array here are events: the node of one element.
	each *node
	// tail is the number of the span that notes the range of the array's elements after the first; -1: none.
	tail int
}

// name is a wanted member of an object. Its first eight bytes are compared as one word.
type name struct {
	head uint64 // first eight bytes, the first in the low bits
	n    int
	text string
	node *node
}

type elem struct {
	index int
	node  *node
}

func newNode() *node { return &node{span: -1, tail: -1} }

// want is one thing to take from a document.
type want struct {
	path []segment
	slot int
}

// namesMax bounds the wanted members of one object: the scanner keeps a bit for each.
const namesMax = 256

var errTooManyNames = errors.New("more than 256 members of one object")

// buildNode compiles wants into a trie. In the trie every element of an array has exactly one node.
func buildNode(wants []want) (*node, error) {
	n := newNode()
	var err error
	var every []want
	for _, w := range wants {
		if len(w.path) == 0 {
			n.slots = append(n.slots, w.slot)
		} else if w.path[0].every {
			every = append(every, want{w.path[1:], w.slot})
		}
	}
	if len(every) > 0 {
		if n.every, err = buildNode(every); err != nil {
			return nil, err
		}
	}
	for _, w := range wants {
		if len(w.path) == 0 || w.path[0].every {
			continue
		}
		s := w.path[0]
		if n.member(s.name) == nil {
			child, err := buildNode(below(wants, func(t segment) bool { return !t.every && t.name == s.name }))
			if err != nil {
				return nil, err
			}
			if err := n.add(s.name, child); err != nil {
				return nil, err
			}
		}
		if s.index >= 0 && n.element(s.index) == n.every {
			child, err := buildNode(below(wants, func(t segment) bool { return t.every || t.index == s.index }))
			if err != nil {
				return nil, err
			}
			n.elems = append(n.elems, elem{s.index, child})
		}
	}
	return n, nil
}

// below returns what the wants whose first segment is matched want below it.
func below(wants []want, match func(segment) bool) (out []want) {
	for _, w := range wants {
		if len(w.path) > 0 && match(w.path[0]) {
			out = append(out, want{w.path[1:], w.slot})
		}
	}
	return out
}

// add makes child the node of a member.
func (n *node) add(member string, child *node) error {
	if len(n.names) == namesMax {
		return errTooManyNames
	}
	var head [8]byte
	copy(head[:], member)
	n.names = append(n.names, name{binary.LittleEndian.Uint64(head[:]), len(member), member, child})
	return nil
}

// at returns the node at a path of members, adding what is missing; nil where an object has too many members for that.
func (n *node) at(path ...string) *node {
	for _, m := range path {
		child := n.member(m)
		if child == nil {
			child = newNode()
			if n.add(m, child) != nil {
				return nil
			}
		}
		n = child
	}
	return n
}

// member returns the node of a member, or nil.
func (n *node) member(text string) *node {
	for i := range n.names {
		if n.names[i].text == text {
			return n.names[i].node
		}
	}
	return nil
}

// element returns the node of an element, or nil.
func (n *node) element(index int) *node {
	for i := range n.elems {
		if n.elems[i].index == index {
			return n.elems[i].node
		}
	}
	return n.every
}
