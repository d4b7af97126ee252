package main

import (
	"context"

	"github.com/spf13/pflag"

	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workers"
)

// openObjects connects to the object store alone.
func openObjects(ctx context.Context, flags stack.Addresses) (*workers.Env, error) {
	at, err := stack.Find(flags, stack.S3)
	if err != nil {
		return nil, err
	}
	return workers.OpenEnv(ctx, at, stack.S3)
}

// addKafkaFlags adds the flags that say where Kafka is and how to connect. A password is given by a variable or a file, never
// by a flag: others can read the flags of a process.
func addKafkaFlags(f *pflag.FlagSet, at *stack.Addresses) {
	f.StringVar(&at.Kafka, "kafka", "", "brokers, as host:port,host:port (default $WEFT_KAFKA, or the running stack's)")
	f.BoolVar(&at.KafkaTLS.On, "kafka-tls", false, "connect to Kafka by TLS (default $WEFT_KAFKA_TLS)")
	f.StringVar(&at.KafkaTLS.CAFile, "kafka-ca-file", "", "PEM file of the authorities that sign the brokers' certificates (default $WEFT_KAFKA_CA_FILE, or the machine's)")
	f.StringVar(&at.KafkaSASL, "kafka-sasl", "", "plain, scram-sha-256 or scram-sha-512 (default $WEFT_KAFKA_SASL)")
	f.StringVar(&at.KafkaUser, "kafka-user", "", "user (default $WEFT_KAFKA_USER)")
	f.StringVar(&at.KafkaPasswordFile, "kafka-password-file", "", "file with the password (default $WEFT_KAFKA_PASSWORD_FILE; $WEFT_KAFKA_PASSWORD holds the password itself)")
}
