package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/metrics"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/streaming"
)

// addMetricsFlag adds the flag of commands that serve metrics.
func addMetricsFlag(c *cobra.Command, addr *string) {
	c.Flags().StringVar(addr, "metrics", "", "serve metrics for Prometheus at PORT of this machine alone, or at HOST:PORT; 0 chooses a port (default: not)")
}

// serveMetrics serves metrics of what runs in this process until ctx is done. Without an address it does nothing.
func (s *servers) serveMetrics(ctx context.Context, addr string) error {
	if addr == "" {
		return nil
	}
	m, err := metrics.Serve(ctx, addr)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	s.log.Info("serving metrics", "url", "http://"+m.Addr()+"/metrics")
	s.metrics = m
	s.versions.Observe = func(in activities.ShardInput, job *operator.Job, st streaming.Status) {
		m.Set(job, in.Version, in.Shard, st)
	}
	return nil
}

type observer = func(in activities.ShardInput, job *operator.Job, s streaming.Status)

// alsoObserve calls both; first may be nil.
func alsoObserve(first, second observer) observer {
	if first == nil {
		return second
	}
	return func(in activities.ShardInput, job *operator.Job, s streaming.Status) {
		first(in, job, s)
		second(in, job, s)
	}
}
