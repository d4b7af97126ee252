package workers

import (
	"context"
	"errors"
	"slices"

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
		if e.Kafka, err = kafka.New(kafka.Config{Brokers: kafka.ParseBrokers(at.Kafka)}); err != nil {
			return e, err
		}
	}
	if slices.Contains(need, stack.S3) {
		s3, err := objstore.Open(objstore.Config{
			Endpoint: at.S3, Bucket: at.S3Bucket, AccessKey: at.S3AccessKey, SecretKey: objstore.Secret(at.S3SecretKey),
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
