package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// kafkaServer is one Kafka broker on files.
type kafkaServer struct {
	cluster *kfake.Cluster
	log     *os.File
	client  *kafka.Client
}

func startKafka(cfg Config, port int) (*kafkaServer, error) {
	log, err := openLog(cfg, "kafka.log")
	if err != nil {
		return nil, err
	}
	opts := []kfake.Opt{
		kfake.Ports(port),
		kfake.ClusterID("weft-dev"),
		kfake.DataDir(filepath.Join(cfg.Data, "kafka")),
		kfake.SyncWrites(), // what was acknowledged is on disk
		kfake.DefaultNumPartitions(cfg.Partitions),
		kfake.WithLogger(kfake.BasicLogger(log, kfake.LogLevelWarn)),
		// Nothing expires by itself: examples bring records of last year, which would be gone at once.
		kfake.BrokerConfigs(map[string]string{"log.retention.ms": "-1"}),
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if !cfg.NoAutoTopics {
		cluster.ControlKey(int16(kmsg.Metadata), func(r kmsg.Request) (kmsg.Response, error, bool) {
			createTopics(cluster, r.(*kmsg.MetadataRequest), log)
			return nil, nil, false // the broker answers
		})
	}
	return &kafkaServer{cluster, log, &kafka.Client{Addr: kafka.TCP(address(port)), Transport: &kafka.Transport{}}}, nil
}

// createTopics makes the topics that a client asks for and nobody made, if the client wants that. The broker could do it
// too, but would write the topic down only at its end: after a kill the records would be there and their topic would not.
func createTopics(cluster *kfake.Cluster, r *kmsg.MetadataRequest, log io.Writer) {
	if !r.AllowAutoTopicCreation {
		return
	}
	for _, t := range r.Topics {
		if t.Topic == nil || cluster.LeaderFor(*t.Topic, 0) >= 0 {
			continue
		}
		if err := cluster.CreateTopic(*t.Topic, -1, nil); err != nil {
			_, _ = fmt.Fprintf(log, "create topic %q: %v\n", *t.Topic, err) // the client is told that there is none
		}
	}
}

func (k *kafkaServer) check(ctx context.Context) error {
	m, err := k.client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{}})
	if err == nil && len(m.Brokers) == 0 {
		err = errors.New("Kafka has no broker")
	}
	return err
}

func (k *kafkaServer) stop() error {
	k.client.Transport.(*kafka.Transport).CloseIdleConnections()
	k.cluster.Close()
	return k.log.Close()
}

// openLog opens a log that is appended to.
func openLog(cfg Config, name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(cfg.Data, "logs", name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}
