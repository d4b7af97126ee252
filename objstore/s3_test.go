package objstore_test

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/objstore/objtest"
)

// fakeS3 is as much of an S3 store as the client asks for, in memory. It checks no signatures.
type fakeS3 struct {
	mu      sync.Mutex
	objects map[string]fakeObject
	ignores bool                                              // the conditions of writes
	fault   func(w http.ResponseWriter, r *http.Request) bool // answers in place of the store where it returns true
	lose    func(r *http.Request) bool                        // does what was asked and breaks the connection
}

type fakeObject struct {
	data  []byte
	etag  string
	nonce string
	at    time.Time
}

func newFakeS3(t *testing.T) (*fakeS3, *objstore.S3) {
	t.Helper()
	f := &fakeS3{objects: map[string]fakeObject{}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	s, err := objstore.Open(objstore.Config{Endpoint: server.URL, Bucket: "weft", AccessKey: "key", SecretKey: "the-secret", Prefix: "some/prefix"})
	if err != nil {
		t.Fatal(err)
	}
	return f, s
}

func (f *fakeS3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault != nil && f.fault(w, r) {
		return
	}
	lost := f.lose != nil && f.lose(r)
	to := w
	if lost {
		to = httptest.NewRecorder()
	}
	key := strings.TrimPrefix(r.URL.Path, "/weft/")
	switch {
	case r.URL.Query().Has("list-type"):
		f.list(to, r)
	case r.Method == http.MethodPut:
		f.put(to, r, key)
	case r.Method == http.MethodDelete:
		delete(f.objects, key)
		to.WriteHeader(http.StatusNoContent)
	default:
		f.get(to, r, key)
	}
	if lost {
		panic(http.ErrAbortHandler)
	}
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>message of %s</Message></Error>", code, code)
}

func (f *fakeS3) put(w http.ResponseWriter, r *http.Request, key string) {
	data, err := plainBody(r)
	if err != nil {
		fail(w, http.StatusBadRequest, "IncompleteBody")
		return
	}
	now, found := f.objects[key]
	match := strings.Trim(r.Header.Get("If-Match"), `"`)
	if !f.ignores {
		switch {
		case match != "" && !found:
			fail(w, http.StatusNotFound, "NoSuchKey") // as AWS does
			return
		case r.Header.Get("If-None-Match") == "*" && found, match != "" && match != now.etag:
			fail(w, http.StatusPreconditionFailed, "PreconditionFailed")
			return
		}
	}
	sum := md5.Sum(data)
	o := fakeObject{data, hex.EncodeToString(sum[:]), r.Header.Get("X-Amz-Meta-Weft-Nonce"), time.Now().UTC().Truncate(time.Second)}
	f.objects[key] = o
	w.Header().Set("ETag", `"`+o.etag+`"`)
}

// plainBody takes the signatures of chunks out of a body.
func plainBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil || !strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
		return body, err
	}
	var out []byte
	for {
		head, rest, found := strings.Cut(string(body), "\r\n")
		size, _, _ := strings.Cut(head, ";")
		var n int
		if _, err := fmt.Sscanf(size, "%x", &n); err != nil || !found || n > len(rest) {
			return nil, io.ErrUnexpectedEOF
		}
		if n == 0 {
			return out, nil
		}
		out = append(out, rest[:n]...)
		body = []byte(strings.TrimPrefix(rest[n:], "\r\n"))
	}
}

func (f *fakeS3) get(w http.ResponseWriter, r *http.Request, key string) {
	o, found := f.objects[key]
	if !found {
		fail(w, http.StatusNotFound, "NoSuchKey")
		return
	}
	w.Header().Set("ETag", `"`+o.etag+`"`)
	if o.nonce != "" {
		w.Header().Set("X-Amz-Meta-Weft-Nonce", o.nonce)
	}
	http.ServeContent(w, r, "", o.at, strings.NewReader(string(o.data)))
}

func (f *fakeS3) list(w http.ResponseWriter, r *http.Request) {
	type contents struct {
		Key          string
		LastModified string
		ETag         string
		Size         int
	}
	var out struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		IsTruncated           bool
		NextContinuationToken string
		EncodingType          string
		Contents              []contents
	}
	q := r.URL.Query()
	after := max(q.Get("start-after"), q.Get("continuation-token"))
	var keys []string
	for k := range f.objects {
		if strings.HasPrefix(k, q.Get("prefix")) && k > after {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	if len(keys) > 1000 {
		keys, out.IsTruncated = keys[:1000], true
		out.NextContinuationToken = keys[999]
	}
	for _, k := range keys {
		o := f.objects[k]
		out.Contents = append(out.Contents, contents{k, o.at.Format(time.RFC3339), o.etag, len(o.data)})
	}
	text, err := xml.Marshal(out)
	if err != nil {
		panic(err)
	}
	w.Write(text)
}

func TestS3Client(t *testing.T) {
	f, s := newFakeS3(t)
	if err := objstore.Probe(t.Context(), s); err != nil {
		t.Error(err)
	}
	for key := range f.objects {
		t.Errorf("%s is left", key)
	}
	if _, err := s.Put(t.Context(), "a", strings.NewReader("0123456789"), 10); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.objects["some/prefix/a"]; !ok {
		t.Errorf("the prefix is not used: %v", f.objects)
	}
	for _, size := range []int64{9, 11} {
		if _, err := s.Put(t.Context(), "b", strings.NewReader("0123456789"), size); err == nil {
			t.Errorf("10 bytes announced as %d are accepted", size)
		}
	}
	var keys []string
	for info, err := range s.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	if !slices.Equal(keys, []string{"a"}) {
		t.Errorf("listed %q", keys)
	}
}

// A body that breaks off is read again.
func TestS3BrokenBodies(t *testing.T) {
	f, s := newFakeS3(t)
	if _, err := s.Put(t.Context(), "a", strings.NewReader("0123456789"), 10); err != nil {
		t.Fatal(err)
	}
	calls := 0
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if calls++; calls%2 == 0 {
			return false
		}
		w.Header().Set("Content-Length", "10")
		w.Header().Set("ETag", `"x"`)
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		fmt.Fprint(w, "0123")
		panic(http.ErrAbortHandler)
	}
	if data, _, err := s.Get(t.Context(), "a"); err != nil || string(data) != "0123456789" {
		t.Errorf("got %q, %v", data, err)
	}
	if data, err := s.GetRange(t.Context(), "a", 0, 10); err != nil || string(data) != "0123456789" {
		t.Errorf("got %q, %v", data, err)
	}
}

func TestProbeRefuses(t *testing.T) {
	f, s := newFakeS3(t)
	f.ignores = true
	err := objstore.Probe(t.Context(), s)
	var e *objstore.Error
	if !errors.Is(err, objstore.ErrUnsupported) || !errors.As(err, &e) || e.Retryable() || !strings.Contains(err.Error(), "both succeeded") || e.Hint == "" {
		t.Errorf("got %v", err)
	}
	// Some honour one of the two conditions only.
	f.ignores = false
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("If-Match")
		return false
	}
	if err := objstore.Probe(t.Context(), s); !errors.Is(err, objstore.ErrUnsupported) || !strings.Contains(err.Error(), "If-Match") {
		t.Errorf("got %v", err)
	}
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		fail(w, http.StatusNotImplemented, "NotImplemented")
		return true
	}
	if err := objstore.Probe(t.Context(), s); !errors.Is(err, objstore.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		fail(w, http.StatusForbidden, "SignatureDoesNotMatch")
		return true
	}
	if err := objstore.Probe(t.Context(), s); errors.Is(err, objstore.ErrUnsupported) || !errors.Is(err, objstore.ErrCredentials) {
		t.Errorf("wrong credentials are taken for a missing feature: %v", err)
	}
}

// The reply to a conditional write is lost: the repeated request is refused by the store, and that is a success.
func TestS3LostReplies(t *testing.T) {
	f, s := newFakeS3(t)
	lost := 0
	f.lose = func(r *http.Request) bool {
		lost++
		return r.Method == http.MethodPut && lost%2 == 1
	}
	first, err := s.PutIfAbsent(t.Context(), "m", []byte("one"), "nonce-1")
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.PutIfMatch(t.Context(), "m", []byte("two"), first.ETag, "nonce-2")
	if err != nil || second.ETag == first.ETag {
		t.Fatalf("%+v, %v", second, err)
	}
	if _, err := s.PutIfMatch(t.Context(), "m", []byte("three"), first.ETag, "nonce-3"); !errors.Is(err, objstore.ErrPrecondition) {
		t.Errorf("another writer's: %v", err)
	}
	if data, _, err := s.Get(t.Context(), "m"); err != nil || string(data) != "two" {
		t.Errorf("holds %q, %v", data, err)
	}
}

// Where the read-back fails too, nobody knows: the caller hears that, not that it was refused.
func TestS3UnknownOutcome(t *testing.T) {
	f, s := newFakeS3(t)
	if _, err := s.PutIfAbsent(t.Context(), "m", []byte("one"), "nonce-1"); err != nil {
		t.Fatal(err)
	}
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			fail(w, http.StatusServiceUnavailable, "SlowDown")
		}
		return r.Method == http.MethodHead
	}
	_, err := s.PutIfAbsent(t.Context(), "m", []byte("one"), "nonce-1")
	var e *objstore.Error
	if errors.Is(err, objstore.ErrPrecondition) || !errors.As(err, &e) || !e.Retryable() {
		t.Errorf("got %v", err)
	}
}

func TestS3Errors(t *testing.T) {
	f, s := newFakeS3(t)
	for _, c := range []struct {
		status int
		code   string
		is     error
		retry  bool
	}{
		{404, "NoSuchKey", objstore.ErrNotFound, false},
		{404, "NoSuchBucket", objstore.ErrNoBucket, false},
		{403, "AccessDenied", objstore.ErrCredentials, false},
		{403, "InvalidAccessKeyId", objstore.ErrCredentials, false},
		{403, "RequestTimeTooSkewed", objstore.ErrCredentials, false},
		{400, "AuthorizationHeaderMalformed", nil, false},
		{400, "EntityTooLarge", nil, false},
		{409, "OperationAborted", nil, true},
		{500, "InternalError", nil, true},
		{503, "SlowDown", nil, true},
	} {
		calls := 0
		f.fault = func(w http.ResponseWriter, r *http.Request) bool {
			if calls++; calls == 1 || !c.retry {
				fail(w, c.status, c.code)
				return true
			}
			return false
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := s.PutIfAbsent(ctx, c.code, []byte("x"), "n")
		cancel()
		var e *objstore.Error
		switch {
		case c.retry && err != nil:
			t.Errorf("%s once: %v", c.code, err)
		case !c.retry && (!errors.As(err, &e) || e.Retryable() || c.is != nil && c.is != objstore.ErrNotFound && !errors.Is(err, c.is)):
			t.Errorf("%s: %v", c.code, err)
		}
		f.fault = func(w http.ResponseWriter, r *http.Request) bool { fail(w, c.status, c.code); return true }
		_, _, err = s.Get(t.Context(), "a")
		if !errors.As(err, &e) || e.Retryable() != c.retry || c.is != nil && !errors.Is(err, c.is) || strings.Contains(err.Error(), "the-secret") {
			t.Errorf("get with %s: %v", c.code, err)
		}
	}
}

func TestS3Unreachable(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	s, err := objstore.Open(objstore.Config{Endpoint: server.URL, Bucket: "weft"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Stat(t.Context(), "a")
	var e *objstore.Error
	if !errors.As(err, &e) || !e.Retryable() || !strings.Contains(e.Hint, "running") {
		t.Errorf("got %v", err)
	}
}

func TestS3CertificateAuthority(t *testing.T) {
	f := &fakeS3{objects: map[string]fakeObject{}}
	server := httptest.NewUnstartedServer(f)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that must fail
	server.StartTLS()
	defer server.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ ca, want string }{{file, ""}, {"", "name its CA file"}, {"/nowhere.pem", "/nowhere.pem"}, {"s3_test.go", "holds no certificate"}} {
		s, err := objstore.Open(objstore.Config{Endpoint: server.URL, Bucket: "weft", AccessKey: "key", SecretKey: "the-secret", CAFile: c.ca})
		if err == nil {
			_, err = s.Put(t.Context(), "k", strings.NewReader("v"), 1)
			s.Close()
		}
		var e *objstore.Error
		if (err == nil) != (c.want == "") || err != nil && (!errors.As(err, &e) || e.Retryable() || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("CA file %q: %v", c.ca, err)
		}
	}
	if _, err := objstore.Open(objstore.Config{Endpoint: "http://s", Bucket: "b", CAFile: file}); err == nil || !strings.Contains(err.Error(), "without TLS") {
		t.Errorf("a CA file for a plain connection: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		cfg  objstore.Config
		want string
	}{
		{objstore.Config{Endpoint: "ftp://a", Bucket: "b"}, "expected http or https"},
		{objstore.Config{Endpoint: "http://user:hunter2@a", Bucket: "b"}, "endpoint: expected host:port"},
		{objstore.Config{Endpoint: "a/b", Bucket: "b"}, "endpoint: expected host:port"},
		{objstore.Config{Bucket: "b"}, "endpoint: expected host:port"},
		{objstore.Config{Endpoint: "a"}, "no bucket"},
		{objstore.Config{Endpoint: "a", Bucket: "b", AccessKey: "k"}, "go together"},
		{objstore.Config{Endpoint: "a", Bucket: "b", Prefix: "/x"}, "prefix"},
		{objstore.Config{Endpoint: "a", Bucket: "b", SecretKey: "hunter2"}, "go together"},
	} {
		_, err := objstore.Open(c.cfg)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%+v: %v", c.cfg, err)
		}
	}
	secret := objstore.Config{SecretKey: "hunter2"}
	text, err := json.Marshal(secret)
	if err != nil || strings.Contains(fmt.Sprintf("%s %v %+v %#v", text, secret, secret, secret), "hunter2") {
		t.Errorf("the secret prints: %s, %v", text, err)
	}
}

var _ objstore.Store = (*objtest.Faulty)(nil)
