package stack

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// listen opens a port that stands for a server, closed at the end of the test.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // a test may have closed it
	return l
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// running makes a stack that answers, and returns what its file says and the listener of its Kafka. The file lies where
// the user's stack is looked for.
func running(t *testing.T) (Addresses, net.Listener) {
	t.Helper()
	kafka := listen(t)
	a := Addresses{
		Temporal: listen(t).Addr().String(), Namespace: "n", Kafka: kafka.Addr().String(),
		S3: "http://" + listen(t).Addr().String(), S3Bucket: "b", Store: "sqlite:/data/weft.db", Data: "/data", PID: os.Getpid(),
		S3AccessKeyFile: writeFile(t, "access", "AK\n"), S3SecretKeyFile: writeFile(t, "secret", "SK\n"),
	}
	name, err := RunningFile()
	if err != nil {
		t.Fatal(err)
	}
	if err := Write(name, a); err != nil {
		t.Fatal(err)
	}
	return a, kafka
}

// clean forgets the variables and the stack of whoever runs the test.
func clean(t *testing.T) {
	t.Helper()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "WEFT_") {
			t.Setenv(name, "")
		}
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", home)
}

func TestFlagsWinOverVariables(t *testing.T) {
	clean(t)
	t.Setenv(envTemporal, "variable:7233")
	t.Setenv(envKafka, "variable:9092")
	t.Setenv(envS3, "https://variable")
	t.Setenv(envStore, "postgres://variable")
	t.Setenv(envAccessKey+"_FILE", writeFile(t, "access", " AK \n"))
	t.Setenv(envSecretKey, "SK")
	got, err := Find(Addresses{Kafka: "flag:9092"})
	if err != nil {
		t.Fatal(err)
	}
	want := Addresses{Temporal: "variable:7233", Namespace: DefaultNamespace, Kafka: "flag:9092", S3: "https://variable",
		S3Bucket: DefaultBucket, S3AccessKey: "AK", S3AccessKeyFile: got.S3AccessKeyFile, S3SecretKey: "SK", Store: "postgres://variable"}
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestRunningStackIsFound(t *testing.T) {
	clean(t)
	want, _ := running(t)
	want.S3AccessKey, want.S3SecretKey = "AK", "SK"
	got, err := Find(Addresses{})
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	t.Setenv(envNamespace, "mine")
	if got, err = Find(Addresses{}, Temporal); err != nil || got.Namespace != "mine" || got.Temporal != want.Temporal {
		t.Errorf("with a namespace of one's own: %+v, %v", got, err)
	}
}

func TestServersAreNotMixedByMistake(t *testing.T) {
	clean(t)
	want, _ := running(t)
	t.Setenv(envTemporal, "production:7233")
	if a, err := Find(Addresses{}); err == nil || !strings.Contains(err.Error(), envKafka) {
		t.Errorf("a named Temporal got %+v, %v", a, err)
	}
	if a, err := Find(Addresses{}, Temporal); err != nil || a.Temporal != "production:7233" || a.Namespace != DefaultNamespace {
		t.Errorf("Temporal alone: %+v, %v", a, err)
	}
	name, err := RunningFile()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(envFile, name)
	a, err := Find(Addresses{})
	if err != nil || a.Temporal != "production:7233" || a.Kafka != want.Kafka || a.S3AccessKey != "AK" {
		t.Errorf("a mixture that is asked for: %+v, %v", a, err)
	}
}

func TestDeadStackIsNotTaken(t *testing.T) {
	clean(t)
	_, kafka := running(t)
	if err := kafka.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Find(Addresses{})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "the stack of /data is not running") {
		t.Errorf("a stack whose Kafka is gone: %v", err)
	}
}

func TestNothingFoundSaysHowToStart(t *testing.T) {
	clean(t)
	_, err := Find(Addresses{}, Store, S3)
	if !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	for _, want := range []string{"weft-dev up --data", envStore, envS3, envSecretKey} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %s in: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), envKafka) {
		t.Errorf("Kafka is not needed: %v", err)
	}
}

func TestUnreadableKeyIsAnError(t *testing.T) {
	clean(t)
	t.Setenv(envAccessKey+"_FILE", filepath.Join(t.TempDir(), "none"))
	if _, err := Find(Addresses{}, Temporal); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing key file: %v", err)
	}
	t.Setenv(envAccessKey+"_FILE", writeFile(t, "empty", "\n"))
	if _, err := Find(Addresses{}); err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Errorf("an empty key file: %v", err)
	}
}

func TestRemoveKeepsTheFileOfAnother(t *testing.T) {
	name := filepath.Join(t.TempDir(), "made", "stack.json")
	if err := Remove(name, 1); err != nil {
		t.Errorf("nothing to remove: %v", err)
	}
	if err := Write(name, Addresses{PID: 2, S3SecretKey: "hidden"}); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(name); err != nil || strings.Contains(string(text), "hidden") {
		t.Errorf("the file holds a secret, or is not there: %s %v", text, err)
	}
	if err := Remove(name, 1); err != nil {
		t.Fatal(err)
	}
	if a, err := Read(name); err != nil || a.PID != 2 {
		t.Errorf("the file of process 2: %+v, %v", a, err)
	}
	if err := Remove(name, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}
