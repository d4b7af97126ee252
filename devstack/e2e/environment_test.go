package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/devstack"
	"github.com/weftdata/weft/paygen"
	"github.com/weftdata/weft/stack"
)

// playEnvironment generates a payment environment and plays it into the topics of an embedded stack, which ends with the
// test, or of the Kafka that WEFT_TEST_KAFKA names, beside such a stack. It returns where the stack is, the file of the
// job's spec, and what a replay of the files gives.
func playEnvironment(t *testing.T, ctx context.Context, orders, seed int, span string, partitions int) (at stack.Addresses, spec string, want backfill.Summary) {
	t.Helper()
	dir := t.TempDir()
	weft := built(t, weftProgram)
	run(t, dir, weft, "gen", "--out", "pay", "--orders", strconv.Itoa(orders), "--seed", strconv.Itoa(seed), "--span", span)
	spec = filepath.Join(dir, "pay/job.yaml")
	kafka := os.Getenv("WEFT_TEST_KAFKA")
	if kafka != "" {
		ownTopics(t, spec)
	}
	inputs := []string{"--spec", "pay/job.yaml"}
	for _, s := range paygen.Sources() {
		inputs = append(inputs, "--input", s[0]+"=pay/"+s[1])
	}
	if err := json.Unmarshal(run(t, dir, weft, append([]string{"replay", "--out", "result", "--json"}, inputs...)...), &want); err != nil {
		t.Fatal(err)
	}
	s, err := devstack.Start(ctx, devstack.Config{Data: filepath.Join(dir, "stack")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop(context.WithoutCancel(ctx)) }) // the test is over
	at = withKeys(t, s.Addresses())
	if kafka != "" {
		at.Kafka = kafka
	}
	run(t, dir, weft, append([]string{"produce", "--kafka", at.Kafka, "--partitions", strconv.Itoa(partitions), "-q"}, inputs...)...)
	return at, spec, want
}

// withKeys reads the keys of the object store from the files that hold them.
func withKeys(t *testing.T, at stack.Addresses) stack.Addresses {
	t.Helper()
	key := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	at.S3AccessKey, at.S3SecretKey = key(at.S3AccessKeyFile), stack.Secret(key(at.S3SecretKeyFile))
	return at
}
