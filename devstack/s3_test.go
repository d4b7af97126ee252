package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/weftdata/weft/stack"
)

func dialS3(t *testing.T, a stack.Addresses) *minio.Client {
	t.Helper()
	read := func(name string) string {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	c, err := minio.New(strings.TrimPrefix(a.S3, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(read(a.S3AccessKeyFile), read(a.S3SecretKeyFile), ""),
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// put writes an object if a condition holds; it returns the new entity tag.
func put(ctx context.Context, c *minio.Client, bucket, key, text string, condition func(*minio.PutObjectOptions)) (string, error) {
	var o minio.PutObjectOptions
	if condition != nil {
		condition(&o)
	}
	info, err := c.PutObject(ctx, bucket, key, strings.NewReader(text), int64(len(text)), o)
	return info.ETag, err
}

func ifAbsent(o *minio.PutObjectOptions) { o.SetMatchETagExcept("*") }

func ifMatch(etag string) func(*minio.PutObjectOptions) {
	return func(o *minio.PutObjectOptions) { o.SetMatchETag(etag) }
}

func get(ctx context.Context, c *minio.Client, bucket, key string) (text, etag string, err error) {
	o, err := c.GetObject(ctx, bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return "", "", err
	}
	b, err := io.ReadAll(o)
	if err != nil {
		return "", "", err
	}
	info, err := o.Stat()
	return string(b), info.ETag, err
}

func putObject(t *testing.T, a stack.Addresses, key, text string) {
	t.Helper()
	if _, err := put(testContext(t), dialS3(t, a), a.S3Bucket, key, text, nil); err != nil {
		t.Fatal(err)
	}
}

func getObject(t *testing.T, a stack.Addresses, key string) string {
	t.Helper()
	text, _, err := get(testContext(t), dialS3(t, a), a.S3Bucket, key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func status(err error) int { return minio.ToErrorResponse(err).StatusCode }

func TestConditionalPuts(t *testing.T) {
	ctx := testContext(t)
	a := start(t, Config{Data: t.TempDir()}).Addresses()
	c := dialS3(t, a)
	first, err := put(ctx, c, a.S3Bucket, "m", "1", ifAbsent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := put(ctx, c, a.S3Bucket, "m", "2", ifAbsent); status(err) != http.StatusPreconditionFailed {
		t.Errorf("a put if absent over an object: %v", err)
	}
	second, err := put(ctx, c, a.S3Bucket, "m", "2", ifMatch(first))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := put(ctx, c, a.S3Bucket, "m", "3", ifMatch(first)); status(err) != http.StatusPreconditionFailed {
		t.Errorf("a put over another version than the one read: %v", err)
	}
	if text, etag, err := get(ctx, c, a.S3Bucket, "m"); err != nil || text != "2" || etag != second {
		t.Errorf("got %q with tag %q, want 2 with %q: %v", text, etag, second, err)
	}
	if _, err := put(ctx, c, a.S3Bucket, "none", "1", ifMatch(first)); status(err) != http.StatusNotFound {
		t.Errorf("a put over a version of an object that is not there: %v", err)
	}
}

// TestConditionalPutOfALargeObject sends in one piece what the client would send in parts: the client forgets the
// condition when it completes an upload of parts, so whoever needs one must ask for a single put.
func TestConditionalPutOfALargeObject(t *testing.T) {
	const size = 20 << 20 // the client sends more than 16 MiB in parts
	ctx := testContext(t)
	a := start(t, Config{Data: t.TempDir()}).Addresses()
	c := dialS3(t, a)
	putLarge := func(fill byte) error {
		o := minio.PutObjectOptions{DisableMultipart: true}
		o.SetMatchETagExcept("*")
		_, err := c.PutObject(ctx, a.S3Bucket, "large", bytes.NewReader(bytes.Repeat([]byte{fill}, size)), size, o)
		return err
	}
	if err := putLarge('a'); err != nil {
		t.Fatal(err)
	}
	err := putLarge('b')
	for range 20 {
		// The server refuses before it has read the body, and may close the connection before the client has read the refusal.
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			break
		}
		err = putLarge('b')
	}
	if status(err) != http.StatusPreconditionFailed {
		t.Errorf("a second put if absent: %v", err)
	}
	if text, _, err := get(ctx, c, a.S3Bucket, "large"); err != nil || strings.Trim(text, "a") != "" || len(text) != size {
		t.Errorf("got %d bytes, want the first put: %v", len(text), err)
	}
}

// TestConditionalPutsAreAtomic counts in one object by compare and set from many clients, and lets them race to make
// objects: an update that is lost, or an object that is made twice, shows.
func TestConditionalPutsAreAtomic(t *testing.T) {
	const clients, each = 8, 25
	ctx := testContext(t)
	a := start(t, Config{Data: t.TempDir()}).Addresses()
	if _, err := put(ctx, dialS3(t, a), a.S3Bucket, "counter", "0", ifAbsent); err != nil {
		t.Fatal(err)
	}
	made := make([][]int, clients) // how often each client made each object
	var group sync.WaitGroup
	for i := range clients {
		made[i] = make([]int, each)
		c := dialS3(t, a)
		group.Go(func() {
			for n := range each {
				if err := increment(ctx, c, a.S3Bucket); err != nil {
					t.Error(err)
					return
				}
				switch _, err := put(ctx, c, a.S3Bucket, fmt.Sprint("made/", n), fmt.Sprint(i), ifAbsent); {
				case err == nil:
					made[i][n]++
				case status(err) != http.StatusPreconditionFailed:
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if got := getObject(t, a, "counter"); got != fmt.Sprint(clients*each) {
		t.Errorf("counted to %s, want %d", got, clients*each)
	}
	for n := range each {
		makers := 0
		for i := range clients {
			makers += made[i][n]
		}
		if makers != 1 {
			t.Errorf("object %d was made by %d clients", n, makers)
		}
	}
}

// increment adds one to the counter, however often others get in between.
func increment(ctx context.Context, c *minio.Client, bucket string) error {
	for {
		text, etag, err := get(ctx, c, bucket, "counter")
		if err != nil {
			if status(err) == http.StatusPreconditionFailed { // it was replaced between two reads of the client
				continue
			}
			return err
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		_, err = put(ctx, c, bucket, "counter", strconv.Itoa(n+1), ifMatch(etag))
		if status(err) != http.StatusPreconditionFailed {
			return err
		}
	}
}

func TestObjectsAskForTheKey(t *testing.T) {
	a := start(t, Config{Data: t.TempDir()}).Addresses()
	c, err := minio.New(strings.TrimPrefix(a.S3, "http://"), &minio.Options{Creds: credentials.NewStaticV4("x", "y", "")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := put(testContext(t), c, a.S3Bucket, "k", "v", nil); status(err) != http.StatusForbidden {
		t.Errorf("a put with wrong keys: %v", err)
	}
}
