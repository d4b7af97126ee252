package stack

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
)

// The variables that name servers and how to connect to them. A key or password can also be in a file that the variable
// with _FILE names.
const (
	envTemporal  = "WEFT_TEMPORAL"
	envNamespace = "WEFT_NAMESPACE"
	envAPIKey    = "WEFT_TEMPORAL_API_KEY"
	envKafka     = "WEFT_KAFKA"
	envSASL      = "WEFT_KAFKA_SASL"
	envUser      = "WEFT_KAFKA_USER"
	envPassword  = "WEFT_KAFKA_PASSWORD"
	envS3        = "WEFT_S3"
	envBucket    = "WEFT_S3_BUCKET"
	envS3CA      = "WEFT_S3_CA_FILE"
	envAccessKey = "WEFT_S3_ACCESS_KEY"
	envSecretKey = "WEFT_S3_SECRET_KEY"
	envStore     = "WEFT_STORE"
	envFile      = "WEFT_STACK_FILE"
)

// aliveTimeout bounds the wait for one server of a stack that should be running on this machine.
const aliveTimeout = 2 * time.Second

// Server is one of the servers that a command may need.
type Server string

// The servers.
const (
	Temporal Server = "Temporal"
	Kafka    Server = "Kafka"
	S3       Server = "the object store"
	Store    Server = "the serving store"
)

// ErrNotFound is in every error that says that a server is named nowhere.
var ErrNotFound = errors.New("not found")

// Find returns the addresses of the servers that a command needs, or of all of them. What a flag says wins over a
// variable. If neither names any server, those of the running stack are taken; if they name some, the others are not
// taken from it, so that nobody runs half on a production system and half on his own machine by mistake. Setting
// WEFT_STACK_FILE says that a mixture is meant.
func Find(flags Addresses, need ...Server) (Addresses, error) {
	if len(need) == 0 {
		need = []Server{Temporal, Kafka, S3, Store}
	}
	a := flags
	if err := a.addVariables(); err != nil {
		return Addresses{}, err
	}
	named := a.Temporal != "" || a.Kafka != "" || a.S3 != "" || a.Store != ""
	var running error
	if len(a.missing(need)) > 0 && (!named || os.Getenv(envFile) != "") {
		running = a.addRunning()
	}
	if a.Namespace == "" {
		a.Namespace = DefaultNamespace
	}
	if a.S3Bucket == "" {
		a.S3Bucket = DefaultBucket
	}
	if missing := a.missing(need); len(missing) > 0 {
		return Addresses{}, notFound(missing, named, running)
	}
	return a, nil
}

// addVariables fills what is empty from the environment.
func (a *Addresses) addVariables() error {
	for _, v := range []struct {
		to   *string
		name string
	}{
		{&a.Temporal, envTemporal}, {&a.Namespace, envNamespace}, {&a.Kafka, envKafka}, {&a.KafkaSASL, envSASL},
		{&a.KafkaUser, envUser}, {&a.S3, envS3}, {&a.S3Bucket, envBucket}, {&a.S3CAFile, envS3CA}, {&a.Store, envStore},
	} {
		if *v.to == "" {
			*v.to = os.Getenv(v.name)
		}
	}
	return errors.Join(
		a.TemporalTLS.addVariables(envTemporal),
		a.KafkaTLS.addVariables(envKafka),
		addKey(&a.TemporalAPIKey, &a.TemporalAPIKeyFile, envAPIKey),
		addKey(&a.KafkaPassword, &a.KafkaPasswordFile, envPassword),
		a.addS3Keys())
}

func (a *Addresses) addS3Keys() error {
	return errors.Join(
		addKey(&a.S3AccessKey, &a.S3AccessKeyFile, envAccessKey),
		addKey(&a.S3SecretKey, &a.S3SecretKeyFile, envSecretKey))
}

// addKey fills an empty key from its variable, or from the file that a flag or a variable names.
func addKey[T ~string](key *T, file *string, name string) error {
	if *key == "" && *file == "" {
		*key, *file = T(os.Getenv(name)), os.Getenv(name+"_FILE")
	}
	if *key != "" || *file == "" {
		return nil
	}
	text, err := os.ReadFile(*file)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if *key = T(strings.TrimSpace(string(text))); *key == "" {
		return fmt.Errorf("%s: %s is empty", name, *file)
	}
	return nil
}

// addRunning fills what is empty from the running stack. Keys and TLS belong to a server, so they are taken with it or not
// at all.
func (a *Addresses) addRunning() error {
	r, err := Running()
	if err != nil {
		return err
	}
	if a.S3 == "" {
		a.S3, a.S3AccessKey, a.S3AccessKeyFile, a.S3SecretKey, a.S3SecretKeyFile =
			r.S3, r.S3AccessKey, r.S3AccessKeyFile, r.S3SecretKey, r.S3SecretKeyFile
		a.S3Bucket, a.S3CAFile = first(a.S3Bucket, r.S3Bucket), r.S3CAFile
	}
	if a.Temporal == "" {
		a.Temporal, a.Namespace = r.Temporal, first(a.Namespace, r.Namespace)
		a.TemporalTLS, a.TemporalAPIKey, a.TemporalAPIKeyFile = r.TemporalTLS, "", ""
	}
	if a.Kafka == "" {
		a.Kafka, a.KafkaTLS, a.KafkaSASL, a.KafkaUser = r.Kafka, r.KafkaTLS, r.KafkaSASL, r.KafkaUser
		a.KafkaPassword, a.KafkaPasswordFile = "", ""
	}
	a.Store = first(a.Store, r.Store)
	a.Data, a.PID = r.Data, r.PID
	return nil
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// Running returns the embedded stack that runs on this machine, with its keys. Its file stays behind when its process
// is killed, so every server is called once. Where no stack ever said that it runs, the error is fs.ErrNotExist.
func Running() (Addresses, error) {
	name, err := RunningFile()
	if err != nil {
		return Addresses{}, err
	}
	a, err := Read(name)
	if err != nil {
		return Addresses{}, err
	}
	s3, err := url.Parse(a.S3)
	if err != nil {
		return Addresses{}, fmt.Errorf("%s: %w", name, err)
	}
	for _, addr := range []string{a.Temporal, a.Kafka, s3.Host} {
		conn, err := net.DialTimeout("tcp", addr, aliveTimeout)
		if err != nil {
			return Addresses{}, fmt.Errorf("the stack of %s is not running, though %s says so: %w", a.Data, name, err)
		}
		_ = conn.Close() // it was only opened to see that someone listens
	}
	return a, a.addS3Keys()
}

// missing names what a command needs and nobody has said, each with the variable that would say it.
func (a *Addresses) missing(need []Server) (missing []string) {
	for _, s := range need {
		var what []string
		add := func(value string, names ...string) {
			if value == "" {
				what = append(what, names...)
			}
		}
		switch s {
		case Temporal:
			add(a.Temporal, envTemporal)
		case Kafka:
			add(a.Kafka, envKafka)
		case S3:
			add(a.S3, envS3)
			add(a.S3AccessKey, envAccessKey)
			add(string(a.S3SecretKey), envSecretKey)
		case Store:
			add(a.Store, envStore)
		}
		if len(what) > 0 {
			missing = append(missing, fmt.Sprintf("%s (%s)", s, strings.Join(what, ", ")))
		}
	}
	return missing
}

func notFound(missing []string, named bool, running error) error {
	what := strings.Join(missing, "; ")
	switch {
	case running != nil && !errors.Is(running, fs.ErrNotExist):
		return fmt.Errorf("%w: %s: %w", ErrNotFound, what, running)
	case named:
		return fmt.Errorf("%w: %s; other servers are named, so those of a stack that runs on this machine are not "+
			"taken: name these too, or set %s to its stack.json", ErrNotFound, what, envFile)
	default:
		return fmt.Errorf("%w: %s; no stack is running on this machine: start one with `weft-dev up --data DIR` "+
			"(cd devstack && go run ./cmd/weft-dev up --data DIR), or name the servers by these variables", ErrNotFound, what)
	}
}

// Variables returns the variables that say what a does, for another process. Secrets that are not in a file are left out.
func (a *Addresses) Variables() (list []string) {
	for _, v := range [][2]string{
		{envTemporal, a.Temporal}, {envNamespace, a.Namespace}, {envKafka, a.Kafka}, {envSASL, a.KafkaSASL}, {envUser, a.KafkaUser},
		{envPassword + "_FILE", a.KafkaPasswordFile}, {envKafka + "_CA_FILE", a.KafkaTLS.CAFile}, {envS3, a.S3}, {envBucket, a.S3Bucket},
		{envS3CA, a.S3CAFile}, {envAccessKey + "_FILE", a.S3AccessKeyFile}, {envSecretKey + "_FILE", a.S3SecretKeyFile}, {envStore, a.Store},
	} {
		if v[1] != "" {
			list = append(list, v[0]+"="+v[1])
		}
	}
	if a.KafkaTLS.On {
		list = append(list, envKafka+"_TLS=true")
	}
	return list
}
