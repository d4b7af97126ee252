package workers

import (
	"context"
	"errors"
	"slices"
	"strings"

	"go.temporal.io/sdk/client"

	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/store"
)

// Env holds connections to the servers of a stack. What was not asked for is nil.
type Env struct {
	At      stack.Addresses
	Store   *store.Store
	Objects objstore.Store
	Kafka   *kafka.Client
}

// OpenEnv connects to the servers that are needed: of Kafka, the object store and the serving store. The object store is
// probed: one that ignores conditions on writes is refused.
func OpenEnv(ctx context.Context, at stack.Addresses, need ...stack.Server) (e *Env, err error) {
	e = &Env{At: at}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
			e = nil
		}
	}()
	if slices.Contains(need, stack.Kafka) {
		if e.Kafka, err = OpenKafka(at, kafka.Config{}); err != nil {
			return e, err
		}
	}
	if slices.Contains(need, stack.S3) {
		s3, err := objstore.Open(objstore.Config{
			Endpoint: at.S3, Bucket: at.S3Bucket, CAFile: at.S3CAFile,
			AccessKey: at.S3AccessKey, SecretKey: objstore.Secret(at.S3SecretKey),
		})
		if err != nil {
			return e, err
		}
		e.Objects = s3
		if err := objstore.Probe(ctx, s3); err != nil {
			return e, err
		}
	}
	if slices.Contains(need, stack.Store) {
		if e.Store, err = store.Open(ctx, at.Store, store.Options{}); err != nil {
			return e, err
		}
	}
	return e, nil
}

// OpenKafka returns a client of the brokers of a stack, with their TLS and credentials. What cfg says beside these holds.
// It connects when it has something to ask.
func OpenKafka(at stack.Addresses, cfg kafka.Config) (*kafka.Client, error) {
	cfg.Brokers = kafka.ParseBrokers(at.Kafka)
	cfg.SASL = kafka.SASL{Mechanism: strings.ToLower(at.KafkaSASL), User: at.KafkaUser, Password: kafka.Secret(at.KafkaPassword)}
	var err error
	if cfg.TLS, err = at.KafkaTLS.Config(); err != nil {
		return nil, &kafka.Error{Op: "connect to Kafka", Class: kafka.User, Err: err}
	}
	return kafka.New(cfg)
}

// secureTemporal adds TLS and an API key to the options of a client. A key is never sent over a plain connection, so it
// implies TLS.
func secureTemporal(at stack.Addresses, o *client.Options) error {
	if at.TemporalAPIKey != "" {
		at.TemporalTLS.On = true
		o.Credentials = client.NewAPIKeyStaticCredentials(string(at.TemporalAPIKey))
	}
	var err error
	o.ConnectionOptions.TLS, err = at.TemporalTLS.Config()
	return err
}

// Close closes all connections.
func (e *Env) Close() error {
	var errs []error
	if e.Kafka != nil {
		errs = append(errs, e.Kafka.Close())
	}
	if s3, ok := e.Objects.(*objstore.S3); ok && s3 != nil {
		errs = append(errs, s3.Close())
	}
	if e.Store != nil {
		errs = append(errs, e.Store.Close())
	}
	return errors.Join(errs...)
}
