package activities

import (
	"fmt"
	"time"
)

// What the workflows of a job version are called, and what they tell of it. It is declared here since activities read it too, and
// may not import what is replayed; package workflows takes it from here.

// VersionID is the workflow id of a job version.
func VersionID(job string, version int) string { return fmt.Sprintf("version/%s/%d", job, version) }

// ShardID is the workflow id of a shard.
func ShardID(job string, version, shard int) string {
	return fmt.Sprintf("shard/%s/%d/%d", job, version, shard)
}

// ProcessID is the workflow id of a process of a job version.
func ProcessID(job string, version, process int) string {
	return fmt.Sprintf("process/%s/%d/%d", job, version, process)
}

// ArchiveID is the workflow id of a topic's archiver.
func ArchiveID(topic string) string { return "archive/" + topic }

// PublisherID is the workflow id of a job's publisher.
func PublisherID(job string) string { return "publisher/" + job }

// QueryStatus asks any of these workflows for its status.
const QueryStatus = "status"

// States of what a workflow keeps running, beside Stopped.
const (
	Preparing    = "preparing"
	Waiting      = "waiting_for_agent" // of a process: no agent has taken it yet
	Running      = "running"
	CrashLooping = "crash_looping" // it failed in all attempts; it is tried again after a while
	Failed       = "failed"        // trying again is useless; waits for retry or stop
	Stopping     = "stopping"      // saving a last checkpoint
	Paused       = "paused"
)

// Problem is why something does not run.
type Problem struct {
	Type    string    `json:"type"` // a class of errors: User, External …
	Message string    `json:"message"`
	At      time.Time `json:"at"`
}

// ShardReport is what a shard signals to its version when its state changes.
type ShardReport struct {
	Shard    int       `json:"shard"`
	State    string    `json:"state"`
	Since    time.Time `json:"since"`
	Attempts int       `json:"attempts"`
	Error    *Problem  `json:"error,omitempty"`
}

// ProcessReport is what a process signals to its version when its state changes.
type ProcessReport struct {
	Process  int       `json:"process"`
	State    string    `json:"state"`
	Since    time.Time `json:"since"`
	Attempts int       `json:"attempts"`
	Error    *Problem  `json:"error,omitempty"`
	Agent    string    `json:"agent,omitempty"` // that started it
	PID      int       `json:"pid,omitempty"`
}

// VersionHealth is how a version and its parts are: a part of what its workflow answers to QueryStatus.
type VersionHealth struct {
	Error  *Problem      `json:"error,omitempty"`  // of preparing
	Shards []ShardReport `json:"shards,omitempty"` // as they reported
	// Processes are those that agents start for it, as they reported; none where somebody starts them by hand.
	Processes []ProcessReport `json:"processes,omitempty"`
}
