// Package stack tells where the servers are that Weft uses: Temporal, Kafka, the object store and the serving store.
// They are named by flags or variables, or they are those of an embedded stack that runs on this machine and says so in
// a file.
package stack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Names that hold where nothing else is said.
const (
	DefaultNamespace = "default"
	DefaultBucket    = "weft"
)

// Addresses names every server. Its JSON form is one object whose keys are a contract; it never holds a secret.
type Addresses struct {
	Temporal    string `json:"temporal"` // host:port of the frontend
	Namespace   string `json:"namespace"`
	TemporalTLS TLS    `json:"temporal_tls,omitzero"`
	// One key in a file, or from a variable; empty: none is needed.
	TemporalAPIKeyFile string `json:"temporal_api_key_file,omitempty"`
	TemporalAPIKey     Secret `json:"-"`

	Kafka             string `json:"kafka"` // host:port of a broker; several are separated by commas
	KafkaTLS          TLS    `json:"kafka_tls,omitzero"`
	KafkaSASL         string `json:"kafka_sasl,omitempty"` // plain, scram-sha-256 or scram-sha-512; empty: no credentials
	KafkaUser         string `json:"kafka_user,omitempty"`
	KafkaPasswordFile string `json:"kafka_password_file,omitempty"`
	KafkaPassword     Secret `json:"-"`

	S3       string `json:"s3"` // http://host:port or https://host:port
	S3Bucket string `json:"s3_bucket"`
	S3CAFile string `json:"s3_ca_file,omitempty"` // authorities that sign its certificate; empty: those of the machine
	// Each file holds one key and nothing else.
	S3AccessKeyFile string `json:"s3_access_key_file,omitempty"`
	S3SecretKeyFile string `json:"s3_secret_key_file,omitempty"`
	// The keys themselves, from a variable or from the files.
	S3AccessKey string `json:"-"`
	S3SecretKey Secret `json:"-"`

	Store string `json:"store"` // sqlite:PATH or postgres://…

	Data string `json:"data,omitempty"` // the folder of an embedded stack
	PID  int    `json:"pid,omitempty"`  // and its process
}

// RunningFile returns the file in which a running embedded stack says where it is: $WEFT_STACK_FILE, or one in the
// user's cache folder.
func RunningFile() (string, error) {
	if name := os.Getenv(envFile); name != "" {
		return filepath.Abs(name)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder to say where a running stack is (set %s): %w", envFile, err)
	}
	return filepath.Join(dir, "weft", "stack.json"), nil
}

// Write replaces a file of addresses in one step, so that a reader sees the old or the new ones. Its folder is made.
func Write(name string, a Addresses) (err error) {
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, filepath.Base(name)+".*") // readable by its owner alone
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(append(text, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// Read returns the addresses in a file. It does not ask whether anyone answers there.
func Read(name string) (a Addresses, err error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return Addresses{}, fmt.Errorf("%s: %w", name, err)
	}
	return a, nil
}

// Remove deletes a file of addresses if it names this process: the file of a stack that was started since stays.
func Remove(name string, pid int) error {
	a, err := Read(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && a.PID != pid {
		return nil
	}
	return errors.Join(err, os.Remove(name))
}
