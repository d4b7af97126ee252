// Package registry keeps the versions of jobs in an object store. A version is a spec with the files that it names; it has a
// number, a checksum, an author and a reason, and it never changes.
//
//	registry/<job>/<version, 8 digits>.json   {"checksum": …, "version": {…}}
//	registry/assets/<sha256>                  a file that a spec names, such as a schema
//	registry/engines/<sha256>                 the binary that versions run on
//
// Versions of a job are numbered 1, 2, … without gaps: who adds one puts the next number if it is absent, so of several
// at once each gets a number of its own.
package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/objstore"
)

const (
	root       = "registry/"
	assetsRoot = root + "assets/"
	digits     = 8
	suffix     = ".json"
	layout     = 1 // of the stored form

	// attemptsMax bounds how often a number may be taken by another adder before this one had it.
	attemptsMax = 50
	// requestsBack is how many versions are looked at for the request of a retry; between a request and its retry no more
	// are added.
	requestsBack = 32
	// readers is how many versions are read at once for a list.
	readers = 8
)

// Objects is what the registry needs of an object store, as objstore.Store has it.
type Objects interface {
	Get(ctx context.Context, key string) ([]byte, objstore.Info, error)
	PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) (objstore.Info, error)
	List(ctx context.Context, prefix, after string) iter.Seq2[objstore.Info, error]
}

// Registry reads and adds versions. It is safe for concurrent use.
type Registry struct {
	objects Objects
	// Now stamps new versions; set it before the first use. Default time.Now.
	Now func() time.Time
}

// New returns the registry in an object store.
func New(objects Objects) *Registry { return &Registry{objects: objects, Now: time.Now} }

// AssetRef names a file by its content.
type AssetRef struct {
	SHA256 string `json:"sha256"` // 64 hexadecimal digits
	Bytes  int64  `json:"bytes"`
}

// Version is one version of a job.
type Version struct {
	Job     string              `json:"job"`
	Number  int                 `json:"version"` // from 1
	Spec    string              `json:"spec"`    // the YAML as given
	Assets  map[string]AssetRef `json:"assets"`  // by name in the spec
	Message string              `json:"message"`
	Author  string              `json:"author"`
	Created time.Time           `json:"created"`
	Request string              `json:"request,omitempty"` // see NewVersion
	Repeats int                 `json:"repeats,omitempty"` // number of the version that it is the same as; see Repeat
	Engine  *Engine             `json:"engine,omitempty"`  // that its processes run on; nil: whatever their agent is

	Checksum string `json:"-"` // SHA-256 of the stored version, in hexadecimal
	Existed  bool   `json:"-"` // of what Add returned: it was there before
}

// Parse returns the spec.
func (v *Version) Parse() (*jobspec.Spec, error) {
	spec, err := jobspec.Parse([]byte(v.Spec))
	if err != nil {
		return nil, userError(fmt.Sprintf("parse version %d of %s", v.Number, v.Job), err, "an engine of its time reads it")
	}
	return spec, nil
}

// stored is an object of a version. The checksum is that of the version's bytes as they stand.
type stored struct {
	Layout   int             `json:"format"`
	Checksum string          `json:"checksum"`
	Version  json.RawMessage `json:"version"`
}

func jobRoot(job string) string { return root + job + "/" }

func keyOf(job string, number int) string {
	return fmt.Sprintf("%s%0*d%s", jobRoot(job), digits, number, suffix)
}

// numberOf reads what keyOf wrote; 0 for another key.
func numberOf(job, key string) int {
	text, ok := strings.CutPrefix(key, jobRoot(job))
	text, ends := strings.CutSuffix(text, suffix)
	n, err := strconv.Atoi(text)
	if !ok || !ends || err != nil || n <= 0 || keyOf(job, n) != key {
		return 0
	}
	return n
}

// Get returns a version of a job: ErrNotFound where there is none, ErrDamaged where it is not what was added.
func (r *Registry) Get(ctx context.Context, job string, number int) (Version, error) {
	op := fmt.Sprintf("read version %d of %s", number, job)
	if err := checkJob(op, job); err != nil {
		return Version{}, err
	}
	data, _, err := r.objects.Get(ctx, keyOf(job, number))
	if errors.Is(err, objstore.ErrNotFound) {
		return Version{}, userError(op, ErrNotFound, "")
	}
	if err != nil {
		return Version{}, fmt.Errorf("%s: %w", op, err)
	}
	v, err := decode(data)
	if err == nil && (v.Job != job || v.Number != number) {
		err = fmt.Errorf("it is version %d of %s", v.Number, v.Job)
	}
	if err != nil {
		return Version{}, damaged(op, keyOf(job, number), err)
	}
	return v, nil
}

func decode(data []byte) (v Version, err error) {
	var s stored
	if err := json.Unmarshal(data, &s); err != nil {
		return v, err
	}
	if s.Layout != layout {
		return v, fmt.Errorf("it has format %d; this engine reads %d", s.Layout, layout)
	}
	if sum := hexSum(s.Version); sum != s.Checksum {
		return v, fmt.Errorf("its checksum is %s; what is stored has %.64q", sum, s.Checksum)
	}
	if err := json.Unmarshal(s.Version, &v); err != nil {
		return v, err
	}
	v.Checksum = s.Checksum
	return v, nil
}

// encode returns the object of a version and sets its checksum.
func encode(v *Version) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	v.Checksum = hexSum(body)
	return fmt.Appendf(nil, `{"format":%d,"checksum":"%s","version":%s}`+"\n", layout, v.Checksum, body), nil
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// numbers returns the numbers of a job's versions in order.
func (r *Registry) numbers(ctx context.Context, job string) (list []int, err error) {
	for info, err := range r.objects.List(ctx, jobRoot(job), "") {
		if err != nil {
			return nil, err
		}
		if n := numberOf(job, info.Key); n > 0 {
			list = append(list, n)
		}
	}
	return list, nil
}

// List returns all versions of a job in order; none where there is no such job.
func (r *Registry) List(ctx context.Context, job string) ([]Version, error) {
	op := "list versions of " + job
	if err := checkJob(op, job); err != nil {
		return nil, err
	}
	numbers, err := r.numbers(ctx, job)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	list, errs := make([]Version, len(numbers)), make([]error, len(numbers))
	var work sync.WaitGroup
	for worker := range min(readers, len(numbers)) {
		work.Go(func() {
			for i := worker; i < len(numbers); i += readers {
				list[i], errs[i] = r.Get(ctx, job, numbers[i])
			}
		})
	}
	work.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return list, nil
}

// Jobs returns the names of all jobs, sorted.
func (r *Registry) Jobs(ctx context.Context) ([]string, error) {
	var jobs []string
	for after := root; ; {
		job, err := r.firstJob(ctx, after)
		if err != nil {
			return nil, fmt.Errorf("list jobs: %w", err)
		}
		if job == "" {
			slices.Sort(jobs) // the slash put them in another order
			return jobs, nil
		}
		// A job named assets or engines shares its folder with these; only a job has a version 1.
		found := job+"/" != strings.TrimPrefix(assetsRoot, root) && job+"/" != strings.TrimPrefix(enginesRoot, root)
		for info, err := range r.objects.List(ctx, keyOf(job, 1), "") {
			if err != nil {
				return nil, fmt.Errorf("list jobs: %w", err)
			}
			found = found || info.Key == keyOf(job, 1)
		}
		if found {
			jobs = append(jobs, job)
		}
		after = root + job + "0" // the character after the slash: behind all of the job's keys
	}
}

// firstJob returns the first segment behind a place; empty where there is none.
func (r *Registry) firstJob(ctx context.Context, after string) (string, error) {
	for info, err := range r.objects.List(ctx, root, after) {
		if err != nil {
			return "", err
		}
		if job, _, ok := strings.Cut(strings.TrimPrefix(info.Key, root), "/"); ok {
			return job, nil
		}
	}
	return "", nil
}

// Asset returns a file by its hash, which is checked.
func (r *Registry) Asset(ctx context.Context, sha256 string) ([]byte, error) {
	op := "read asset " + sha256
	if b, err := hex.DecodeString(sha256); err != nil || len(b) != 32 || strings.ToLower(sha256) != sha256 {
		return nil, userError(fmt.Sprintf("read asset %.80q", sha256), errors.New("that is no SHA-256"), "64 lower case hexadecimal digits")
	}
	return r.hashed(ctx, op, assetsRoot+sha256, sha256)
}

// Assets returns what reads a version's files by the names in its spec, as decoders want it.
func (r *Registry) Assets(ctx context.Context, v Version) func(name string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		ref, ok := v.Assets[name]
		if !ok {
			return nil, userError(fmt.Sprintf("read %s of version %d of %s", name, v.Number, v.Job), ErrNotFound, "it was added without that file")
		}
		return r.Asset(ctx, ref.SHA256)
	}
}

// NewVersion is what Add is given.
type NewVersion struct {
	Job     string            // must be the spec's; empty: the spec's
	Spec    []byte            // YAML
	Assets  map[string][]byte // the files that the spec names; see AssetNames
	Message string            // why; may be empty
	Author  string            // who; may be empty
	// Engine is the binary that the version is to run on, which PutEngine has kept; nil: any. The same spec on another engine is
	// another version, unless either has none.
	Engine *Engine
	// RequestID makes a retry safe: a request that was done returns the version that it made. Empty: only a repeat of the
	// latest version is noticed.
	RequestID string
}

// Add adds a version with the next number. Where the latest has the same spec and files, or where the request was done
// before, it returns that one, with Existed set. A spec that is not valid fails with jobspec.Problems. The expressions of a
// spec are not compiled here.
func (r *Registry) Add(ctx context.Context, n NewVersion) (Version, error) {
	v, err := check(n)
	if err != nil {
		return Version{}, err
	}
	op := "add a version of " + v.Job
	return r.number(ctx, op, v, n.Assets)
}

// Repeat adds a version with the spec and the files of another, also where that is the latest: it is to be computed anew. Of n
// it takes the message, the author and the request, which must be there, and the engine where the other has none.
func (r *Registry) Repeat(ctx context.Context, of Version, n NewVersion) (Version, error) {
	op := fmt.Sprintf("add version %d of %s again", of.Number, of.Job)
	if n.RequestID == "" {
		return Version{}, userError(op, errors.New("the request has no id"), "give it one, so that a retry adds no other version")
	}
	if err := errors.Join(checkTexts(n)...); err != nil {
		return Version{}, userError(op, err, "")
	}
	engine := of.Engine
	if engine == nil {
		engine = n.Engine
	}
	return r.number(ctx, op, Version{Job: of.Job, Spec: of.Spec, Assets: of.Assets, Message: n.Message, Author: n.Author, Request: n.RequestID,
		Repeats: of.Number, Engine: engine}, nil)
}

// number adds a version with the next number, unless it finds it.
func (r *Registry) number(ctx context.Context, op string, v Version, assets map[string][]byte) (Version, error) {
	nonce := rand.Text() // of this call: its own put is known again after a lost reply
	for range attemptsMax {
		numbers, err := r.numbers(ctx, v.Job)
		if err != nil {
			return Version{}, fmt.Errorf("%s: %w", op, err)
		}
		found, err := r.existing(ctx, numbers, &v)
		if err != nil || found != nil {
			if found != nil {
				found.Existed = true
				return *found, nil
			}
			return Version{}, fmt.Errorf("%s: %w", op, err)
		}
		v.Number = 1
		if len(numbers) > 0 {
			v.Number = numbers[len(numbers)-1] + 1
		}
		switch err := r.put(ctx, &v, assets, nonce); {
		case err == nil:
			return v, nil
		case !errors.Is(err, objstore.ErrPrecondition): // another adder has the number
			return Version{}, fmt.Errorf("%s: %w", op, err)
		}
	}
	return Version{}, &Error{Op: op, Class: External, Err: fmt.Errorf("others took the number %d times", attemptsMax), Hint: "try again"}
}

// existing finds the version that a request made, or the latest if it is the same as the new one.
func (r *Registry) existing(ctx context.Context, numbers []int, v *Version) (*Version, error) {
	for i, number := range slices.Backward(numbers) {
		back := len(numbers) - 1 - i
		if back > 0 && v.Request == "" || back == requestsBack {
			break
		}
		old, err := r.Get(ctx, v.Job, number)
		if errors.Is(err, ErrDamaged) {
			continue // a damaged version must not keep the next one from being added
		}
		if err != nil {
			return nil, err
		}
		same := old.Spec == v.Spec && sameAssets(old.Assets, v.Assets) && (v.Repeats == 0 || old.Repeats == v.Repeats) &&
			(old.Engine == nil || v.Engine == nil || *old.Engine == *v.Engine)
		if v.Request != "" && old.Request == v.Request {
			if !same {
				return nil, userError("", fmt.Errorf("request %q made version %d, which is another one", v.Request, number),
					"give each request an id of its own")
			}
			return &old, nil
		}
		if back == 0 && same && v.Repeats == 0 {
			return &old, nil
		}
	}
	return nil, nil
}

func sameAssets(a, b map[string]AssetRef) bool {
	if len(a) != len(b) {
		return false
	}
	for name, ref := range a {
		if b[name] != ref {
			return false
		}
	}
	return true
}

// put writes the files, then the version that names them.
func (r *Registry) put(ctx context.Context, v *Version, assets map[string][]byte, nonce string) error {
	for name, ref := range v.Assets {
		if v.Repeats > 0 { // the other version's are there
			break
		}
		_, err := r.objects.PutIfAbsent(ctx, assetsRoot+ref.SHA256, assets[name], ref.SHA256)
		if err != nil && !errors.Is(err, objstore.ErrPrecondition) { // there already: the name says what it holds
			return fmt.Errorf("put %s: %w", name, err)
		}
	}
	v.Created = r.Now().UTC()
	data, err := encode(v)
	if err != nil {
		return err
	}
	_, err = r.objects.PutIfAbsent(ctx, keyOf(v.Job, v.Number), data, nonce)
	if err != nil {
		return err
	}
	// A put that took place in an earlier try of this call is the same but for its time.
	got, err := r.Get(ctx, v.Job, v.Number)
	if err != nil {
		return err
	}
	*v = got
	return nil
}
