package kafka

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
)

func TestConfigReportsEverything(t *testing.T) {
	_, err := New(Config{Brokers: []string{"localhost"}, SASL: SASL{Mechanism: "gssapi", User: "ann"}, MaxWait: -time.Second})
	for _, want := range []string{`broker "localhost": expected host:port`, `SASL mechanism "gssapi"`, "max wait -1s"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	for _, c := range []SASL{{User: "ann"}, {Mechanism: "plain"}, {Mechanism: "scram-sha-256", Password: "x"}} {
		if _, err := New(Config{Brokers: []string{"a:1"}, SASL: c}); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	c := Config{SASL: SASL{User: "ann", Password: "hunter2"}}
	text, err := json.Marshal(c.SASL)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(c), fmt.Sprintf("%+v %#v %q", c, c, c.SASL.Password), string(text)} {
		if strings.Contains(s, "hunter2") || !strings.Contains(s, "ann") {
			t.Errorf("prints %s", s)
		}
	}
}

// The example of RFC 7677, section 3.
func TestScram(t *testing.T) {
	m, err := SASL{Mechanism: "scram-sha-256", User: "user", Password: "pencil"}.mechanism()
	if err != nil {
		t.Fatal(err)
	}
	s := m.(scram)
	s.nonce = func() string { return "rOprNGfwEbeRWgbNEkqO" }
	state, say, err := s.Start(t.Context())
	if err != nil || string(say) != "n,,n=user,r=rOprNGfwEbeRWgbNEkqO" {
		t.Fatalf("first %q, %v", say, err)
	}
	const challenge = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
	done, say, err := state.Next(t.Context(), []byte(challenge))
	if want := "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="; done || err != nil || string(say) != want {
		t.Fatalf("proof %q, %v", say, err)
	}
	if done, _, err = state.Next(t.Context(), []byte("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")); !done || err != nil {
		t.Errorf("signature: %v, %v", done, err)
	}
	if _, _, err = state.Next(t.Context(), []byte("v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")); err == nil {
		t.Error("a wrong signature is accepted")
	}
}

func TestScramRefusesBadBrokers(t *testing.T) {
	for _, said := range []string{"", "r=abc", "r=other,s=QUJD,i=4096", "r=mine,s=QUJD,i=4096", "r=mine1,s=QUJD,i=1", "r=mine1,s=QUJD,i=99999999999",
		"r=mine1,s=,i=4096", "r=mine1,s=!,i=4096", "e=other-error"} {
		c := scramClient{scram: scram{hash: nil}, clientNonce: "mine"}
		if say, err := c.prove(said); err == nil {
			t.Errorf("%q is answered with %q", said, say)
		}
	}
}

func TestErrorClasses(t *testing.T) {
	for _, c := range []struct {
		err   error
		is    error
		retry bool
	}{
		{codeErr(int16(kafka.UnknownTopicOrPartition), ""), ErrNoTopic, false},
		{codeErr(int16(kafka.TopicAuthorizationFailed), ""), ErrNotAllowed, false},
		{codeErr(int16(kafka.SASLAuthenticationFailed), ""), ErrCredentials, false},
		{codeErr(int16(kafka.MessageSizeTooLarge), ""), ErrTooLarge, false},
		{codeErr(int16(kafka.NotLeaderForPartition), ""), nil, true},
		{codeErr(int16(kafka.NotEnoughReplicas), ""), nil, true},
		{codeErr(int16(kafka.ThrottlingQuotaExceeded), ""), nil, true},
		{&OffsetGoneError{"pay", 0, 3, 7, 9}, ErrOffsetGone, false},
		{fmt.Errorf("%w: x", ErrCredentials), ErrCredentials, false},
		{fmt.Errorf("%w: connection refused", errDial), ErrUnreachable, true},
		{errors.New("connection reset"), nil, true},
	} {
		var e *Error
		if err := explain("op", c.err); !errors.As(err, &e) || e.Retryable() != c.retry || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%v: %v, retryable %v", c.err, err, e.Retryable())
		}
	}
	if err := explain("op", fmt.Errorf("x: %w", context.Canceled)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancellation is %v", err)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02"), int16(13))
	f.Add([]byte{}, int16(4))
	f.Fuzz(func(t *testing.T, p []byte, version int16) {
		version = 4 + max(version, -version)%10
		fetcher := answered(0, 0)
		r := reader{b: p, flexible: version >= 12}
		if err := fetcher.response(&r, version); err == nil && fetcher.end.Start > 0 {
			t.Errorf("offsets before %d are skipped", fetcher.end.Start)
		}
	})
}

func TestTopicID(t *testing.T) {
	id := TopicID{1, 15: 255}
	back, err := ParseTopicID(id.String())
	if err != nil || back != id {
		t.Errorf("%v is read back as %v, %v", id, back, err)
	}
	if none, err := ParseTopicID(TopicID{}.String()); err != nil || none != (TopicID{}) {
		t.Errorf("none is %v, %v", none, err)
	}
	for _, text := range []string{"0", "xx", strings.Repeat("0", 31), strings.Repeat("0", 34)} {
		if _, err := ParseTopicID(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}
