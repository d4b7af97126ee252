package devstack

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

const (
	s3Region      = "us-east-1"
	s3Connections = 10_000
	s3Requests    = 1_000
	s3PartsMax    = 10_000 // that of AWS
)

// s3Server is an S3 gateway over a folder: a bucket is a folder in it, an object a file.
type s3Server struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // how it ended, once done is closed
	client *minio.Client
	bucket string
	home   string // the working folder to return to
}

func startS3(cfg Config, port int, failed chan<- error) (*s3Server, error) {
	access, err := key(accessKeyFile(cfg.Data))
	if err != nil {
		return nil, err
	}
	secret, err := key(secretKeyFile(cfg.Data))
	if err != nil {
		return nil, err
	}
	client, err := minio.New(address(port), &minio.Options{Creds: credentials.NewStaticV4(access, secret, ""), Region: s3Region})
	if err != nil {
		return nil, err
	}
	home, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	backend, err := openFolder(filepath.Join(cfg.Data, "s3"))
	if err != nil {
		return nil, err
	}
	root := auth.NewIAMServiceSingle(auth.Account{Access: access, Secret: secret, Role: auth.RoleAdmin})
	ctx, cancel := context.WithCancel(context.Background())
	s := &s3Server{cancel: cancel, done: make(chan struct{}), client: client, bucket: cfg.Bucket, home: home}
	go func() {
		defer close(s.done)
		s.err = embedgw.RunVersityGW(ctx, backend, &embedgw.Config{
			RootUserAccess: access, RootUserSecret: secret, Region: s3Region,
			Ports:          []string{address(port)},
			MaxConnections: s3Connections, MaxRequests: s3Requests, MultipartMaxParts: s3PartsMax,
			IAMService: oneAccount{root}, // without one the gateway prints that it has none
			Quiet:      true, KeepAlive: true, DisableACLs: true,
		})
		if ctx.Err() == nil {
			failed <- fmt.Errorf("the object store ended: %w", s.err)
		}
	}()
	return s, nil
}

// oneAccount knows the owner of the keys and nobody else.
type oneAccount struct{ auth.IAMService }

// GetUserAccount says of a wrong key what the gateway answers with 403; what it embeds says leads to 404, which clients
// take for a missing bucket.
func (a oneAccount) GetUserAccount(access string) (auth.Account, error) {
	account, err := a.IAMService.GetUserAccount(access)
	if err != nil {
		return auth.Account{}, auth.ErrNoSuchUser
	}
	return account, nil
}

// openFolder checks that a folder can hold objects and opens it. An object's entity tag is an extended attribute of its
// file, so that one rename replaces both: a conditional put depends on that.
func openFolder(dir string) (*posix.Posix, error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, err
	}
	attributes := meta.XattrMeta{}
	if err := attributes.Test(dir); err != nil {
		return nil, fmt.Errorf("%s cannot hold objects, choose a folder on another file system: %w", dir, err)
	}
	return posix.New(dir, attributes, posix.PosixOpts{})
}

// check makes the bucket where it is missing, and asks for it.
func (s *s3Server) check(ctx context.Context) error {
	ok, err := s.client.BucketExists(ctx, s.bucket)
	if err != nil || ok {
		return err
	}
	return s.client.MakeBucket(ctx, s.bucket, minio.MakeBucketOptions{})
}

func (s *s3Server) stop() error {
	s.cancel()
	<-s.done
	return errors.Join(s.err, os.Chdir(s.home))
}

func accessKeyFile(data string) string { return filepath.Join(data, "s3_access_key") }
func secretKeyFile(data string) string { return filepath.Join(data, "s3_secret_key") }

// key returns the key in a file, which it makes with a random one if it is missing.
func key(name string) (string, error) {
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		text = []byte(rand.Text() + "\n")
		err = writeWhole(name, text)
	}
	if err == nil && strings.TrimSpace(string(text)) == "" {
		err = fmt.Errorf("%s is empty", name)
	}
	return strings.TrimSpace(string(text)), err
}

// writeWhole makes a file that holds all of the text or is not there at all, however the process ends.
func writeWhole(name string, text []byte) error {
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}
