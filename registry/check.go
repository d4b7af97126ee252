package registry

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/weftdata/weft/jobspec"
)

// Limits of what a version holds. Spec and files are read whole wherever a version runs.
const (
	AssetBytesMax   = 16 << 20
	AssetsBytesMax  = 64 << 20 // of all files together
	AssetNameMax    = 255      // bytes
	MessageBytesMax = 4 << 10
	AuthorBytesMax  = 256
	RequestBytesMax = 256
)

// What an Error can be, for errors.Is.
var (
	ErrNotFound = errors.New("there is none in the registry")
	ErrDamaged  = errors.New("it is damaged in the object store")
)

// Class says whose an error is.
type Class string

// The classes of errors.
const (
	User     Class = "user"     // a wrong request: a retry does not help
	External Class = "external" // the same call may succeed later
	Internal Class = "internal" // what is stored is not what was written
)

// Error is an error of this package. Errors of the object store come as they are.
type Error struct {
	Op    string // what was being done
	Class Class
	Hint  string // what to do about it; may be empty
	Err   error
}

// Error says what was being done, what went wrong and what to do about it.
func (e *Error) Error() string {
	text := e.Err.Error()
	if e.Op != "" {
		text = e.Op + ": " + text
	}
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// Unwrap returns what went wrong.
func (e *Error) Unwrap() error { return e.Err }

// Retryable tells whether the same call may succeed later.
func (e *Error) Retryable() bool { return e.Class == External }

func userError(op string, err error, hint string) error {
	return &Error{Op: op, Class: User, Hint: hint, Err: err}
}

func damaged(op, key string, err error) error {
	return &Error{Op: op, Class: Internal, Hint: "restore the object " + key + " from a backup; versions never change", Err: fmt.Errorf("%w: %w", ErrDamaged, err)}
}

func checkJob(op, job string) error {
	if job == "" || len(job) > 63 || strings.Trim(job, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || job[0] == '-' {
		return userError(op, fmt.Errorf("%.80q is no name of a job", job), "lower-case letters, digits and '-', at most 63")
	}
	return nil
}

// AssetNames returns the files that a spec names, sorted: what Add must be given with it.
func AssetNames(spec *jobspec.Spec) (names []string) {
	for _, s := range spec.Sources {
		if name := assetOf(&s.Format); name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// assetOf returns the file that a format names. An avro schema may stand in the spec itself.
func assetOf(f *jobspec.Format) string {
	name := strings.TrimSpace(f.Schema)
	switch {
	case f.Name == "protobuf":
		return f.Schema
	case f.Name != "avro" || name == "" || strings.ContainsRune(`{["`, rune(name[0])):
		return ""
	}
	return name
}

// check makes a version without a number of what Add was given.
func check(n NewVersion) (v Version, err error) {
	spec, err := jobspec.Parse(n.Spec)
	if err != nil {
		return v, err
	}
	op := "add a version of " + spec.Job
	if n.Job != "" && n.Job != spec.Job {
		return v, userError("add a version of "+n.Job, fmt.Errorf("the spec is of the job %s", spec.Job), "give the spec of that job")
	}
	v = Version{Job: spec.Job, Spec: string(n.Spec), Assets: map[string]AssetRef{}, Message: n.Message, Author: n.Author, Request: n.RequestID, Engine: n.Engine}
	errs := checkTexts(n)
	names := AssetNames(spec)
	for _, name := range names {
		if _, ok := n.Assets[name]; !ok {
			errs = append(errs, fmt.Errorf("the spec names the file %s, which is not given", name))
		}
	}
	total := 0
	for name, data := range n.Assets {
		total += len(data)
		switch {
		case !slices.Contains(names, name):
			errs = append(errs, fmt.Errorf("the spec names no file %.80q", name))
		case len(name) > AssetNameMax || path.IsAbs(name) || !utf8.ValidString(name) || slices.Contains(strings.Split(name, "/"), ".."):
			errs = append(errs, fmt.Errorf("file %.80q: expected a name below the spec's folder, of at most %d bytes", name, AssetNameMax))
		case len(data) > AssetBytesMax:
			errs = append(errs, fmt.Errorf("file %s has %d bytes; at most %d are allowed", name, len(data), AssetBytesMax))
		default:
			v.Assets[name] = AssetRef{hexSum(data), int64(len(data))}
		}
	}
	if total > AssetsBytesMax {
		errs = append(errs, fmt.Errorf("the files have %d bytes together; at most %d are allowed", total, AssetsBytesMax))
	}
	if err := errors.Join(errs...); err != nil {
		return v, userError(op, err, "")
	}
	return v, nil
}

func checkTexts(n NewVersion) []error {
	return []error{
		checkText("message", n.Message, MessageBytesMax), checkText("author", n.Author, AuthorBytesMax),
		checkText("request id", n.RequestID, RequestBytesMax),
	}
}

func checkText(what, text string, most int) error {
	if len(text) > most || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return fmt.Errorf("%s: expected at most %d bytes of UTF-8", what, most)
	}
	return nil
}
