package e2e

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"

	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/objstore/objtest"
)

const (
	s3Access = "e2e-access-key"
	s3Secret = "e2e-secret-key-that-nobody-prints"
)

// startS3 runs a gateway over a folder, with a bucket. One gateway per process is all that it can do.
func startS3(t *testing.T) (endpoint, bucket string) {
	t.Helper()
	home, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	backend, err := posix.New(t.TempDir(), meta.XattrMeta{}, posix.PosixOpts{})
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint = free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- embedgw.RunVersityGW(ctx, backend, &embedgw.Config{RootUserAccess: s3Access, RootUserSecret: s3Secret, Ports: []string{endpoint},
			MaxConnections: 1000, MaxRequests: 1000, MultipartMaxParts: 10_000, Quiet: true, KeepAlive: true, DisableACLs: true})
	}()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, os.Chdir(home)); err != nil { // the gateway works in its folder
			t.Error(err)
		}
	})
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections) // the gateway waits for them when it stops
	client, err := minio.New(endpoint, &minio.Options{Transport: transport, Creds: credentials.NewStaticV4(s3Access, s3Secret, ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	bucket = "weft-e2e"
	for begin := time.Now(); ; {
		err := client.MakeBucket(t.Context(), bucket, minio.MakeBucketOptions{})
		if err == nil {
			return endpoint, bucket
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatal(err)
		}
	}
}

func TestS3Store(t *testing.T) {
	endpoint, bucket := startS3(t)
	open := func(cfg objstore.Config) *objstore.S3 {
		t.Helper()
		cfg.Endpoint = "http://" + endpoint
		s, err := objstore.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	good := objstore.Config{Bucket: bucket, AccessKey: s3Access, SecretKey: s3Secret, Prefix: "a/prefix"}
	t.Run("conformance", func(t *testing.T) { objtest.Conformance(t, open(good)) })
	for _, c := range []struct {
		name   string
		change func(*objstore.Config)
		is     error
	}{
		{"wrong secret", func(c *objstore.Config) { c.SecretKey = s3Secret + "x" }, objstore.ErrCredentials},
		{"wrong access key", func(c *objstore.Config) { c.AccessKey = "nobody" }, objstore.ErrCredentials},
		{"no credentials", func(c *objstore.Config) { c.AccessKey, c.SecretKey = "", "" }, objstore.ErrCredentials},
		{"no bucket", func(c *objstore.Config) { c.Bucket = "not-there" }, objstore.ErrNoBucket},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := good
			c.change(&cfg)
			err := objstore.Probe(t.Context(), open(cfg))
			var e *objstore.Error
			if !errors.Is(err, c.is) || !errors.As(err, &e) || e.Retryable() || e.Hint == "" || strings.Contains(err.Error(), s3Secret) {
				t.Errorf("got %v", err)
			}
		})
	}
}
