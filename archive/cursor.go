package archive

import (
	"errors"
	"fmt"
	"io"

	"github.com/parquet-go/parquet-go"
)

// cursor walks the values of one column chunk, page by page, without making a parquet.Value of each.
type cursor struct {
	pages parquet.Pages
	page  parquet.Page

	maxDef     byte
	defs, reps []byte // levels of the page; empty where the column has none
	entries    int    // of the page, nulls included
	entry      int    // the next one
	value      int    // its place among the values that are no nulls

	longs   []int64 // values of the page or of its dictionary, whichever the column's type is
	ints    []int32
	data    []byte
	ends    []uint32
	indexes []int32 // places in the dictionary; nil without one
}

var errEarly = errors.New("the column ends before the row group does")

// next moves to the next entry, which may be on the next page. It tells whether there is one.
func (c *cursor) next() (bool, error) {
	for c.entry == c.entries {
		if c.page != nil {
			parquet.Release(c.page)
			c.page = nil
		}
		page, err := c.pages.ReadPage()
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if err := c.load(page); err != nil {
			return false, err
		}
	}
	return true, nil
}

// need moves to the next entry, which must be there.
func (c *cursor) need() error {
	more, err := c.next()
	if err == nil && !more {
		err = errEarly
	}
	return err
}

func (c *cursor) load(page parquet.Page) error {
	c.page = page
	c.defs, c.reps = page.DefinitionLevels(), page.RepetitionLevels()
	c.entries, c.entry, c.value = int(page.NumValues()), 0, 0
	c.indexes = nil
	values := page.Data()
	n := c.entries - int(page.NumNulls())
	if dict := page.Dictionary(); dict != nil {
		c.indexes = values.Int32()
		words := dict.Len()
		for _, i := range c.indexes {
			if i < 0 || int(i) >= words {
				return fmt.Errorf("a value has number %d in a dictionary of %d", i, words)
			}
		}
		if len(c.indexes) < n {
			return errEarly
		}
		values = dict.Page().Data()
		n = words
	}
	c.longs, c.ints, c.data, c.ends = nil, nil, nil, nil
	have := 0
	switch page.Type().Kind() {
	case parquet.Int64:
		c.longs = values.Int64()
		have = len(c.longs)
	case parquet.Int32:
		c.ints = values.Int32()
		have = len(c.ints)
	case parquet.ByteArray:
		c.data, c.ends = values.ByteArray()
		have = len(c.ends) - 1
	}
	if have < n {
		return errEarly
	}
	return nil
}

// take steps over the entry and returns the place of its value; -1 where it is null.
func (c *cursor) take() int {
	if len(c.defs) > 0 && c.defs[c.entry] != c.maxDef {
		c.entry++
		return -1
	}
	c.entry++
	at := c.value
	c.value++
	if c.indexes != nil {
		at = int(c.indexes[at])
	}
	return at
}

// long returns the integer at a place.
func (c *cursor) long(at int) int64 {
	if c.longs != nil {
		return c.longs[at]
	}
	return int64(c.ints[at])
}

// bytes returns the bytes at a place; they are valid while the page is.
func (c *cursor) bytes(at int) []byte { return c.data[c.ends[at]:c.ends[at+1]] }

func (c *cursor) close() error {
	if c.page != nil {
		parquet.Release(c.page)
		c.page = nil
	}
	if c.pages == nil {
		return nil
	}
	return c.pages.Close()
}
