package kafka

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
)

// mechanism returns kafka-go's form of the credentials; nil where there are none.
func (s SASL) mechanism() (sasl.Mechanism, error) {
	var m sasl.Mechanism
	switch s.Mechanism {
	case "":
		if s.User != "" || s.Password != "" {
			return nil, errors.New("a user or password without a SASL mechanism: expected plain, scram-sha-256 or scram-sha-512")
		}
		return nil, nil
	case "plain":
		m = plain.Mechanism{Username: s.User, Password: string(s.Password)}
	case "scram-sha-256":
		m = scram{name: "SCRAM-SHA-256", hash: sha256.New, user: s.User, password: s.Password, nonce: rand.Text}
	case "scram-sha-512":
		m = scram{name: "SCRAM-SHA-512", hash: sha512.New, user: s.User, password: s.Password, nonce: rand.Text}
	default:
		return nil, fmt.Errorf("SASL mechanism %q: expected plain, scram-sha-256 or scram-sha-512", s.Mechanism)
	}
	if s.User == "" {
		return nil, errors.New("SASL needs a user")
	}
	return m, nil
}

// scram is the mechanism of RFC 5802: the password is never sent, and the broker proves that it knows it too.
type scram struct {
	name     string
	hash     func() hash.Hash
	user     string
	password Secret
	nonce    func() string
}

// Bounds of the rounds that a broker may ask for: fewer give the password away, more hold the client up.
const (
	roundsMin = 4096
	roundsMax = 1 << 20
)

// Name is the mechanism's name in the protocol.
func (s scram) Name() string { return s.name }

// Start begins one authentication.
func (s scram) Start(context.Context) (sasl.StateMachine, []byte, error) {
	user := strings.NewReplacer("=", "=3D", ",", "=2C").Replace(s.user)
	c := &scramClient{scram: s, clientNonce: s.nonce()}
	c.first = "n=" + user + ",r=" + c.clientNonce
	return c, []byte("n,," + c.first), nil
}

type scramClient struct {
	scram
	clientNonce string
	first       string
	server      []byte // the signature that the broker must send; nil before the first answer
}

// Next answers what the broker said.
func (c *scramClient) Next(_ context.Context, said []byte) (done bool, say []byte, err error) {
	if c.server != nil {
		return true, nil, c.check(said)
	}
	say, err = c.prove(string(said))
	return false, say, err
}

// prove answers the broker's salt with a proof of the password.
func (c *scramClient) prove(said string) ([]byte, error) {
	nonce, salt, rounds, err := parseChallenge(said)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(nonce, c.clientNonce) || len(nonce) == len(c.clientNonce) {
		return nil, errors.New("the broker's nonce does not continue ours")
	}
	salted, err := pbkdf2.Key(c.hash, string(c.password), salt, rounds, c.hash().Size())
	if err != nil {
		return nil, err
	}
	final := "c=biws,r=" + nonce // biws is base64 of "n,,"
	message := c.first + "," + said + "," + final
	clientKey := c.mac(salted, "Client Key")
	stored := c.hash()
	stored.Write(clientKey)
	proof := c.mac(stored.Sum(nil), message)
	subtle.XORBytes(proof, proof, clientKey)
	c.server = c.mac(c.mac(salted, "Server Key"), message)
	return []byte(final + ",p=" + base64.StdEncoding.EncodeToString(proof)), nil
}

func (c *scramClient) mac(key []byte, message string) []byte {
	h := hmac.New(c.hash, key)
	h.Write([]byte(message))
	return h.Sum(nil)
}

func (c *scramClient) check(said []byte) error {
	text, found := strings.CutPrefix(string(said), "v=")
	if !found {
		return fmt.Errorf("the broker answered %q", said)
	}
	signature, err := base64.StdEncoding.DecodeString(text)
	if err != nil || subtle.ConstantTimeCompare(signature, c.server) != 1 {
		return errors.New("the broker could not prove that it knows the password")
	}
	return nil
}

// parseChallenge reads "r=nonce,s=salt,i=rounds".
func parseChallenge(text string) (nonce string, salt []byte, rounds int, err error) {
	parts := strings.Split(text, ",")
	if len(parts) < 3 || !strings.HasPrefix(parts[0], "r=") || !strings.HasPrefix(parts[1], "s=") || !strings.HasPrefix(parts[2], "i=") {
		return "", nil, 0, errors.New("the broker's challenge is malformed")
	}
	if salt, err = base64.StdEncoding.DecodeString(parts[1][2:]); err != nil || len(salt) == 0 {
		return "", nil, 0, errors.New("the broker's salt is malformed")
	}
	rounds, err = strconv.Atoi(parts[2][2:])
	if err != nil || rounds < roundsMin || rounds > roundsMax {
		return "", nil, 0, fmt.Errorf("the broker asks for %q rounds; expected %d to %d", parts[2][2:], roundsMin, roundsMax)
	}
	return parts[0][2:], salt, rounds, nil
}
