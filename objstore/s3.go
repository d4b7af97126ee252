package objstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	retriesMax     = 4 // of one request by the client library
	conditionalMax = 3 // rounds of a conditional write, each with its retries
	nonceName      = "Weft-Nonce"
	partBytes      = 16 << 20 // of an upload in parts, which larger objects are
)

// Secret is text that prints as asterisks.
type Secret string

// String hides the secret.
func (s Secret) String() string { return "***" }

// GoString hides the secret.
func (s Secret) GoString() string { return "***" }

// MarshalText hides the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte("***"), nil }

// Config says where an S3 store is.
type Config struct {
	Endpoint  string // host:port, or a URL whose scheme decides about TLS
	Bucket    string // which must exist
	AccessKey string
	SecretKey Secret
	TLS       bool
	CAFile    string // PEM: authorities that sign the store's certificate; empty: those of the machine
	Prefix    string // of all keys, without slashes around it; may be empty
	Region    string // default us-east-1, which stores other than AWS rarely look at
}

// Validate fills in defaults and reports everything wrong at once.
func (c *Config) Validate() error {
	var errs []error
	if scheme, host, found := strings.Cut(c.Endpoint, "://"); found {
		if scheme != "http" && scheme != "https" {
			errs = append(errs, fmt.Errorf("endpoint: scheme %q: expected http or https", scheme))
		}
		c.TLS, c.Endpoint = scheme == "https", strings.TrimSuffix(host, "/")
	}
	if u, err := url.Parse("http://" + c.Endpoint); err != nil || u.Host == "" || u.Path != "" || u.User != nil || u.RawQuery != "" {
		errs = append(errs, errors.New("endpoint: expected host:port, http://host:port or https://host:port"))
	}
	if c.CAFile != "" && !c.TLS {
		errs = append(errs, errors.New("a CA file without TLS: expected an endpoint of https://"))
	}
	if c.Bucket == "" {
		errs = append(errs, errors.New("no bucket"))
	}
	if (c.AccessKey == "") != (c.SecretKey == "") {
		errs = append(errs, errors.New("an access key and a secret key go together"))
	}
	if c.Prefix != "" {
		if err := CheckKey(c.Prefix); err != nil {
			errs = append(errs, fmt.Errorf("prefix: %w", err))
		}
	}
	if c.Region == "" {
		c.Region = "us-east-1"
	}
	return errors.Join(errs...)
}

// S3 is a bucket of an S3 store.
type S3 struct {
	core      minio.Core
	transport *http.Transport
	bucket    string
	prefix    string
	secret    string
}

// Close closes the connections that are idle. The store may be used again.
func (s *S3) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// Open returns a bucket of a store. It asks nothing: see Probe.
func Open(cfg Config) (*S3, error) {
	op := "open the object store"
	if err := cfg.Validate(); err != nil {
		return nil, &Error{Op: op, Class: User, Err: err}
	}
	transport, err := minio.DefaultTransport(cfg.TLS)
	if err != nil {
		return nil, &Error{Op: op, Class: Internal, Err: err}
	}
	if cfg.CAFile != "" {
		if transport.TLSClientConfig.RootCAs, err = readAuthorities(cfg.CAFile); err != nil {
			return nil, &Error{Op: op, Class: User, Err: err}
		}
	}
	client, err := minio.New(cfg.Endpoint, &minio.Options{Transport: transport,
		Creds: credentials.NewStaticV4(cfg.AccessKey, string(cfg.SecretKey), ""), Secure: cfg.TLS, Region: cfg.Region, MaxRetries: retriesMax})
	if err != nil {
		return nil, &Error{Op: op, Class: User, Err: err}
	}
	s := &S3{core: minio.Core{Client: client}, transport: transport, bucket: cfg.Bucket, secret: string(cfg.SecretKey)}
	if cfg.Prefix != "" {
		s.prefix = cfg.Prefix + "/"
	}
	return s, nil
}

func readAuthorities(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("CA file: %s holds no certificate in PEM", file)
	}
	return pool, nil
}

// Get returns an object.
func (s *S3) Get(ctx context.Context, key string) (data []byte, info Info, err error) {
	if err := CheckKey(key); err != nil {
		return nil, info, err
	}
	op := "get " + key
	err = s.reading(ctx, op, key, minio.GetObjectOptions{}, func(body io.Reader, object minio.ObjectInfo) error {
		if object.Size > GetBytesMax {
			return &Error{Op: op, Class: Internal, Err: fmt.Errorf("it has %d bytes; at most %d are read at once", object.Size, GetBytesMax)}
		}
		data, info = make([]byte, max(object.Size, 0)), s.info(key, object)
		_, err := io.ReadFull(body, data)
		return err
	})
	return data, info, err
}

// reading runs what reads the body of an object. The client library tries again until an answer starts; where its body
// breaks off, this does.
func (s *S3) reading(ctx context.Context, op, key string, options minio.GetObjectOptions, read func(io.Reader, minio.ObjectInfo) error) error {
	for try := 1; ; try++ {
		body, object, _, err := s.core.GetObject(ctx, s.bucket, s.prefix+key, options)
		if err != nil {
			return s.explain(op, err)
		}
		err = s.explain(op, errors.Join(read(body, object), body.Close()))
		if err == nil || !isRetryable(err) || try == retriesMax {
			return err
		}
	}
}

// GetRange returns a part of an object.
func (s *S3) GetRange(ctx context.Context, key string, from, n int64) (data []byte, err error) {
	if err := checkRange(key, from, n); err != nil || n == 0 {
		return nil, err
	}
	op := fmt.Sprintf("get %s from byte %d", key, from)
	var options minio.GetObjectOptions
	if err := options.SetRange(from, from+n-1); err != nil {
		return nil, &Error{Op: op, Class: Internal, Err: err}
	}
	err = s.reading(ctx, op, key, options, func(body io.Reader, object minio.ObjectInfo) error {
		data = make([]byte, min(n, max(object.Size, 0))) // of the part, as the header says
		_, err := io.ReadFull(body, data)
		return err
	})
	if errors.Is(err, errPastEnd) {
		return nil, nil
	}
	return data, err
}

// errPastEnd says that a range starts behind the end of an object.
var errPastEnd = errors.New("the object ends before")

func checkRange(key string, from, n int64) error {
	if from < 0 || n < 0 || n > GetBytesMax {
		return &Error{Op: "get " + key, Class: Internal, Err: fmt.Errorf("range of %d bytes from %d", n, from)}
	}
	return CheckKey(key)
}

// Stat describes an object.
func (s *S3) Stat(ctx context.Context, key string) (Info, error) {
	object, err := s.stat(ctx, key)
	if err != nil {
		return Info{}, err
	}
	return s.info(key, object), nil
}

func (s *S3) stat(ctx context.Context, key string) (minio.ObjectInfo, error) {
	if err := CheckKey(key); err != nil {
		return minio.ObjectInfo{}, err
	}
	object, err := s.core.StatObject(ctx, s.bucket, s.prefix+key, minio.StatObjectOptions{})
	return object, s.explain("stat "+key, err)
}

func (s *S3) info(key string, o minio.ObjectInfo) Info {
	return Info{Key: key, Size: o.Size, ETag: strings.Trim(o.ETag, `"`), Modified: o.LastModified}
}

// Put writes an object.
func (s *S3) Put(ctx context.Context, key string, body io.ReadSeeker, size int64) (Info, error) {
	if err := CheckKey(key); err != nil {
		return Info{}, err
	}
	var up minio.UploadInfo
	var err error
	if size <= partBytes {
		up, err = s.putWhole(ctx, key, body, size, minio.PutObjectOptions{})
	} else {
		up, err = s.core.Client.PutObject(ctx, s.bucket, s.prefix+key, body, size, minio.PutObjectOptions{PartSize: partBytes})
	}
	if err != nil {
		return Info{}, s.explain("put "+key, err)
	}
	return s.put(key, size, up), nil
}

func (s *S3) put(key string, size int64, up minio.UploadInfo) Info {
	return Info{Key: key, Size: size, ETag: strings.Trim(up.ETag, `"`), Modified: up.LastModified}
}

// putWhole sends an object as one request. It is signed by one hash over the body, not by chunks: a store that answers
// before it has read a chunked body (of an empty object, or where it refuses) takes the rest for the next request.
func (s *S3) putWhole(ctx context.Context, key string, body io.ReadSeeker, size int64, options minio.PutObjectOptions) (up minio.UploadInfo, err error) {
	sum := sha256.New()
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return up, err
	}
	n, err := io.Copy(sum, body)
	if err == nil && n != size {
		err = &Error{Op: "put " + key, Class: Internal, Err: fmt.Errorf("the body has %d bytes, not the %d that were announced", n, size)}
	}
	if err == nil {
		_, err = body.Seek(0, io.SeekStart)
	}
	if err != nil {
		return up, err
	}
	options.DisableContentSha256 = true // by chunks
	return s.core.PutObject(ctx, s.bucket, s.prefix+key, body, size, "", hex.EncodeToString(sum.Sum(nil)), options)
}

// PutIfAbsent writes an object that is not there yet.
func (s *S3) PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) (Info, error) {
	return s.putIf(ctx, fmt.Sprintf("put %s if absent", key), key, data, nonce, func(o *minio.PutObjectOptions) { o.SetMatchETagExcept("*") })
}

// PutIfMatch replaces an object.
func (s *S3) PutIfMatch(ctx context.Context, key string, data []byte, etag, nonce string) (Info, error) {
	op := fmt.Sprintf("put %s if it matches %s", key, etag)
	if etag == "" || etag == "*" || strings.ContainsAny(etag, "\"\r\n") {
		return Info{}, &Error{Op: op, Class: Internal, Err: fmt.Errorf("etag %q", etag)}
	}
	return s.putIf(ctx, op, key, data, nonce, func(o *minio.PutObjectOptions) { o.SetMatchETag(etag) })
}

// putIf writes with a condition. After every failure that leaves open whether the write took place, and after a refusal,
// which may be caused by this very write, the object is looked at: our nonce says that it did.
func (s *S3) putIf(ctx context.Context, op, key string, data []byte, nonce string, condition func(*minio.PutObjectOptions)) (Info, error) {
	if err := errors.Join(CheckKey(key), checkNonce(op, nonce)); err != nil {
		return Info{}, err
	}
	options := minio.PutObjectOptions{UserMetadata: map[string]string{nonceName: nonce}}
	condition(&options)
	for round := 1; ; round++ {
		up, err := s.putWhole(ctx, key, bytes.NewReader(data), int64(len(data)), options)
		if err == nil {
			return s.put(key, int64(len(data)), up), nil
		}
		err = s.explain(op, err)
		absent := errors.Is(err, ErrNotFound) // of If-Match
		refused := errors.Is(err, ErrPrecondition) || absent
		if !refused && !isRetryable(err) {
			return Info{}, err
		}
		object, statErr := s.stat(ctx, key)
		switch {
		case statErr == nil && object.UserMetadata[nonceName] == nonce:
			return s.info(key, object), nil
		case statErr != nil && !errors.Is(statErr, ErrNotFound):
			return Info{}, statErr // whether it was ours is not known
		case refused:
			return Info{}, precondition(op)
		case round == conditionalMax:
			return Info{}, err
		}
		if err := pause(ctx, time.Duration(round*round)*50*time.Millisecond); err != nil {
			return Info{}, err
		}
	}
}

func precondition(op string) error { return &Error{Op: op, Class: User, Err: ErrPrecondition} }

func pause(ctx context.Context, wait time.Duration) error {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Delete removes an object.
func (s *S3) Delete(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	err := s.explain("delete "+key, s.core.RemoveObject(ctx, s.bucket, s.prefix+key, minio.RemoveObjectOptions{}))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// List yields objects in order of their keys.
func (s *S3) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		ctx, cancel := context.WithCancel(ctx) // or the library's goroutine would wait for a reader
		defer cancel()
		options := minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true}
		if after != "" {
			options.StartAfter = s.prefix + after
		}
		for o := range s.core.ListObjectsIter(ctx, s.bucket, options) {
			if o.Err != nil {
				yield(Info{}, s.explain("list "+prefix, o.Err))
				return
			}
			key := strings.TrimPrefix(o.Key, s.prefix)
			if key <= after || strings.HasSuffix(key, "/") { // the latter are folders that other tools make
				continue
			}
			if !yield(s.info(key, o), nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil { // the iterator just ends
			yield(Info{}, err)
		}
	}
}

func isRetryable(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Retryable()
}

// explain makes an Error of an error of the library. Cancellation stays what it is.
func (s *S3) explain(op string, err error) error {
	var done *Error
	if err == nil || errors.As(err, &done) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	e := &Error{Op: op, Class: External, Err: err}
	if s.secret != "" && strings.Contains(err.Error(), s.secret) { // the library is careful, other layers may not be
		e.Err = errors.New(strings.ReplaceAll(err.Error(), s.secret, "***"))
	}
	var res minio.ErrorResponse
	if errors.As(err, &res) {
		e.fromResponse(res, s.bucket)
		return e
	}
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	switch text := err.Error(); {
	case errors.As(err, &unknown), errors.As(err, &host):
		e.Class, e.Hint = User, "the store's certificate is not trusted here: name its CA file"
	case strings.Contains(text, "server gave HTTP response to HTTPS client"):
		e.Class, e.Hint = User, "the store does not speak TLS on that port: use http://"
	case strings.Contains(text, "connection refused"), strings.Contains(text, "no such host"):
		e.Hint = "is the object store running, and is the endpoint right?"
	}
	return e
}

// fromResponse sets the class by what the store answered.
func (e *Error) fromResponse(res minio.ErrorResponse, bucket string) {
	e.Err = fmt.Errorf("%s: %s", res.Code, res.Message) // not the rest: it names hosts and request ids
	wrap := func(is error, class Class, hint string) {
		e.Err, e.Class, e.Hint = fmt.Errorf("%w: %w", is, e.Err), class, hint
	}
	switch code := res.Code; {
	case code == minio.NoSuchBucket:
		wrap(fmt.Errorf("%w: %s", ErrNoBucket, bucket), User, "create it, or check its name")
	case code == minio.NoSuchKey || code == "NotFound" || code == "NoSuchVersion":
		e.Err, e.Class = ErrNotFound, User
	case res.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		e.Err, e.Class = errPastEnd, User
	case res.StatusCode == http.StatusPreconditionFailed:
		e.Err, e.Class = ErrPrecondition, User
	case res.StatusCode == http.StatusConflict || res.StatusCode >= 500 && res.StatusCode != http.StatusNotImplemented,
		res.StatusCode == http.StatusTooManyRequests, res.StatusCode == http.StatusRequestTimeout, strings.HasPrefix(code, "SlowDown"):
		e.Class = External // a conflict is another writer's write that is not finished
	case code == "RequestTimeTooSkewed":
		wrap(ErrCredentials, User, "the clocks of this machine and the store differ")
	case res.StatusCode == http.StatusForbidden || res.StatusCode == http.StatusUnauthorized ||
		code == "InvalidAccessKeyId" || code == "XAdminUserNotFound": // the latter is Versity's
		wrap(ErrCredentials, User, "check the access key, the secret key and the rights on the bucket")
	case code == minio.NotImplemented || res.StatusCode == http.StatusNotImplemented:
		wrap(ErrUnsupported, User, "")
	case code == "AuthorizationHeaderMalformed" || code == "PermanentRedirect":
		e.Class, e.Hint = User, "the bucket is in another region"
	case res.StatusCode >= 300:
		e.Class = User
	}
}
