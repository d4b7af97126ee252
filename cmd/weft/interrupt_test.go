package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

// Ctrl-C must end a replay that waits for standard input.
func TestReplayInterruptedWhileWaiting(t *testing.T) {
	replayFolder(t)
	stdin := useStdin(t)
	if _, err := stdin.WriteString(orderLines); err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer interrupt()
	done := make(chan int, 1)
	go func() {
		var out, errs bytes.Buffer
		done <- run(ctx, []string{"replay", "--spec", "job.yaml", "--input", "orders=-", "--out", "out"}, strings.NewReader(""), &out, &errs)
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("the replay goes on waiting after it was interrupted")
	}
}
