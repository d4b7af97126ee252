// Package workflows decides what runs: the shards of job versions, the archivers of topics, the publishers of jobs. It does
// nothing itself; activities do. Workflow ids, signals, queries and inputs are contracts that people type into tctl.
package workflows

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// The types of workflows.
const (
	VersionType   = "Version"
	ShardType     = "Shard"
	ArchiveType   = "Archive"
	PublisherType = "Publisher"
)

// What activities know too is declared beside them.
type (
	Problem       = activities.Problem
	ShardReport   = activities.ShardReport
	ProcessReport = activities.ProcessReport
	JobVersion    = activities.JobVersion
)

// QueryStatus asks any of these workflows for its status.
const QueryStatus = activities.QueryStatus

// States of what a workflow keeps running.
const (
	Preparing    = activities.Preparing
	Waiting      = activities.Waiting
	Running      = activities.Running
	CrashLooping = activities.CrashLooping
	Failed       = activities.Failed
	Stopping     = activities.Stopping
	Paused       = activities.Paused
	Stopped      = activities.Stopped
)

// VersionID is the workflow id of a job version.
func VersionID(job string, version int) string { return activities.VersionID(job, version) }

// ShardID is the workflow id of a shard.
func ShardID(job string, version, shard int) string { return activities.ShardID(job, version, shard) }

// ProcessID is the workflow id of a process of a job version.
func ProcessID(job string, version, process int) string {
	return activities.ProcessID(job, version, process)
}

// ArchiveID is the workflow id of a topic's archiver.
func ArchiveID(topic string) string { return activities.ArchiveID(topic) }

// PublisherID is the workflow id of a job's publisher.
func PublisherID(job string) string { return activities.PublisherID(job) }

// Signals. Each carries one JSON object, which may be left out except for SignalJobs and SignalShard.
const (
	SignalStop   = "stop"   // end for good, with a last checkpoint
	SignalPause  = "pause"  // end the run with a last checkpoint, and wait
	SignalResume = "resume" // go on after a pause
	SignalRetry  = "retry"  // go on after a failure, at once
	SignalJobs   = "jobs"   // to Archive: another job version reads the topic
	SignalShard  = "shard"  // to Version, by its shards: the state of one
	SignalAgents = "agents" // to Version, by Job, which owns it: agents run its shards where nobody else does
)

// searchAttributes of all workflows. They hold no ids of orders or users.
func attribute(name string) temporal.SearchAttributeKeyKeyword {
	return temporal.NewSearchAttributeKeyKeyword(name)
}

// mark makes a workflow findable by job, version and state; empty ones are left out.
func mark(ctx workflow.Context, job, version, phase string) error {
	var updates []temporal.SearchAttributeUpdate
	for _, a := range [][2]string{{"WeftJob", job}, {"WeftVersion", version}, {"WeftPhase", phase}} {
		if a[1] != "" {
			updates = append(updates, attribute(a[0]).ValueSet(a[1]))
		}
	}
	return workflow.UpsertTypedSearchAttributes(ctx, updates...)
}

// longOptions are those of the activities that run for hours. There is no ScheduleToStart: they wait for a worker.
func longOptions(queue string) workflow.ActivityOptions {
	return workflow.ActivityOptions{
		TaskQueue:           queue,
		StartToCloseTimeout: 24 * time.Hour, // the run returns by itself before
		HeartbeatTimeout:    activities.HeartbeatTimeout,
		WaitForCancellation: true, // for the last checkpoint
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval: 200 * time.Millisecond, BackoffCoefficient: 2, MaximumInterval: 2 * time.Second,
			MaximumAttempts: attemptsMax,
		},
	}
}

// attemptsMax is how often Temporal tries a run before the workflow sees that it does not work.
const attemptsMax = 10

// shortOptions are those of control activities, which are tried until they work or cannot. Control workers send heartbeats of
// them by themselves.
func shortOptions() workflow.ActivityOptions {
	return workflow.ActivityOptions{
		TaskQueue:           activities.Queue,
		StartToCloseTimeout: time.Minute,
		HeartbeatTimeout:    activities.HeartbeatTimeout,
		RetryPolicy:         &temporal.RetryPolicy{InitialInterval: time.Second, BackoffCoefficient: 2, MaximumInterval: 10 * time.Second},
	}
}
