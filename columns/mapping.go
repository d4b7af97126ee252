// Package columns reads Parquet files that others wrote: a row becomes a record. Either a column holds the record itself, or
// columns become the members of a JSON record, nested as the source's paths are, so that rows are decoded as a stream of
// JSON would be. Folders named column=value are columns too.
package columns

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/weftdata/weft/jobspec"
)

// Mapping says which columns a source needs and what they are in its records. It is safe for concurrent use.
type Mapping struct {
	source *jobspec.Source
	number uint16
	paths  []path // in order; none lies within another
	// The columns of the whole record and of its place; empty: none.
	value, partition, offset string
	zone                     *time.Location
}

// path is a member of the records, and the column that fills it.
type path struct {
	names    []string // of the members that lead to it
	column   []string
	explicit bool // the spec names the column
	time     bool // the event time
}

// New returns the mapping of a source of a spec. A spec that says nothing of Parquet maps every path to the column of its name.
func New(spec *jobspec.Spec, source int) (*Mapping, error) {
	s := &spec.Sources[source]
	m := &Mapping{source: s, number: uint16(source), zone: time.UTC}
	var err error
	if s.Time.Zone != "" {
		if m.zone, err = time.LoadLocation(s.Time.Zone); err != nil {
			return nil, fmt.Errorf("source %s: %w", s.Name, err)
		}
	}
	named := map[string]string{}
	if p := s.Parquet; p != nil {
		m.value, m.partition, m.offset = p.Value, p.Partition, p.Offset
		named = p.Columns
	}
	if m.value != "" {
		return m, nil
	}
	if s.Time.Field == "" {
		return nil, fmt.Errorf("source %s: rows need a time: name its column in time.field", s.Name)
	}
	wanted := map[string]bool{}
	for _, text := range s.Paths() {
		wanted[text] = true
	}
	for text := range named {
		if !wanted[text] {
			return nil, fmt.Errorf("source %s: parquet.columns names %q, which the source has no use for; its paths are %s",
				s.Name, text, strings.Join(slices.Sorted(maps.Keys(wanted)), ", "))
		}
	}
	for _, text := range slices.Sorted(maps.Keys(wanted)) {
		p := path{names: members(text), time: text == s.Time.Field || text == s.Each} // times of `each` are within its elements
		p.column = p.names
		if column, ok := named[text]; ok {
			p.column, p.explicit = split(column), true
		}
		m.paths = append(m.paths, p)
	}
	m.paths, err = outer(m.paths)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", s.Name, err)
	}
	return m, nil
}

// members returns the names that lead to a path, up to its first array.
func members(path string) (names []string) {
	path = strings.TrimPrefix(strings.TrimPrefix(path, "$."), "$")
	for _, name := range split(path) {
		name, _, array := strings.Cut(name, "[")
		if number := name != "" && strings.Trim(name, "0123456789") == ""; number && len(names) > 0 {
			return names
		}
		if name != "" {
			names = append(names, name)
		}
		if array {
			return names
		}
	}
	return names
}

// split splits a dotted name; what is within quotes has no dots.
func split(text string) (names []string) {
	for len(text) > 0 {
		if text[0] == '"' {
			name, rest, _ := strings.Cut(text[1:], `"`)
			names = append(names, name)
			text = strings.TrimPrefix(rest, ".")
			continue
		}
		name, rest, _ := strings.Cut(text, ".")
		names = append(names, name)
		text = rest
	}
	return names
}

// outer joins paths into one array, and leaves out those within others, which come with them.
func outer(paths []path) (list []path, err error) {
	slices.SortStableFunc(paths, func(a, b path) int { return slices.Compare(a.names, b.names) })
	for _, p := range paths {
		n := len(list)
		if n == 0 || len(p.names) < len(list[n-1].names) || !slices.Equal(p.names[:len(list[n-1].names)], list[n-1].names) {
			list = append(list, p)
			continue
		}
		last := &list[n-1]
		last.time = last.time || p.time
		switch same := len(p.names) == len(last.names); {
		case same && (!p.explicit || !last.explicit || slices.Equal(p.column, last.column)):
			if p.explicit {
				last.column, last.explicit = p.column, true
			}
		case p.explicit || last.explicit:
			return nil, fmt.Errorf("parquet.columns fills %s, and other paths into it: name one column for all", strings.Join(last.names, "."))
		}
	}
	return list, nil
}

// Whole tells that a column holds whole records, in the source's own format. Otherwise records are JSON.
func (m *Mapping) Whole() bool { return m.value != "" }

// folderColumn is a column that is in the name of a folder.
type folderColumn struct{ name, value string }

// nullFolder is what Hive calls a folder of rows without a value.
const nullFolder = "__HIVE_DEFAULT_PARTITION__"

// foldersOf returns the columns in a path such as dt=2026-03-01/game=chess/part-0.parquet.
func foldersOf(file string) (list []folderColumn, err error) {
	parts := strings.Split(file, "/")
	for _, part := range parts[:len(parts)-1] {
		name, value, ok := strings.Cut(part, "=")
		if !ok || name == "" {
			continue
		}
		value, err := url.PathUnescape(value)
		if err != nil {
			return nil, fmt.Errorf("folder %q: %w", part, err)
		}
		if value != nullFolder {
			list = append(list, folderColumn{name, value})
		}
	}
	return list, nil
}

// Wanted tells whether a file below a folder is data: writers keep others beside it, whose names, or whose folders' names, start
// with a dot or an underscore.
func Wanted(file string) bool {
	for part := range strings.SplitSeq(file, "/") {
		if part == "" || part[0] == '.' || part[0] == '_' && !strings.Contains(part, "=") {
			return false
		}
	}
	return strings.HasSuffix(file, ".parquet") || strings.HasSuffix(file, ".parq") || strings.HasSuffix(file, ".pq")
}

// Position returns the identity of a file's rows where the file does not tell their places in a log: a partition that no log
// has, and the offset of the first row. It depends on the file's name below its folder alone, so that files that are added
// change nothing.
func Position(file string) (partition int32, first int64) {
	sum := sha256.Sum256([]byte(file))
	return int32(binary.BigEndian.Uint32(sum[:]) | 1<<31), int64(binary.BigEndian.Uint32(sum[4:])>>1) << rowBits
}

// rowBits bounds the rows of one file.
const rowBits = 32

// Seen collects which columns files have.
type Seen struct {
	found map[string]bool
	have  map[string]bool // top-level columns, for hints
}

// Check reports columns that the spec names and no file had.
func (s *Seen) Check(m *Mapping) error {
	var errs []error
	missing := func(column string) {
		if column == "" || s.found[column] {
			return
		}
		names := slices.Sorted(maps.Keys(s.have))
		hint := ""
		if near := jobspec.Nearest(column, names); near != "" {
			hint = fmt.Sprintf("; did you mean %s?", near)
		}
		errs = append(errs, fmt.Errorf("source %s: parquet names the column %q, which no file has%s (there are %s)", m.source.Name, column, hint, strings.Join(names, ", ")))
	}
	for _, p := range m.paths {
		if p.explicit {
			missing(strings.Join(p.column, "."))
		}
	}
	return errors.Join(errs...)
}

func (s *Seen) note(name string) {
	if s.found == nil {
		s.found = map[string]bool{}
	}
	s.found[name] = true
}
