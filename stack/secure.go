package stack

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// Secret is text that prints as asterisks.
type Secret string

// String hides the secret.
func (s Secret) String() string { return "***" }

// GoString hides the secret.
func (s Secret) GoString() string { return "***" }

// MarshalText hides the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte("***"), nil }

// TLS says how to reach a server by TLS. The zero value is a plain connection; a file that is named implies On.
type TLS struct {
	On         bool   `json:"on,omitempty"`
	CAFile     string `json:"ca_file,omitempty"`     // PEM: authorities that sign the server's certificate; empty: the machine's
	CertFile   string `json:"cert_file,omitempty"`   // PEM: the client's own certificate, where the server asks for one
	KeyFile    string `json:"key_file,omitempty"`    // PEM: its key
	ServerName string `json:"server_name,omitempty"` // name in the server's certificate; empty: the host that is called
}

// addVariables fills what is empty from the variables WEFT_KAFKA_TLS, WEFT_KAFKA_CA_FILE and so on.
func (t *TLS) addVariables(server string) error {
	for _, v := range []struct {
		to   *string
		name string
	}{
		{&t.CAFile, server + "_CA_FILE"}, {&t.CertFile, server + "_CERT_FILE"}, {&t.KeyFile, server + "_KEY_FILE"},
		{&t.ServerName, server + "_SERVER_NAME"},
	} {
		if *v.to == "" {
			*v.to = os.Getenv(v.name)
		}
	}
	name := server + "_TLS"
	text := os.Getenv(name)
	if text == "" || t.On {
		return nil
	}
	on, err := strconv.ParseBool(text)
	if err != nil {
		return fmt.Errorf("%s=%q: expected true or false", name, text)
	}
	if !on && *t != (TLS{}) {
		return fmt.Errorf("%s is %s, but %s_CA_FILE or another variable of TLS is set: drop one of them", name, text, server)
	}
	t.On = on
	return nil
}

// Config reads the files and returns the configuration of a client; nil for a plain connection.
func (t TLS) Config() (*tls.Config, error) {
	if t == (TLS{}) {
		return nil, nil
	}
	cfg := &tls.Config{ServerName: t.ServerName, MinVersion: tls.VersionTLS12}
	var errs []error
	if t.CAFile != "" {
		var err error
		cfg.RootCAs, err = readAuthorities(t.CAFile)
		errs = append(errs, err)
	}
	switch {
	case (t.CertFile == "") != (t.KeyFile == ""):
		errs = append(errs, errors.New("TLS: a certificate file and a key file go together"))
	case t.CertFile != "":
		own, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("TLS certificate %s with key %s: %w", t.CertFile, t.KeyFile, err))
		}
		cfg.Certificates = []tls.Certificate{own}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return cfg, nil
}

func readAuthorities(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("TLS authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("TLS authorities: %s holds no certificate in PEM", file)
	}
	return pool, nil
}
