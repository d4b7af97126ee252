package pqfile

import (
	"errors"
	"fmt"
	"io"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/deprecated"
)

// Cursor walks the entries of one column of a row group, page by page, without making a parquet.Value of each. Its calls must
// be within Guard. The zero value but for Max has no entries.
type Cursor struct {
	Max byte // definition level of a value that is there

	pages parquet.Pages
	page  parquet.Page

	defs, reps []byte // levels of the page; empty where the column has none
	entries    int    // of the page, nulls included
	entry      int    // the next one
	value      int    // its place among the values that are no nulls

	longs   []int64 // values of the page or of its dictionary, whichever the column's type is
	ints    []int32
	floats  []float32
	doubles []float64
	int96s  []deprecated.Int96
	data    []byte // also of booleans, a bit each, and of values of a fixed size
	size    int    // of these
	ends    []uint32
	indexes []int32 // places in the dictionary; nil without one
}

// ErrEarly says that columns of a row group have different lengths.
var ErrEarly = errors.New("the column ends before the row group does")

// Start begins with the first of some pages, which Close closes.
func (c *Cursor) Start(pages parquet.Pages) { *c = Cursor{Max: c.Max, pages: pages} }

// Next moves to the next entry, which may be on the next page. It tells whether there is one.
func (c *Cursor) Next() (bool, error) {
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

// Need moves to the next entry, which must be there.
func (c *Cursor) Need() error {
	if c.entry < c.entries {
		return nil
	}
	more, err := c.Next()
	if err == nil && !more {
		err = ErrEarly
	}
	return err
}

func (c *Cursor) load(page parquet.Page) error {
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
			return ErrEarly
		}
		values = dict.Page().Data()
		n = words
	}
	c.longs, c.ints, c.floats, c.doubles, c.int96s, c.data, c.ends = nil, nil, nil, nil, nil, nil, nil
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
	case parquet.FixedLenByteArray:
		if c.data, c.size = values.FixedLenByteArray(); c.size > 0 {
			have = len(c.data) / c.size
		}
	case parquet.Boolean:
		c.data = values.Boolean()
		have = 8 * len(c.data)
	case parquet.Float:
		c.floats = values.Float()
		have = len(c.floats)
	case parquet.Double:
		c.doubles = values.Double()
		have = len(c.doubles)
	case parquet.Int96:
		c.int96s = values.Int96()
		have = len(c.int96s)
	}
	if have < n {
		return ErrEarly
	}
	return nil
}

// Level returns the definition level of the entry that Need found.
func (c *Cursor) Level() byte {
	if len(c.defs) == 0 {
		return c.Max
	}
	return c.defs[c.entry]
}

// Repetition returns the repetition level of the entry: 0 begins a row.
func (c *Cursor) Repetition() byte {
	if len(c.reps) == 0 {
		return 0
	}
	return c.reps[c.entry]
}

// Take steps over the entry and returns the place of its value; -1 where it is null. A value is valid until the page of the
// next entry is loaded.
func (c *Cursor) Take() int {
	if len(c.defs) > 0 && c.defs[c.entry] != c.Max {
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

// Long returns the integer at a place, of a column of 64 or 32 bits.
func (c *Cursor) Long(at int) int64 {
	if c.longs != nil {
		return c.longs[at]
	}
	return int64(c.ints[at])
}

// Bytes returns the bytes at a place.
func (c *Cursor) Bytes(at int) []byte { return c.data[c.ends[at]:c.ends[at+1]] }

// Fixed returns the bytes at a place of a column whose values all have one size.
func (c *Cursor) Fixed(at int) []byte { return c.data[at*c.size : (at+1)*c.size] }

// Bool returns the boolean at a place.
func (c *Cursor) Bool(at int) bool { return c.data[at/8]>>(at%8)&1 != 0 }

// Float returns the number at a place.
func (c *Cursor) Float(at int) float32 { return c.floats[at] }

// Double returns the number at a place.
func (c *Cursor) Double(at int) float64 { return c.doubles[at] }

// Int96 returns the words at a place, the lowest first.
func (c *Cursor) Int96(at int) [3]uint32 { return c.int96s[at] }

// Close gives pages back.
func (c *Cursor) Close() error {
	if c.page != nil {
		parquet.Release(c.page)
	}
	pages := c.pages
	*c = Cursor{Max: c.Max}
	if pages == nil {
		return nil
	}
	return pages.Close()
}
