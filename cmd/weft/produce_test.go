package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/operator"
)

const produceSpec = `version: weft/v1
job: payments
shard_by: game
sources:
  orders: {topic: pay.orders, format: json, time: at, step: event, keys: {order: id}, fields: {game: app}}
  wallet: {topic: pay.wallet, format: logfmt, time: at, step: event, keys: {order: id}, shard: chess}
  ledger: {topic: pay.ledger, format: json, time: at, step: event, keys: {order: id}, fields: {game: {path: app}}, each: rows}
session: {gap: 1h}
scenarios:
  - {name: paid, when: 'step("paid").count > 0'}
`

// produceTracks opens files of the sources; a name is that of its source.
func produceTracks(t *testing.T, files map[string]string) *play {
	t.Helper()
	spec, err := jobspec.Parse([]byte(produceSpec))
	if err != nil {
		t.Fatal(err)
	}
	job, err := operator.Compile(spec, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	var inputs []string
	for source, text := range files {
		file := filepath.Join(t.TempDir(), source)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		inputs = append(inputs, source+"="+file)
	}
	slices.Sort(inputs)
	tracks, err := openTracks(job, inputs)
	if err != nil {
		t.Fatal(err)
	}
	p := &play{tracks: tracks}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// played steps through all records without producing them.
func (p *play) playedForTest(t *testing.T, see func(*track, *event.Record, *mark)) {
	t.Helper()
	for {
		next, err := p.next()
		if err != nil {
			t.Fatal(err)
		}
		if next == nil {
			return
		}
		see(next, &next.batch.Records[next.next], &next.marks[next.next])
		next.next++
	}
}

func orderLine(minute, second, id, game string) string {
	return `{"at":"2026-03-01T10:` + minute + ":" + second + `Z","event":"paid","id":"` + id + `","app":"` + game + `"}` + "\n"
}

func TestProduceMergesByTime(t *testing.T) {
	p := produceTracks(t, map[string]string{
		"orders": orderLine("00", "00", "1", "go") + "broken\n" + orderLine("02", "00", "2", "go") + orderLine("01", "30", "3", "go") + orderLine("04", "00", "4", "go"),
		"wallet": "at=2026-03-01T10:01:00Z event=paid id=1\n\nat=2026-03-01T10:03:00Z event=paid id=2\n",
	})
	var order []string
	p.playedForTest(t, func(tr *track, r *event.Record, _ *mark) {
		order = append(order, tr.name+" "+string(rune('0'+r.Offset)))
	})
	want := []string{"orders 0", "orders 1", "wallet 0", "orders 2", "orders 3", "wallet 2", "orders 4"}
	if !slices.Equal(order, want) {
		t.Errorf("got  %q\nwant %q", order, want)
	}
}

// A broken clock in one file holds up neither that file nor the others.
func TestProduceIgnoresWildTimes(t *testing.T) {
	var orders strings.Builder
	for i := range 40 {
		line := orderLine(string([]byte{'0' + byte(i/10), '0' + byte(i%10)}), "00", "1", "go")
		if i == 5 {
			line = strings.Replace(line, "2026", "2099", 1)
		}
		if i == 20 {
			line = strings.Replace(line, "2026", "1970", 1)
		}
		orders.WriteString(line)
	}
	p := produceTracks(t, map[string]string{"orders": orders.String(), "wallet": "at=2026-03-01T10:30:30Z event=paid id=1\n"})
	at := int64(0)
	var last event.Micros = event.MinTime
	p.playedForTest(t, func(tr *track, r *event.Record, m *mark) {
		if m.at < last {
			t.Errorf("time goes back at %s %d", tr.name, r.Offset)
		}
		last = m.at
		if tr.name == "orders" {
			at = r.Offset
		} else if at != 30 {
			t.Errorf("the wallet's record of 10:30:30 follows the one of minute %d", at)
		}
	})
}

func TestProduceKeepsShardsTogether(t *testing.T) {
	p := produceTracks(t, map[string]string{
		"orders": orderLine("00", "00", "1", "go") + orderLine("00", "01", "2", "chess") + "broken\n" + orderLine("00", "02", "3", "go"),
		"wallet": "at=2026-03-01T10:01:00Z event=paid id=1\n",
		"ledger": `{"rows":[{"at":"2026-03-01T10:02:00Z","event":"paid","id":"1","app":"go"},{"at":"2026-03-01T10:02:00Z","event":"paid","id":"2","app":"go"}]}` + "\n" +
			`{"rows":[{"at":"2026-03-01T10:02:00Z","event":"paid","id":"1","app":"go"},{"at":"2026-03-01T10:02:00Z","event":"paid","id":"2","app":"chess"}]}` + "\n",
	})
	for _, tr := range p.tracks {
		tr.topic = kafka.Topic{Name: tr.spec.Topic, Partitions: 8}
	}
	partitions := map[string]int32{}
	keyless := 0
	p.playedForTest(t, func(tr *track, r *event.Record, m *mark) {
		n := tr.partition(r, m)
		if n < 0 || n >= 8 {
			t.Fatalf("partition %d of 8", n)
		}
		if m.key == nil {
			keyless++
			return
		}
		if want := int32(event.Group(m.key)) * 8 / event.KeyGroups; n != want {
			t.Errorf("%s %d with key %s goes to partition %d, want %d", tr.name, r.Offset, m.key, n, want)
		}
		partitions[string(m.key)] = n
	})
	if keyless != 1 || len(partitions) != 2 {
		t.Errorf("%d records without a key, keys %v", keyless, partitions)
	}
	for _, tr := range p.tracks {
		if want := map[string]int64{"ledger": 1}[tr.name]; tr.mixed != want {
			t.Errorf("%s has %d records of several shards, want %d", tr.name, tr.mixed, want)
		}
	}
}

func TestPace(t *testing.T) {
	begin := time.Unix(1000, 0)
	rate := pace{perSecond: 4}
	speed := pace{speed: 60}
	for i := range 5 {
		at := event.Micros(i) * 60e6 // a record a minute
		if wait := rate.due(at, begin); wait != time.Duration(i)*250*time.Millisecond {
			t.Errorf("at 4/s record %d waits %v", i, wait)
		}
		if wait := speed.due(7e12+at, begin.Add(time.Second/2)); wait != time.Duration(i)*time.Second {
			t.Errorf("at 60 times real time record %d waits %v", i, wait)
		}
	}
	if wait := speed.due(7e12, begin.Add(time.Hour)); wait > 0 {
		t.Errorf("a record that is overdue waits %v", wait)
	}
}

func TestProduceUsage(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{"job.yaml": produceSpec, "orders.jsonl": orderLine("00", "00", "1", "go")} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"--input orders=orders.jsonl --rate 5 --speed 1", "exclude each other"},
		{"--input orders=orders.jsonl --rate fast", `--rate "fast": expected records per second`},
		{"--input orders=orders.jsonl --rate 0", "--rate"},
		{"--input orders=orders.jsonl --speed NaN", `--speed "NaN"`},
		{"--input orders=orders.jsonl --partitions 0", "--partitions 0: expected 1 to 256"},
		{"--input order=orders.jsonl", `no source "order" (its sources are ledger, orders, wallet)`},
		{"--input orders", "expected SOURCE=PATH"},
		{"--input orders=none.jsonl --input orders=orders.jsonl", "none.jsonl: no such file"},
		{"--input orders=orders.jsonl --input orders=orders.jsonl", "has an input already"},
		{"--input orders=orders.jsonl --kafka localhost", `broker "localhost": expected host:port`},
	} {
		command := newProduceCommand()
		command.SilenceErrors, command.SilenceUsage = true, true
		command.SetArgs(append(strings.Fields(c.args), "--spec", "job.yaml"))
		err := command.ExecuteContext(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.args, err, c.want)
		}
	}
}
