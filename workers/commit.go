package workers

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/streaming"
)

// CommitEvery is how often group offsets are committed: as often as Kafka's own consumers do.
const CommitEvery = 5 * time.Second

// CommitOffsets commits how far a shard has read as offsets of a consumer group, every so often until ctx is done, so that
// the usual tools show its lag. Nothing ever reads them back: a failure is logged and harms nobody. The function that it
// returns takes a status; it never waits.
func CommitOffsets(ctx context.Context, client *kafka.Client, group string, every time.Duration, log *slog.Logger) func(streaming.Status) {
	last := make(chan []streaming.PartitionStatus, 1)
	go func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		committed := map[streaming.Partition]int64{}
		for failing := false; ; {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			var now []streaming.PartitionStatus
			select {
			case now = <-last:
			default:
				continue
			}
			err := commitChanged(ctx, client, group, committed, now)
			if err != nil && ctx.Err() == nil && !failing {
				log.Warn("cannot commit group offsets; tools will show a wrong lag", "group", group, "error", err)
			}
			failing = err != nil
		}
	}()
	return func(s streaming.Status) {
		select {
		case <-last: // the newest counts
		default:
		}
		select {
		case last <- s.Partitions:
		default:
		}
	}
}

// commitChanged commits the offsets that are others than before.
func commitChanged(ctx context.Context, client *kafka.Client, group string, committed map[streaming.Partition]int64, now []streaming.PartitionStatus) error {
	topics := map[string]map[int32]int64{}
	for _, p := range now {
		if before, ok := committed[p.Partition]; ok && before == p.Next {
			continue
		}
		if topics[p.Topic] == nil {
			topics[p.Topic] = map[int32]int64{}
		}
		topics[p.Topic][p.ID] = p.Next
	}
	var errs []error
	for topic, offsets := range topics {
		if err := client.Commit(ctx, group, topic, offsets); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, p := range now {
			if p.Topic == topic {
				committed[p.Partition] = p.Next
			}
		}
	}
	return errors.Join(errs...)
}
