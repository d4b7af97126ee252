package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workers"
)

// TestWarmUpFromArchive archives a payment environment, deletes most of its records from Kafka, and starts versions that
// never ran before, of one shard and of three, which end abruptly now and then. They have the digest of a replay of all
// files. One that may not read the archive has not.
func TestWarmUpFromArchive(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	at, file, want := playEnvironment(t, ctx, 1500, 17, "48h", 3)
	env, err := workers.OpenEnv(ctx, at, stack.Kafka, stack.S3)
	if err != nil {
		t.Fatal(err)
	}
	defer env.Close()
	spec := archiveEnvironment(t, ctx, env, file)
	for i, source := range spec.Sources {
		for p := range int32(3) {
			deleteMost(t, ctx, at, env.Kafka, source.Topic, p, int64(2+i+int(p)))
		}
	}
	for version, shards := range map[int]int{2: 1, 3: 3} {
		t.Run(fmt.Sprintf("shards=%d", shards), func(t *testing.T) {
			st := openStream(t, ctx, at, file)
			defer st.store.Close()
			st.version, st.archive = version, workers.ArchiveObjects{Store: st.objects}
			g, err := st.store.CreateGeneration(ctx, "payments", strconv.Itoa(version), "live")
			if err != nil {
				t.Fatal(err)
			}
			st.generation = g.ID
			st.runShards(t, ctx, shards, 17)
			st.expectReplay(t, ctx, want)
		})
	}
}

// archiveEnvironment registers version 1 of the job and archives all its topics.
func archiveEnvironment(t *testing.T, ctx context.Context, env *workers.Env, file string) *jobspec.Spec {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	version, err := registry.New(env.Objects).Add(ctx, registry.NewVersion{Job: "payments", Spec: text, Message: "first", Author: "test"})
	if err != nil {
		t.Fatal(err)
	}
	spec, err := version.Parse()
	if err != nil {
		t.Fatal(err)
	}
	archiveAll(t, ctx, env, spec, 64<<10, false)
	return spec
}

// deleteMost deletes all but the last records of a partition, one of so many.
func deleteMost(t *testing.T, ctx context.Context, at stack.Addresses, client *kafka.Client, topic string, partition int32, left int64) {
	t.Helper()
	of, err := client.Topic(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	_, end, err := client.Offsets(ctx, of, partition)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := kgo.NewClient(kgo.SeedBrokers(at.Kafka))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	req := kmsg.NewPtrDeleteRecordsRequest()
	one, p := kmsg.NewDeleteRecordsRequestTopic(), kmsg.NewDeleteRecordsRequestTopicPartition()
	p.Partition, p.Offset = partition, end-end/left
	one.Topic, one.Partitions = topic, append(one.Partitions, p)
	req.Topics = append(req.Topics, one)
	res, err := req.RequestWith(ctx, admin)
	if err == nil {
		err = kerr.ErrorForCode(res.Topics[0].Partitions[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}
