// Package kafka reads and writes Kafka with explicit partitions and offsets. There are no consumer groups: who reads what,
// and from where, is decided by the checkpoints of the caller.
//
// Connections, the handshake and the requests of the control plane are kafka-go's protocol package. The two hot paths,
// fetch and produce, encode and decode record batches here (batch.go), because a record then costs no allocation and
// its value is copied once, into the event.Batch.
//
//	client, err := kafka.New(kafka.Config{Brokers: []string{"localhost:9092"}})
//	topic, err := client.Topic(ctx, "pay.orders")
//	f := client.Fetcher(topic, partition, offset)
//	for {
//		batch.Reset()
//		got, err := f.Fetch(ctx, batch, source, 1<<20)
//		… err.Retryable(): wait and call again; f goes on where it was …
//	}
package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// Config says how to reach a cluster. Members after SASL have defaults.
type Config struct {
	Brokers []string    // host:port of some brokers; the others are found through them
	TLS     *tls.Config // nil: no TLS
	SASL    SASL        // the zero value: no credentials

	ClientID       string        // shows in the brokers' logs and quotas; default weft
	DialTimeout    time.Duration // of a connection with its handshakes; default 5 s
	RequestTimeout time.Duration // of one request; default 30 s
	MaxWait        time.Duration // how long a fetch waits at the end of a partition; default 500 ms
}

// SASL holds credentials.
type SASL struct {
	Mechanism string // plain, scram-sha-256 or scram-sha-512; empty: no credentials
	User      string
	Password  Secret
}

// Secret is text that prints as asterisks.
type Secret string

// String hides the secret.
func (s Secret) String() string { return "***" }

// GoString hides the secret.
func (s Secret) GoString() string { return "***" }

// MarshalText hides the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte("***"), nil }

// Validate fills in defaults and reports everything wrong at once.
func (c *Config) Validate() error {
	var errs []error
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("no brokers: expected host:port"))
	}
	for _, b := range c.Brokers {
		if _, port, err := net.SplitHostPort(b); err != nil || port == "" {
			errs = append(errs, fmt.Errorf("broker %q: expected host:port, such as localhost:9092", b))
		}
	}
	if _, err := c.SASL.mechanism(); err != nil {
		errs = append(errs, err)
	}
	if c.ClientID == "" {
		c.ClientID = "weft"
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		or    time.Duration
	}{{"dial timeout", &c.DialTimeout, 5 * time.Second}, {"request timeout", &c.RequestTimeout, 30 * time.Second},
		{"max wait", &c.MaxWait, 500 * time.Millisecond}} {
		if *d.value < 0 {
			errs = append(errs, fmt.Errorf("%s %v: expected more than 0", d.name, *d.value))
		}
		if *d.value == 0 {
			*d.value = d.or
		}
	}
	return errors.Join(errs...)
}

// ParseBrokers splits a list such as "a:9092,b:9092".
func ParseBrokers(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// Client talks to a cluster. It is safe for concurrent use; Fetchers and Producers have connections of their own.
type Client struct {
	cfg Config

	mu     sync.Mutex
	conns  map[string]*conn // by address; for the control plane
	closed bool
}

// New returns a client. It connects when it has something to ask.
func New(cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, &Error{Op: "configure kafka", Class: User, Err: err}
	}
	return &Client{cfg: cfg, conns: map[string]*conn{}}, nil
}

// Close closes the connections of the control plane.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	var errs []error
	for _, one := range c.conns {
		errs = append(errs, one.close())
	}
	clear(c.conns)
	return errors.Join(errs...)
}

// with runs a call on the connection to an address, dialing it where there is none.
func (c *Client) with(ctx context.Context, addr string, call func(*conn) error) error {
	for {
		one, err := c.cached(ctx, addr)
		if err != nil {
			return err
		}
		one.busy.Lock()        // a connection carries one request at a time
		if one.broken.Load() { // by the caller before, who may have been canceled: that is nobody else's failure
			one.busy.Unlock()
			continue
		}
		err = call(one)
		one.busy.Unlock()
		return err
	}
}

func (c *Client) cached(ctx context.Context, addr string) (*conn, error) {
	c.mu.Lock()
	one := c.conns[addr]
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return nil, net.ErrClosed
	}
	if one != nil && !one.broken.Load() {
		return one, nil
	}
	fresh, err := c.dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.Join(net.ErrClosed, fresh.close())
	}
	if now := c.conns[addr]; now != nil && now != one && !now.broken.Load() { // another caller was faster
		return now, fresh.close()
	}
	c.conns[addr] = fresh
	return fresh, nil
}

// anyBroker runs a call on the first of the configured brokers that can be reached.
func (c *Client) anyBroker(ctx context.Context, call func(*conn) error) error {
	var errs []error
	for _, addr := range c.cfg.Brokers {
		// Twice: a connection that idled may have been closed by the broker.
		for range 2 {
			err := c.with(ctx, addr, call)
			if err == nil {
				return nil
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			var code codeError
			if errors.As(err, &code) || errors.Is(err, ErrCredentials) {
				return err // the broker answered; another one would say the same
			}
			errs = append(errs, err)
			if errors.Is(err, errDial) {
				break
			}
		}
	}
	return errs[0]
}
