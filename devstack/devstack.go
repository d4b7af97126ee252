// Package devstack runs the servers that Weft needs inside one process: Temporal on SQLite, Kafka, and S3 over a folder.
// They are real servers that the usual clients speak to. All they know is in one folder and survives a restart, a killed
// process too. They listen on the loopback interface and are meant for development and tests, not for production.
package devstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/weftdata/weft/stack"
)

// Config says where a stack keeps its data and where it listens.
type Config struct {
	// Data is the folder that holds everything. It is made if missing. One process at a time can use it.
	Data string
	// Host is the address to listen on, 127.0.0.1 if empty. Kafka knows no other, and the servers ask for no password.
	Host string
	// The ports. 0 takes that of the last start, or chooses a free one that later starts keep.
	TemporalPort, KafkaPort, S3Port int
	// UsualPorts chooses 7233, 9092 and 9000 where they are free.
	UsualPorts bool
	// Bucket is made in the object store, "weft" if empty.
	Bucket string
	// Partitions is what a topic gets that is made without a number, 4 if 0.
	Partitions int
	// NoAutoTopics refuses topics that nobody made, as careful production systems do.
	NoAutoTopics bool
}

// ErrInUse is returned by Start if another process has the folder.
var ErrInUse = errors.New("in use")

const (
	host             = "127.0.0.1"
	dirMode          = 0o700 // the folder holds the players' records and the keys
	readyTimeout     = time.Minute
	readyInterval    = 20 * time.Millisecond
	readyTryTimeout  = 5 * time.Second
	partitionsChosen = 4
)

func (c *Config) setDefaults() {
	if c.Host == "" {
		c.Host = host
	}
	if c.Bucket == "" {
		c.Bucket = stack.DefaultBucket
	}
	if c.Partitions == 0 {
		c.Partitions = partitionsChosen
	}
}

// Validate reports every problem at once.
func (c *Config) Validate() error {
	var errs []error
	if c.Data == "" {
		errs = append(errs, errors.New("no data folder is named"))
	}
	if c.Host != "" && c.Host != host {
		errs = append(errs, fmt.Errorf("host %q: the servers ask for no password, so they listen on %s only", c.Host, host))
	}
	for _, p := range []struct {
		name string
		port int
	}{{"Temporal", c.TemporalPort}, {"Kafka", c.KafkaPort}, {"S3", c.S3Port}} {
		if p.port < 0 || p.port > 65535 {
			errs = append(errs, fmt.Errorf("%s port %d: expected 0 to 65535", p.name, p.port))
		}
	}
	if c.Partitions < 0 {
		errs = append(errs, fmt.Errorf("%d partitions: expected 1 or more", c.Partitions))
	}
	return errors.Join(errs...)
}

// server is one of the servers of a stack.
type server interface {
	// check asks the server something that only a working one can answer.
	check(ctx context.Context) error
	stop() error
}

// Stack is a set of running servers.
type Stack struct {
	addresses stack.Addresses
	servers   []server // in the order of their start
	lock      *os.File
	failed    chan error
}

// Start starts every server and returns once all of them answer. A process can hold one stack at a time, and its working
// folder is that of the object store until Stop: the gateway reaches objects by relative paths.
func Start(ctx context.Context, cfg Config) (_ *Stack, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	if cfg.Data, err = filepath.Abs(cfg.Data); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(cfg.Data, "logs"), dirMode); err != nil {
		return nil, err
	}
	s := &Stack{failed: make(chan error, 1)}
	if s.lock, err = lock(filepath.Join(cfg.Data, "lock")); err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Data, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop(context.WithoutCancel(ctx)))
		}
	}()
	p, err := choosePorts(cfg)
	if err != nil {
		return nil, err
	}
	for _, start := range []func() (server, error){
		func() (server, error) { return startKafka(cfg, p.Kafka) },
		func() (server, error) { return startS3(cfg, p.S3, s.failed) },
		func() (server, error) { return startTemporal(cfg, p) },
	} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		srv, err := start()
		if err != nil {
			return nil, err
		}
		s.servers = append(s.servers, srv)
	}
	if err := s.awaitReady(ctx); err != nil {
		return nil, err
	}
	s.addresses = stack.Addresses{
		Temporal:        address(p.Temporal),
		Namespace:       stack.DefaultNamespace,
		Kafka:           address(p.Kafka),
		S3:              "http://" + address(p.S3),
		S3Bucket:        cfg.Bucket,
		S3AccessKeyFile: accessKeyFile(cfg.Data),
		S3SecretKeyFile: secretKeyFile(cfg.Data),
		Store:           "sqlite:" + filepath.Join(cfg.Data, "store", "weft.db"),
		Data:            cfg.Data,
		PID:             os.Getpid(),
	}
	return s, os.MkdirAll(filepath.Join(cfg.Data, "store"), dirMode)
}

func address(port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

// awaitReady waits until every server answers.
func (s *Stack) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	again := time.NewTicker(readyInterval)
	defer again.Stop()
	for _, srv := range s.servers {
		for {
			try, cancelTry := context.WithTimeout(ctx, readyTryTimeout)
			err := srv.check(try)
			cancelTry()
			if err == nil {
				break
			}
			select {
			case <-again.C:
			case failure := <-s.failed:
				return failure
			case <-ctx.Done():
				return fmt.Errorf("%T does not answer: %w", srv, errors.Join(ctx.Err(), err))
			}
		}
	}
	return nil
}

// Addresses says where the servers are. Keys are named by their files, never given.
func (s *Stack) Addresses() stack.Addresses { return s.addresses }

// Failed yields an error if a server ends by itself; the stack should then be stopped.
func (s *Stack) Failed() <-chan error { return s.failed }

// Stop ends the servers, the last started first, and frees the folder. Clients still connected lose their connections.
// If ctx ends earlier the servers are left to the end of the process, which loses nothing either.
func (s *Stack) Stop(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		var errs []error
		for i := len(s.servers) - 1; i >= 0; i-- {
			errs = append(errs, s.servers[i].stop())
		}
		s.servers = nil
		done <- errors.Join(append(errs, s.lock.Close())...)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("stop the stack: %w", ctx.Err())
	}
}
