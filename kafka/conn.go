package kafka

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
)

// answerBytesMax bounds an answer. A broker sends a whole record batch even where a fetch asked for less.
const answerBytesMax = 256 << 20

// conn is one connection to one broker; it carries one request at a time.
type conn struct {
	addr     string
	pc       *protocol.Conn
	client   string
	timeout  time.Duration
	versions map[protocol.ApiKey][2]int16 // what the broker speaks, least and greatest

	busy    sync.Mutex // held by callers that share the connection
	broken  atomic.Bool
	request []byte
	answer  []byte
	id      int32
}

// dial connects, negotiates versions and presents the credentials.
func (c *Client) dial(ctx context.Context, addr string) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	defer cancel()
	one, err := c.handshake(ctx, addr)
	switch {
	case err == nil:
		return one, nil
	case errors.Is(err, ErrCredentials), errors.Is(err, context.Canceled):
		return nil, err
	default:
		return nil, fmt.Errorf("%w to %s: %w", errDial, addr, err)
	}
}

func (c *Client) handshake(ctx context.Context, addr string) (one *conn, err error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreClosed(raw.Close()))
		}
	}()
	if c.cfg.TLS != nil {
		if raw, err = c.encrypt(ctx, raw, addr); err != nil {
			return nil, err
		}
	}
	one = &conn{addr: addr, pc: protocol.NewConn(raw, c.cfg.ClientID), client: c.cfg.ClientID, timeout: c.cfg.RequestTimeout}
	err = one.do(ctx, c.cfg.DialTimeout, func() error {
		if err := one.negotiate(); err != nil {
			return err
		}
		return one.authenticate(ctx, c.cfg.SASL)
	})
	return one, err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (c *Client) encrypt(ctx context.Context, raw net.Conn, addr string) (net.Conn, error) {
	cfg := c.cfg.TLS.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(addr) // checked by Validate, or sent by a broker
	}
	t := tls.Client(raw, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		return t, fmt.Errorf("%w: %w", errTLS, err)
	}
	return t, nil
}

func (c *conn) negotiate() error {
	msg, err := c.pc.RoundTrip(new(apiversions.Request))
	if err != nil {
		return err
	}
	res := msg.(*apiversions.Response)
	if err := codeErr(res.ErrorCode, ""); err != nil {
		return err
	}
	c.versions = map[protocol.ApiKey][2]int16{}
	chosen := map[protocol.ApiKey]int16{}
	for _, k := range res.ApiKeys {
		key := protocol.ApiKey(k.ApiKey)
		c.versions[key] = [2]int16{k.MinVersion, k.MaxVersion}
		chosen[key] = key.SelectVersion(k.MinVersion, k.MaxVersion)
	}
	c.pc.SetVersions(chosen)
	return nil
}

func (c *conn) authenticate(ctx context.Context, credentials SASL) error {
	mechanism, err := credentials.mechanism()
	if err != nil || mechanism == nil {
		return err
	}
	msg, err := c.pc.RoundTrip(&saslhandshake.Request{Mechanism: mechanism.Name()})
	if err != nil {
		return err
	}
	if res := msg.(*saslhandshake.Response); res.ErrorCode != 0 {
		return fmt.Errorf("%w of %s: it has no mechanism %s, only %s", ErrCredentials, c.addr, mechanism.Name(), strings.Join(res.Mechanisms, ", "))
	}
	state, say, err := mechanism.Start(ctx)
	for done := false; err == nil && !done; {
		if msg, err = c.pc.RoundTrip(&saslauthenticate.Request{AuthBytes: say}); err != nil {
			// Brokers may refuse by hanging up, but they also hang up when they restart: it may be retried.
			return fmt.Errorf("%w: %w", errHungUp, err)
		}
		res := msg.(*saslauthenticate.Response)
		if err = codeErr(res.ErrorCode, res.ErrorMessage); err == nil {
			done, say, err = state.Next(ctx, res.AuthBytes)
		}
	}
	if err != nil {
		return fmt.Errorf("%w of user %q with %s at %s: %w", ErrCredentials, credentials.User, mechanism.Name(), c.addr, err)
	}
	return nil
}

func (c *conn) close() error {
	c.broken.Store(true)
	return ignoreClosed(c.pc.Close())
}

// do runs what reads and writes, within a time. Whatever fails leaves the connection out of step, so it is closed.
func (c *conn) do(ctx context.Context, timeout time.Duration, run func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.pc.SetDeadline(time.Now().Add(timeout)); err != nil {
		return errors.Join(err, c.close())
	}
	stop := context.AfterFunc(ctx, func() { c.pc.SetDeadline(time.Unix(1, 0)) })
	err := run()
	if !stop() || err != nil {
		closed := c.close()
		switch {
		case err == nil:
			return nil // the answer came before the cancellation
		case ctx.Err() != nil:
			return ctx.Err()
		}
		return errors.Join(err, closed)
	}
	return nil
}

// roundTrip sends one of kafka-go's messages.
func (c *conn) roundTrip(ctx context.Context, req protocol.Message) (res protocol.Message, err error) {
	if _, ok := c.versions[req.ApiKey()]; !ok {
		return nil, fmt.Errorf("broker %s does not have the request %s", c.addr, req.ApiKey())
	}
	err = c.do(ctx, c.timeout, func() error {
		res, err = c.pc.RoundTrip(req)
		return err
	})
	return res, err
}

// version returns the greatest version that the broker has and is one of ours; false: there is none.
func (c *conn) version(key protocol.ApiKey, ours ...int16) (int16, bool) {
	broker, ok := c.versions[key]
	slices.Sort(ours)
	for _, v := range slices.Backward(ours) {
		if ok && broker[0] <= v && v <= broker[1] {
			return v, true
		}
	}
	return 0, false
}

// exchange sends a request whose body build writes, and returns its answer, which is valid until the next exchange.
func (c *conn) exchange(ctx context.Context, key protocol.ApiKey, version int16, flexible bool, wait time.Duration, build func(*writer)) (reader, error) {
	c.id++
	w := writer{b: append(c.request[:0], 0, 0, 0, 0)}
	w.i16(int16(key))
	w.i16(version)
	w.i32(c.id)
	w.text(c.client) // never compact in the header
	w.flexible = flexible
	w.tags()
	build(&w)
	c.request = w.b
	binary.BigEndian.PutUint32(w.b, uint32(len(w.b)-4))
	r := reader{flexible: flexible}
	err := c.do(ctx, c.timeout+wait, func() (err error) {
		if _, err = c.pc.Write(w.b); err == nil {
			r.b, err = c.read()
		}
		return err
	})
	if err != nil {
		return reader{}, err
	}
	if id := r.i32(); id != c.id {
		return reader{}, errors.Join(fmt.Errorf("broker %s answers request %d, expected %d", c.addr, id, c.id), c.close())
	}
	r.tags()
	return r, nil
}

// read reads one answer.
func (c *conn) read() ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(c.pc, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > answerBytesMax {
		return nil, fmt.Errorf("broker %s announces an answer of %d bytes; at most %d are allowed", c.addr, n, answerBytesMax)
	}
	if cap(c.answer) < int(n) {
		c.answer = make([]byte, n)
	}
	c.answer = c.answer[:n]
	_, err := io.ReadFull(c.pc, c.answer)
	return c.answer, err
}
