package kafka

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/createtopics"
	"github.com/segmentio/kafka-go/protocol/deletetopics"
	"github.com/segmentio/kafka-go/protocol/findcoordinator"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
	meta "github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/offsetcommit"
)

// TopicID is a topic's identity: a topic that is deleted and created again has another one. Brokers before Kafka 2.8 have
// none; it is zero then.
type TopicID [16]byte

// String returns the identity in hexadecimal; empty where there is none.
func (id TopicID) String() string {
	if id == (TopicID{}) {
		return ""
	}
	return hex.EncodeToString(id[:])
}

// ParseTopicID reads what String wrote.
func ParseTopicID(text string) (id TopicID, err error) {
	if text == "" {
		return id, nil
	}
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("topic id %q: expected 32 hexadecimal digits", text)
	}
	return TopicID(b), nil
}

// Topic is a topic as a client found it. Its partitions are numbered from 0.
type Topic struct {
	Name       string
	ID         TopicID
	Partitions int32
}

// layout is what a broker told about itself, the others and one topic.
type layout struct {
	brokers    map[int32]string // address by number
	controller int32
	topic      Topic
	leaders    map[int32]partitionLeader
}

type partitionLeader struct {
	code   int16
	broker int32
}

// Topic looks a topic up.
func (c *Client) Topic(ctx context.Context, name string) (Topic, error) {
	l, err := c.layout(ctx, name)
	if err != nil {
		return Topic{}, explain("look up topic "+name, err)
	}
	return l.topic, nil
}

func (c *Client) layout(ctx context.Context, topic string) (l *layout, err error) {
	err = c.anyBroker(ctx, func(one *conn) error {
		if version, ok := one.version(protocol.Metadata, 10, 11, 12); ok {
			l, err = one.layout(ctx, topic, version)
		} else {
			l, err = one.oldLayout(ctx, topic)
		}
		return err
	})
	return l, err
}

// layout asks with a version that tells the topic's identity.
func (c *conn) layout(ctx context.Context, topic string, version int16) (*layout, error) {
	r, err := c.exchange(ctx, protocol.Metadata, version, true, 0, func(w *writer) {
		w.array(1)
		w.b = append(w.b, make([]byte, len(TopicID{}))...) // by name
		w.text(topic)
		w.tags()
		w.i8(0) // create nothing
		if version <= 10 {
			w.i8(0) // no rights of the cluster
		}
		w.i8(0) // no rights of the topic
		w.tags()
	})
	if err != nil {
		return nil, err
	}
	l := &layout{brokers: map[int32]string{}, leaders: map[int32]partitionLeader{}, topic: Topic{Name: topic}}
	r.i32() // throttled for
	for range r.array() {
		id, host, port := r.i32(), r.text(), r.i32()
		r.text() // rack
		r.tags()
		l.brokers[id] = net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	r.text() // cluster
	l.controller = r.i32()
	code := kafka.UnknownTopicOrPartition
	for range r.array() {
		code = kafka.Error(r.i16())
		r.text() // name
		copy(l.topic.ID[:], r.take(len(l.topic.ID)))
		r.i8() // internal
		for range r.array() {
			p := partitionLeader{code: r.i16()}
			number := r.i32()
			p.broker = r.i32()
			r.i32() // epoch
			r.ints()
			r.ints()
			r.ints()
			r.tags()
			l.leaders[number] = p
		}
		r.i32() // rights
		r.tags()
	}
	if r.err != nil {
		return nil, errors.Join(r.err, c.close())
	}
	return l.found(int16(code))
}

// oldLayout asks a broker from before topics had identities.
func (c *conn) oldLayout(ctx context.Context, topic string) (*layout, error) {
	msg, err := c.roundTrip(ctx, &meta.Request{TopicNames: []string{topic}})
	if err != nil {
		return nil, err
	}
	res := msg.(*meta.Response)
	l := &layout{brokers: map[int32]string{}, controller: res.ControllerID, leaders: map[int32]partitionLeader{}, topic: Topic{Name: topic}}
	for _, b := range res.Brokers {
		l.brokers[b.NodeID] = net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
	}
	code := int16(kafka.UnknownTopicOrPartition)
	for _, t := range res.Topics {
		code = t.ErrorCode
		for _, p := range t.Partitions {
			l.leaders[p.PartitionIndex] = partitionLeader{p.ErrorCode, p.LeaderID}
		}
	}
	return l.found(code)
}

// Reach returns the addresses under which the brokers of the cluster want to be reached, in their order, and connects to each:
// a cluster that answers at the configured addresses and names others that lead nowhere is of no use.
func (c *Client) Reach(ctx context.Context) (brokers []string, err error) {
	err = c.anyBroker(ctx, func(one *conn) error {
		msg, err := one.roundTrip(ctx, &meta.Request{TopicNames: []string{}}) // of no topic; nil would be all
		if err != nil {
			return err
		}
		brokers = nil
		for _, b := range msg.(*meta.Response).Brokers {
			brokers = append(brokers, net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port))))
		}
		return nil
	})
	if err != nil {
		return nil, explain("ask for the brokers", err)
	}
	if len(brokers) == 0 {
		return nil, &Error{Op: "ask for the brokers", Class: External, Err: errors.New("the cluster names none")}
	}
	slices.Sort(brokers)
	var errs []error
	for _, addr := range brokers {
		if err := c.with(ctx, addr, func(*conn) error { return nil }); err != nil {
			errs = append(errs, explain("connect to "+addr+", as the broker calls itself (its advertised listener)", err))
		}
	}
	return brokers, errors.Join(errs...)
}

func (l *layout) found(code int16) (*layout, error) {
	l.topic.Partitions = int32(len(l.leaders))
	return l, codeErr(code, "")
}

// leader returns the address of a partition's leader. It checks that the topic is still the one that was looked up.
func (c *Client) leader(ctx context.Context, topic Topic, partition int32) (string, error) {
	l, err := c.layout(ctx, topic.Name)
	if isCode(err, kafka.UnknownTopicOrPartition) {
		return "", fmt.Errorf("%w any more", ErrNoTopic) // it did when it was looked up, so waiting does not help
	}
	if err != nil {
		return "", err
	}
	if topic.ID != (TopicID{}) && l.topic.ID != (TopicID{}) && topic.ID != l.topic.ID {
		return "", fmt.Errorf("%w (it was %v and is %v)", ErrTopicRecreated, topic.ID, l.topic.ID)
	}
	p, ok := l.leaders[partition]
	if !ok {
		return "", fmt.Errorf("%w: it has no partition %d, only %d partitions", ErrNoTopic, partition, len(l.leaders))
	}
	addr, ok := l.brokers[p.broker]
	if !ok {
		return "", codeError{kafka.LeaderNotAvailable, fmt.Sprintf("partition %d has no leader", partition)}
	}
	return addr, nil
}

// Offsets returns the first offset that a partition holds, and its high-water mark: the one that the next record gets.
func (c *Client) Offsets(ctx context.Context, topic Topic, partition int32) (start, end int64, err error) {
	op := fmt.Sprintf("look up offsets of %s/%d", topic.Name, partition)
	addr, err := c.leader(ctx, topic, partition)
	if err == nil {
		err = c.with(ctx, addr, func(one *conn) error {
			if start, err = one.listOffset(ctx, topic.Name, partition, kafka.FirstOffset); err != nil {
				return err
			}
			end, err = one.listOffset(ctx, topic.Name, partition, kafka.LastOffset)
			return err
		})
	}
	return start, end, explain(op, err)
}

func (c *conn) listOffset(ctx context.Context, topic string, partition int32, which int64) (int64, error) {
	msg, err := c.roundTrip(ctx, &listoffsets.Request{ReplicaID: -1, Topics: []listoffsets.RequestTopic{{Topic: topic,
		Partitions: []listoffsets.RequestPartition{{Partition: partition, CurrentLeaderEpoch: -1, Timestamp: which}}}}})
	if err != nil {
		return 0, err
	}
	for _, t := range msg.(*listoffsets.Response).Topics {
		for _, p := range t.Partitions {
			return p.Offset, codeErr(p.ErrorCode, "")
		}
	}
	return 0, errShort
}

// Commit stores offsets of a topic's partitions under the name of a group. It is for tools that show lag: nothing here
// reads them back, and no group is joined.
func (c *Client) Commit(ctx context.Context, group, topic string, offsets map[int32]int64) error {
	return explain("commit offsets of group "+group, c.commit(ctx, group, topic, offsets))
}

func (c *Client) commit(ctx context.Context, group, topic string, offsets map[int32]int64) error {
	var addr string
	err := c.anyBroker(ctx, func(one *conn) error {
		msg, err := one.roundTrip(ctx, &findcoordinator.Request{Key: group})
		if err != nil {
			return err
		}
		res := msg.(*findcoordinator.Response)
		addr = net.JoinHostPort(res.Host, strconv.Itoa(int(res.Port)))
		return codeErr(res.ErrorCode, res.ErrorMessage)
	})
	if err != nil {
		return err
	}
	req := &offsetcommit.Request{GroupID: group, GenerationID: -1, RetentionTimeMs: -1, Topics: []offsetcommit.RequestTopic{{Name: topic}}}
	for partition, offset := range offsets {
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, offsetcommit.RequestPartition{
			PartitionIndex: partition, CommittedOffset: offset, CommittedLeaderEpoch: -1})
	}
	return c.with(ctx, addr, func(one *conn) error {
		msg, err := one.roundTrip(ctx, req)
		if err != nil {
			return err
		}
		for _, t := range msg.(*offsetcommit.Response).Topics {
			for _, p := range t.Partitions {
				if err := codeErr(p.ErrorCode, fmt.Sprintf("partition %d", p.PartitionIndex)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// CreateTopic creates a topic with the cluster's own replication and waits until it can be used. created is false where
// it is there already, whatever its number of partitions.
func (c *Client) CreateTopic(ctx context.Context, name string, partitions int32, configs map[string]string) (topic Topic, created bool, err error) {
	op := "create topic " + name
	l, err := c.layout(ctx, name)
	if err == nil {
		return l.topic, false, nil
	}
	if !isCode(err, kafka.UnknownTopicOrPartition) {
		return topic, false, explain(op, err)
	}
	err = c.create(ctx, l, name, partitions, configs)
	created = err == nil
	if isCode(err, kafka.TopicAlreadyExists) { // somebody was faster
		err = nil
	}
	if err == nil {
		topic, err = c.awaitTopic(ctx, name)
	}
	return topic, created, explain(op, err)
}

func isCode(err error, code kafka.Error) bool {
	var e codeError
	return errors.As(err, &e) && e.code == code
}

func (c *Client) create(ctx context.Context, l *layout, name string, partitions int32, configs map[string]string) error {
	t := createtopics.RequestTopic{Name: name, NumPartitions: partitions, ReplicationFactor: -1}
	for k, v := range configs {
		t.Configs = append(t.Configs, createtopics.RequestConfig{Name: k, Value: v})
	}
	addr, ok := l.brokers[l.controller]
	if !ok {
		return codeError{kafka.BrokerNotAvailable, "the cluster has no controller"}
	}
	return c.with(ctx, addr, func(one *conn) error {
		msg, err := one.roundTrip(ctx, &createtopics.Request{Topics: []createtopics.RequestTopic{t}, TimeoutMs: int32(one.timeout.Milliseconds())})
		if err != nil {
			return err
		}
		for _, t := range msg.(*createtopics.Response).Topics {
			return codeErr(t.ErrorCode, t.ErrorMessage)
		}
		return errShort
	})
}

// DeleteTopic deletes a topic. One that is not there is no error.
func (c *Client) DeleteTopic(ctx context.Context, name string) error {
	l, err := c.layout(ctx, name)
	if err == nil {
		err = c.delete(ctx, l, name)
	}
	if isCode(err, kafka.UnknownTopicOrPartition) {
		err = nil
	}
	return explain("delete topic "+name, err)
}

func (c *Client) delete(ctx context.Context, l *layout, name string) error {
	addr, ok := l.brokers[l.controller]
	if !ok {
		return codeError{kafka.BrokerNotAvailable, "the cluster has no controller"}
	}
	return c.with(ctx, addr, func(one *conn) error {
		msg, err := one.roundTrip(ctx, &deletetopics.Request{TopicNames: []string{name}, TimeoutMs: int32(one.timeout.Milliseconds())})
		if err != nil {
			return err
		}
		for _, t := range msg.(*deletetopics.Response).Responses {
			return codeErr(t.ErrorCode, "")
		}
		return errShort
	})
}

// awaitTopic asks until all partitions of a topic have leaders: brokers learn of a new topic one after the other.
func (c *Client) awaitTopic(ctx context.Context, name string) (Topic, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
	defer cancel()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		l, err := c.layout(ctx, name)
		if err == nil && l.led() {
			return l.topic, nil
		}
		if err != nil && !isCode(err, kafka.UnknownTopicOrPartition) && !isCode(err, kafka.LeaderNotAvailable) {
			return Topic{}, err
		}
		if err := pause(ctx, wait); err != nil {
			return Topic{}, fmt.Errorf("wait for its leaders: %w", err)
		}
	}
}

func (l *layout) led() bool {
	for _, p := range l.leaders {
		if _, ok := l.brokers[p.broker]; !ok || p.code != 0 {
			return false
		}
	}
	return len(l.leaders) > 0
}

// pause waits, or until the context ends.
func pause(ctx context.Context, wait time.Duration) error {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
