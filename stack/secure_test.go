package stack

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

// pemFiles makes a certificate of its own and returns the files of it and of its key.
func pemFiles(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name, kind string, der []byte) string {
		return writeFile(t, name, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
	}
	return file("cert.pem", "CERTIFICATE", der), file("key.pem", "EC PRIVATE KEY", text)
}

func TestSecurityComesFromVariables(t *testing.T) {
	clean(t)
	for name, value := range map[string]string{
		envKafka: "k:9093", "WEFT_KAFKA_TLS": "true", "WEFT_KAFKA_CA_FILE": "/ca.pem", "WEFT_KAFKA_SERVER_NAME": "kafka.internal",
		envSASL: "scram-sha-512", envUser: "weft", envPassword + "_FILE": writeFile(t, "password", "hunter2\n"),
		envTemporal: "t:7233", "WEFT_TEMPORAL_CERT_FILE": "/cert.pem", "WEFT_TEMPORAL_KEY_FILE": "/key.pem", envAPIKey: "hunter3",
		envS3: "https://s", envS3CA: "/s3.pem", envAccessKey: "AK", envSecretKey: "hunter4",
	} {
		t.Setenv(name, value)
	}
	a, err := Find(Addresses{KafkaUser: "flag"}, Temporal, Kafka, S3)
	if err != nil {
		t.Fatal(err)
	}
	if want := (TLS{On: true, CAFile: "/ca.pem", ServerName: "kafka.internal"}); a.KafkaTLS != want || a.KafkaSASL != "scram-sha-512" ||
		a.KafkaUser != "flag" || a.KafkaPassword != "hunter2" {
		t.Errorf("Kafka: %+v with password %q", a, string(a.KafkaPassword))
	}
	if want := (TLS{CertFile: "/cert.pem", KeyFile: "/key.pem"}); a.TemporalTLS != want || a.TemporalAPIKey != "hunter3" {
		t.Errorf("Temporal: %+v", a.TemporalTLS)
	}
	if a.S3CAFile != "/s3.pem" || a.S3SecretKey != "hunter4" {
		t.Errorf("S3: %+v", a)
	}
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{string(text), fmt.Sprintf("%v %+v %#v", a, a, a)} {
		if strings.Contains(s, "hunter") || !strings.Contains(s, "kafka.internal") {
			t.Errorf("prints %s", s)
		}
	}
	back := Addresses{}
	if err := json.Unmarshal(text, &back); err != nil || back.KafkaTLS != a.KafkaTLS || back.KafkaUser != "flag" || back.KafkaPasswordFile != a.KafkaPasswordFile {
		t.Errorf("read back: %+v, %v", back, err)
	}
}

func TestSecurityIsThatOfItsServer(t *testing.T) {
	clean(t)
	running(t)
	t.Setenv("WEFT_KAFKA_TLS", "1")
	t.Setenv(envPassword, "hunter2")
	t.Setenv(envS3CA, "/s3.pem")
	t.Setenv(envAPIKey, "hunter3")
	a, err := Find(Addresses{})
	if err != nil {
		t.Fatal(err)
	}
	if a.KafkaTLS != (TLS{}) || a.KafkaPassword != "" || a.S3CAFile != "" || a.TemporalAPIKey != "" {
		t.Errorf("the running stack is reached with what is meant for other servers: %+v", a)
	}
}

func TestContradictionsAreErrors(t *testing.T) {
	for _, c := range []struct{ name, tls, ca, want string }{
		{"no truth value", "yes please", "", `WEFT_KAFKA_TLS="yes please": expected true or false`},
		{"off with a file", "false", "/ca.pem", "drop one of them"},
	} {
		t.Run(c.name, func(t *testing.T) {
			clean(t)
			t.Setenv("WEFT_KAFKA_TLS", c.tls)
			t.Setenv("WEFT_KAFKA_CA_FILE", c.ca)
			if _, err := Find(Addresses{Kafka: "k:9092"}, Kafka); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	clean(t)
	t.Setenv("WEFT_KAFKA_TLS", "false")
	if a, err := Find(Addresses{Kafka: "k:9092"}, Kafka); err != nil || a.KafkaTLS != (TLS{}) {
		t.Errorf("off: %+v, %v", a, err)
	}
}

func TestTLSConfig(t *testing.T) {
	certificate, key := pemFiles(t)
	if c, err := (TLS{}).Config(); c != nil || err != nil {
		t.Errorf("plain: %v, %v", c, err)
	}
	if c, err := (TLS{On: true}).Config(); err != nil || c == nil || c.RootCAs != nil || c.InsecureSkipVerify {
		t.Errorf("on: %+v, %v", c, err)
	}
	c, err := TLS{CAFile: certificate, CertFile: certificate, KeyFile: key, ServerName: "kafka"}.Config()
	if err != nil || c.RootCAs == nil || len(c.Certificates) != 1 || c.ServerName != "kafka" {
		t.Errorf("all: %+v, %v", c, err)
	}
	empty := writeFile(t, "empty.pem", "nothing")
	for _, x := range []struct {
		tls  TLS
		want string
	}{
		{TLS{CAFile: "/nowhere.pem"}, "/nowhere.pem"},
		{TLS{CAFile: empty}, "holds no certificate"},
		{TLS{CertFile: certificate}, "go together"},
		{TLS{CertFile: certificate, KeyFile: empty}, empty},
	} {
		if c, err := x.tls.Config(); c != nil || err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%+v: %v, %v", x.tls, c, err)
		}
	}
}
