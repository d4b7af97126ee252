package e2e

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/weftdata/weft/paygen"
	"github.com/weftdata/weft/stack"
)

// TestChaos streams a payment environment through real processes while they are killed, stopped and cut off at random, and
// then asks `weft verify` whether the store and the archive hold exactly what a replay of the files gives.
//
// WEFT_CHAOS_ORDERS, WEFT_CHAOS_KILLS and WEFT_CHAOS_SEED choose another size, number of kills and seed; `make chaos` runs it
// at full size.
func TestChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	orders, kills := fromEnv(t, "WEFT_CHAOS_ORDERS", 14_000), fromEnv(t, "WEFT_CHAOS_KILLS", 6)
	seed := uint64(fromEnv(t, "WEFT_CHAOS_SEED", int(time.Now().UnixNano()&0xffff_ffff)))
	t.Logf("seed %d: repeat with WEFT_CHAOS_SEED=%d", seed, seed)
	c := newChaos(t, seed, 12*time.Minute)
	c.prepare(orders)
	c.startStack()
	rate := max(3000, float64(orders)*11.6/75) // about 11.6 records an order, in 75 s at most
	c.produceSome(rate)
	c.startJob(2)

	produced := make(chan error, 1)
	go func() { produced <- c.produce(rate) }()
	c.attack(kills, produced)
	c.rest()
	c.verify()
}

func fromEnv(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// chaos is a job over a stack, all of it processes that can be killed.
type chaos struct {
	*testing.T
	ctx       context.Context
	r         *rand.Rand
	dir       string
	weft, dev string   // binaries
	ports     []string // flags of the stack, which keeps its ports when it is killed
	inputs    []string
	env       []string
	at        stack.Addresses
	s3        *wire // between Weft and the object store

	stack, control *process
	workers        []*process
}

func newChaos(t *testing.T, seed uint64, limit time.Duration) *chaos {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	dir := t.TempDir()
	c := &chaos{T: t, ctx: ctx, r: rand.New(rand.NewPCG(seed, 5)), dir: dir}
	for _, name := range []string{"--temporal-port", "--kafka-port", "--s3-port"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		c.must(err)
		c.ports = append(c.ports, name, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
		c.must(l.Close())
	}
	return c
}

func (c *chaos) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// prepare builds the programs and generates the environment.
func (c *chaos) prepare(orders int) {
	c.Helper()
	c.weft, c.dev = built(c.T, weftProgram), built(c.T, devProgram)
	run(c.T, c.dir, c.weft, "gen", "--out", "pay", "--orders", strconv.Itoa(orders), "--seed", "3", "--span", "240h")
	c.inputs = []string{"--spec", filepath.Join(c.dir, "pay/job.yaml")}
	for _, s := range paygen.Sources() {
		c.inputs = append(c.inputs, "--input", s[0]+"="+filepath.Join(c.dir, "pay", s[1]))
	}
}

// file is where the stack says where it is.
func (c *chaos) file() string { return filepath.Join(c.dir, "stack.json") }

// startServers starts the embedded servers, again at the same ports.
func (c *chaos) startServers() {
	c.Helper()
	args := append([]string{"up", "--data", filepath.Join(c.dir, "stack"), "--json"}, c.ports...)
	c.stack = c.launch("stack", []string{"WEFT_STACK_FILE=" + c.file()}, c.dev, args...)
	select {
	case line := <-c.stack.first:
		if json.Unmarshal([]byte(line), &c.at) != nil {
			c.Fatalf("the servers did not start: %s", c.stack.tail())
		}
	case <-c.ctx.Done():
		c.Fatalf("the servers did not start: %s", c.stack.tail())
	}
	var err error
	c.at, err = stack.Read(c.file()) // it has what is not printed
	c.must(err)
}

// startStack starts the servers, and a wire to the object store.
func (c *chaos) startStack() {
	c.Helper()
	c.startServers()
	if c.s3 == nil {
		c.s3 = newWire(c.T, strings.TrimPrefix(c.at.S3, "http://"))
	}
	c.env = []string{
		"WEFT_TEMPORAL=" + c.at.Temporal, "WEFT_KAFKA=" + c.at.Kafka, "WEFT_S3=http://" + c.s3.address(), "WEFT_STORE=" + c.at.Store,
		"WEFT_S3_BUCKET=" + c.at.S3Bucket,
		"WEFT_S3_ACCESS_KEY_FILE=" + c.at.S3AccessKeyFile, "WEFT_S3_SECRET_KEY_FILE=" + c.at.S3SecretKeyFile,
		"WEFT_STACK_FILE=",
	}
}

// startJob registers and starts the job, a control worker and two processes for its shards, each of which could run all.
func (c *chaos) startJob(shards int) {
	c.Helper()
	c.command("job", "run", "--spec", c.inputs[1], "--shards", strconv.Itoa(shards), "--detach")
	c.control = c.launch("control", c.env, c.weft, "worker")
	for range 2 {
		c.workers = append(c.workers, c.startWorker())
	}
}

func (c *chaos) startWorker() *process {
	return c.launch("worker", c.env, c.weft, "worker", "--job", "payments", "--version", "1")
}

// command runs a weft command to its end.
func (c *chaos) command(args ...string) []byte {
	c.Helper()
	cmd := exec.CommandContext(c.ctx, c.weft, args...)
	cmd.Env = append(os.Environ(), c.env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		c.Fatalf("weft %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return out
}

func (c *chaos) startProducing(rate float64) *process {
	return c.launch("produce", c.env, c.weft, append([]string{"produce", "-q", "--partitions", "4", "--rate", fmt.Sprintf("%.0f", rate)}, c.inputs...)...)
}

// produceSome plays a few seconds of the files and is killed, so that these records come twice.
func (c *chaos) produceSome(rate float64) {
	p := c.startProducing(rate)
	select {
	case <-time.After(5 * time.Second):
	case <-p.done:
		c.Fatalf("produce ended: %s", p.tail())
	}
	p.kill()
}

// produce plays the files, from the start where it fails.
func (c *chaos) produce(rate float64) error {
	for try := 0; ; try++ {
		p := c.startProducing(rate)
		select {
		case <-p.done:
		case <-c.ctx.Done():
			return c.ctx.Err()
		}
		if p.err == nil || try == 3 {
			return p.err
		}
	}
}

// attack does harm until all records are produced and there were enough kills. On a machine that is so slow that there were twice
// as many, it lets the rest be produced.
func (c *chaos) attack(kills int, produced chan error) {
	c.Helper()
	pause := func(atMost time.Duration) {
		select {
		case <-time.After(time.Duration(c.r.Int64N(int64(atMost)))):
		case <-c.ctx.Done():
			c.Fatal("out of time")
		}
	}
	done := false
	for killed := 0; killed < kills || !done; {
		if !done {
			select {
			case err := <-produced:
				c.must(err)
				done = true
			default:
			}
		}
		if killed >= 2*kills && !done {
			select {
			case err := <-produced:
				c.must(err)
			case <-c.ctx.Done():
				c.Fatal("out of time")
			}
			return
		}
		pause(3 * time.Second)
		switch n := c.r.IntN(12); {
		case n < 5:
			i := c.r.IntN(len(c.workers))
			c.Logf("kill %d: worker %d", killed+1, i)
			c.workers[i].kill()
			pause(2 * time.Second)
			c.workers[i] = c.startWorker()
			killed++
		case n < 7: // it runs the workflows and archives
			c.Logf("kill %d: control worker", killed+1)
			c.control.kill()
			pause(2 * time.Second)
			c.control = c.launch("control", c.env, c.weft, "worker")
			killed++
		case n < 9:
			away := c.r.Int64N(4)
			if n == 8 {
				away += 11 // longer than the heartbeat timeout
			}
			c.Logf("kill %d: the servers, away for %d s", killed+1, away)
			c.stack.kill()
			pause(time.Duration(away)*time.Second + 1)
			c.startStack()
			killed++
		case n == 9:
			i := c.r.IntN(len(c.workers))
			c.Logf("stop worker %d for 14 s; its successor starts meanwhile", i)
			zombie := c.workers[i]
			c.must(zombie.signal(syscall.SIGSTOP))
			c.workers[i] = c.startWorker()
			select {
			case <-time.After(14 * time.Second):
			case <-c.ctx.Done():
			}
			c.must(zombie.signal(syscall.SIGCONT))
			pause(5 * time.Second)
			zombie.kill()
			killed++
		case n == 10:
			c.Log("the object store is away for 3 s")
			c.s3.cut(3 * time.Second)
		default:
			c.Log("the database is locked for 3 s")
			c.lockStore(3 * time.Second)
		}
	}
}

// lockStore keeps every database of the store locked against writing.
func (c *chaos) lockStore(d time.Duration) {
	c.Helper()
	folder := strings.TrimPrefix(c.at.Store, "sqlite:")
	files, err := filepath.Glob(filepath.Join(folder, "*.db"))
	c.must(err)
	if len(files) == 0 {
		c.Fatalf("no databases in %s", folder)
	}
	var held []func()
	for _, f := range files {
		db, err := sql.Open("sqlite", "file:"+f+"?_pragma=busy_timeout(2000)")
		c.must(err)
		conn, err := db.Conn(c.ctx)
		c.must(err)
		if _, err := conn.ExecContext(c.ctx, "BEGIN IMMEDIATE"); err == nil { // else a writer is faster: leave it
			held = append(held, func() { _, _ = conn.ExecContext(context.Background(), "ROLLBACK") })
		}
		defer func() { _ = errors.Join(conn.Close(), db.Close()) }()
	}
	select {
	case <-time.After(d):
	case <-c.ctx.Done():
	}
	for _, release := range held {
		release()
	}
}

// rest makes sure that everything runs.
func (c *chaos) rest() {
	for i, w := range c.workers {
		if w.ended() {
			c.Logf("worker %d had ended by itself: %s", i, w.tail())
			c.workers[i] = c.startWorker()
		}
	}
}

// verify compares the store, a replay of the archive and a replay of the files.
func (c *chaos) verify() {
	c.Helper()
	args := append([]string{"verify", "--job", "payments", "--wait", "4m", "--json"}, c.inputs[2:]...)
	cmd := exec.CommandContext(c.ctx, c.weft, args...)
	cmd.Env = append(os.Environ(), c.env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	c.Logf("%s", out)
	if err != nil {
		for _, p := range append(c.workers, c.control) {
			c.Logf("%s: %s", p.name, p.tail())
		}
		c.Fatalf("weft verify: %v\n%s", err, stderr.String())
	}
}

// process is a program that runs in the background.
type process struct {
	name  string
	cmd   *exec.Cmd
	log   string
	first chan string // its first line of output
	done  chan struct{}
	err   error // once done
}

var launches atomic.Int64

func (c *chaos) launch(name string, env []string, program string, args ...string) *process {
	c.Helper()
	n := launches.Add(1)
	p := &process{name: name, first: make(chan string, 1), done: make(chan struct{}), log: filepath.Join(c.dir, fmt.Sprintf("%s-%d.log", name, n))}
	log, err := os.Create(p.log)
	c.must(err)
	p.cmd = exec.Command(program, args...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := p.cmd.StdoutPipe()
	c.must(err)
	c.must(p.cmd.Start())
	go func() {
		lines := bufio.NewReader(out)
		line, _ := lines.ReadString('\n')
		p.first <- line
		_, _ = io.WriteString(log, line)
		_, _ = io.Copy(log, lines) // until the process ends
		p.err = p.cmd.Wait()
		_ = log.Close()
		close(p.done)
	}()
	c.Cleanup(p.kill)
	return p
}

func (p *process) signal(s syscall.Signal) error { return syscall.Kill(-p.cmd.Process.Pid, s) }

// kill ends the process with SIGKILL and waits for its end.
func (p *process) kill() {
	_ = p.signal(syscall.SIGKILL) // it may have ended
	<-p.done
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// tail returns the end of what the process has written.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-3000):])
}

// wire passes connections on to an address, until it is cut.
type wire struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	down  bool
	conns map[net.Conn]bool
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, to: to, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go w.pass(in)
		}
	}()
	return w
}

func (w *wire) address() string { return w.listener.Addr().String() }

// pass connects one connection.
func (w *wire) pass(in net.Conn) {
	out, err := net.Dial("tcp", w.to)
	if err != nil {
		_ = in.Close()
		return
	}
	if !w.keep(in, out) {
		return
	}
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1]) // until an end closes or the wire is cut
			_ = way[0].Close()
		})
	}
	both.Wait()
	w.mu.Lock()
	delete(w.conns, in)
	delete(w.conns, out)
	w.mu.Unlock()
}

// keep notes connections, or closes them while the wire is cut.
func (w *wire) keep(conns ...net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range conns {
		if w.down {
			_ = c.Close()
		} else {
			w.conns[c] = true
		}
	}
	return !w.down
}

// cut closes every connection and refuses new ones for a while.
func (w *wire) cut(d time.Duration) {
	w.mu.Lock()
	w.down = true
	for c := range w.conns {
		_ = c.Close()
	}
	w.mu.Unlock()
	<-time.After(d)
	w.mu.Lock()
	w.down = false
	w.mu.Unlock()
}
