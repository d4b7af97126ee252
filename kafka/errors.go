package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/segmentio/kafka-go"
)

// Class says whose an error is.
type Class string

// The classes of errors.
const (
	User     Class = "user"     // wrong configuration, missing rights or data that is gone: somebody must act
	External Class = "external" // the cluster or the network: the same call may succeed later
	Internal Class = "internal" // what must not happen
)

// What an Error can be, for errors.Is.
var (
	ErrNoTopic        = errors.New("the topic does not exist")
	ErrTopicRecreated = errors.New("the topic was deleted and created again: its offsets mean other records now")
	ErrOffsetGone     = errors.New("offsets are gone")
	ErrUnreachable    = errors.New("no broker can be reached")
	ErrCredentials    = errors.New("the broker refuses the credentials")
	ErrNotAllowed     = errors.New("the user lacks a right")
	ErrCorrupt        = errors.New("the record batch is damaged")
	ErrTooLarge       = errors.New("the record is larger than the topic allows")
)

// Error is an error of this package. It never holds a password.
type Error struct {
	Op    string // what was being done: fetch pay.orders/3 at offset 7
	Class Class
	Hint  string // what to do about it; may be empty
	Err   error
}

// Error says what was being done, what went wrong and what to do about it.
func (e *Error) Error() string {
	text := e.Op + ": " + e.Err.Error()
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// Unwrap returns what went wrong.
func (e *Error) Unwrap() error { return e.Err }

// Retryable tells whether the same call may succeed later.
func (e *Error) Retryable() bool { return e.Class == External }

// OffsetGoneError says which offsets a partition has no longer, or not yet.
type OffsetGoneError struct {
	Topic      string
	Partition  int32
	Wanted     int64
	Start, End int64 // the partition holds offsets from Start to before End
}

// Error says which offsets are missing.
func (e *OffsetGoneError) Error() string {
	if e.Wanted > e.End {
		return fmt.Sprintf("%s/%d ends at offset %d, before the wanted %d", e.Topic, e.Partition, e.End, e.Wanted)
	}
	return fmt.Sprintf("%s/%d starts at offset %d: offsets %d to %d are gone", e.Topic, e.Partition, e.Start, e.Wanted, e.Start-1)
}

// Is makes the error an ErrOffsetGone.
func (e *OffsetGoneError) Is(target error) bool { return target == ErrOffsetGone }

func (e *OffsetGoneError) hint() string {
	if e.Wanted > e.End {
		return "the topic was recreated, or an unclean leader election lost records; start from the archive or from an offset of today"
	}
	return "retention or a deletion was faster than the reader; replay them from the archive, or raise retention.ms of the topic"
}

// codeError is an error code in a broker's answer, with its message where there is one.
type codeError struct {
	code kafka.Error
	text string
}

func (e codeError) Error() string {
	title := "broker error: " + e.code.Title()
	if e.text != "" {
		title += ": " + e.text
	}
	return title
}

// codeErr returns the error of a code; nil for 0.
func codeErr(code int16, text string) error {
	if code == 0 {
		return nil
	}
	return codeError{kafka.Error(code), text}
}

// Where a connection broke off.
var (
	errDial   = errors.New("connect")
	errTLS    = errors.New("TLS handshake")
	errHungUp = errors.New("the broker hung up while it checked the credentials")
)

// explain makes an Error of whatever a call returned. Cancellation stays what it is.
func explain(op string, err error) error {
	var done *Error
	if err == nil || errors.As(err, &done) || errors.Is(err, context.Canceled) {
		return err
	}
	e := &Error{Op: op, Class: External, Err: err}
	var code codeError
	var gone *OffsetGoneError
	switch {
	case errors.As(err, &gone):
		e.Class, e.Hint = User, gone.hint()
	case errors.Is(err, ErrCredentials):
		e.Class, e.Hint = User, "check the user, the password and the mechanism"
	case errors.As(err, &code):
		e.fromCode(code)
	case errors.Is(err, ErrNoTopic):
		e.Class, e.Hint = User, "create it, or check the name in the spec"
	case errors.Is(err, ErrTopicRecreated):
		e.Class, e.Hint = User, "start the job anew from the archive, or from the start of the topic"
	case errors.Is(err, ErrCorrupt):
		e.Class, e.Hint = User, "check the broker's disks; to go on without it, start from the offset behind it"
	case errors.Is(err, ErrTooLarge):
		e.Class, e.Hint = User, "raise max.message.bytes of the topic"
	default:
		e.fromNetwork()
	}
	return e
}

func (e *Error) fromCode(code codeError) {
	switch code.code {
	case kafka.UnknownTopicOrPartition, kafka.UnknownTopicID:
		e.Err, e.Class, e.Hint = fmt.Errorf("%w: %w", ErrNoTopic, code), User, "create it, or check the name in the spec"
	case kafka.InconsistentTopicID:
		e.Err, e.Class = fmt.Errorf("%w: %w", ErrTopicRecreated, code), User
	case kafka.TopicAuthorizationFailed, kafka.GroupAuthorizationFailed, kafka.ClusterAuthorizationFailed:
		e.Err, e.Class, e.Hint = fmt.Errorf("%w: %w", ErrNotAllowed, code), User, "give the user the right in the cluster's ACLs"
	case kafka.SASLAuthenticationFailed, kafka.UnsupportedSASLMechanism, kafka.IllegalSASLState:
		e.Err, e.Class = fmt.Errorf("%w: %w", ErrCredentials, code), User
	case kafka.MessageSizeTooLarge, kafka.RecordListTooLarge:
		e.Err, e.Class, e.Hint = fmt.Errorf("%w: %w", ErrTooLarge, code), User, "raise max.message.bytes of the topic"
	case kafka.InvalidMessage:
		e.Err, e.Class = fmt.Errorf("%w: %w", ErrCorrupt, code), User
	case kafka.NotEnoughReplicas, kafka.NotEnoughReplicasAfterAppend:
		e.Hint = "brokers of the topic are down: fewer replicas are in sync than min.insync.replicas"
	case kafka.InvalidTopic, kafka.InvalidPartitionNumber, kafka.InvalidReplicationFactor, kafka.InvalidConfiguration,
		kafka.PolicyViolation, kafka.UnsupportedVersion, kafka.UnsupportedCompressionType, kafka.InvalidTimestamp,
		kafka.InvalidRecord, kafka.InvalidRequest, kafka.TopicAlreadyExists, kafka.InvalidGroupId:
		e.Class = User
	}
}

func (e *Error) fromNetwork() {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var dns *net.DNSError
	switch {
	case errors.As(e.Err, &unknown):
		e.Class, e.Hint = User, "the broker's certificate is signed by an authority that is not trusted here: name its CA file"
	case errors.As(e.Err, &host), errors.As(e.Err, &invalid):
		e.Class, e.Hint = User, "the broker's certificate is not for that name or time"
	case errors.As(e.Err, &record):
		e.Class, e.Hint = User, "the broker does not speak TLS on that port"
	case errors.As(e.Err, &alert):
		e.Class, e.Hint = User, "the broker refused the TLS handshake: it may want a client certificate"
	case errors.As(e.Err, &dns):
		e.Err, e.Hint = fmt.Errorf("%w: %w", ErrUnreachable, e.Err), "the name does not resolve: check --kafka, and advertised.listeners of the brokers"
	case errors.Is(e.Err, errTLS):
		e.Err, e.Hint = fmt.Errorf("%w: %w", ErrUnreachable, e.Err), "does the broker speak TLS on that port?"
	case errors.Is(e.Err, errHungUp):
		e.Err, e.Hint = fmt.Errorf("%w: %w", ErrUnreachable, e.Err), "check the user, the password and the mechanism"
	case errors.Is(e.Err, errDial) && (errors.Is(e.Err, io.EOF) || errors.Is(e.Err, io.ErrUnexpectedEOF)):
		e.Err, e.Hint = fmt.Errorf("%w: %w", ErrUnreachable, e.Err), "something closed the connection at once: is it a Kafka broker, and does it want TLS?"
	case errors.Is(e.Err, errDial):
		e.Err, e.Hint = fmt.Errorf("%w: %w", ErrUnreachable, e.Err), "is Kafka running, and is the address right?"
	case errors.Is(e.Err, io.EOF), errors.Is(e.Err, io.ErrUnexpectedEOF):
		e.Hint = "the broker closed the connection: it is going down, or it wants credentials"
	case errors.Is(e.Err, os.ErrDeadlineExceeded):
		e.Hint = "the broker did not answer in time"
	}
}
