package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
	"go.temporal.io/server/common/authorization"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/log"
	_ "go.temporal.io/server/common/persistence/sql/sqlplugin/postgresql" // the database of docker-compose.yml
	"go.temporal.io/server/temporal"
	"go.temporal.io/server/tools/sql"

	"github.com/weftdata/weft/devstack/compose"
	"github.com/weftdata/weft/paygen"
	"github.com/weftdata/weft/store"
)

// TestComposeSettings runs what docker-compose.yml says without containers: the same programs with the same arguments and
// environments, where only hosts, ports and folders are others. A job must give what a replay of its archive gives.
//
// What it does not run: the web UI, the images themselves, and the network and limits of containers.
func TestComposeSettings(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute and a half")
	}
	t.Parallel() // most of it is waiting
	n := newNative(t)
	n.startPostgres()
	n.startKafka()
	n.startS3()
	for range 2 { // as at every `docker compose up`
		n.run("temporal-schema")
	}
	n.startTemporal()
	if out := n.run("weft-setup"); !strings.Contains(out, "namespace default: made, registered WeftJob, WeftPhase, WeftVersion") {
		t.Errorf("weft setup says %s", out)
	}
	if out := n.run("weft-setup"); !strings.Contains(out, "everything is there already") {
		t.Errorf("weft setup says the second time: %s", out)
	}
	weft := n.start("weft", n.argv("weft"), n.env("weft"))
	n.awaitHealthy("weft", weft)
	n.passwordsCount()
	n.pings()

	agent := n.start("weft-agent", n.argv("weft-agent"), n.env("weft-agent"))
	n.awaitHealthy("weft-agent", agent)
	n.runJob(agent)
	verified := n.weft("verify", "--job", "payments", "--wait", "3m", "--json")
	var v struct{ Equal bool }
	if err := json.Unmarshal(verified, &v); err != nil || !v.Equal {
		t.Errorf("weft verify: %v, %s", err, verified)
	}
	n.phase("the stream gave what a replay of its archive gives")
	n.stopInTime("weft-agent", agent)
	n.stopInTime("weft", weft)
}

// native runs services of docker-compose.yml as processes of this machine.
type native struct {
	*testing.T
	ctx     context.Context
	project *types.Project
	dir     string
	path    string            // where programs are found
	bin     string            // folder of PostgreSQL's programs
	jars    string            // folder of Kafka's
	ports   map[string]string // ports of this machine by service:port
	taken   map[string]bool   // ports that were given out
	began   time.Time
}

func newNative(t *testing.T) *native {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	t.Cleanup(cancel)
	n := &native{T: t, ctx: ctx, bin: postgresBinaries(t), jars: kafkaJars(t), ports: map[string]string{}, taken: map[string]bool{}, began: time.Now()}
	var err error
	n.dir, err = os.MkdirTemp("", "weft-compose") // the path of PostgreSQL's socket must be short
	n.must(err)
	t.Cleanup(func() { _ = os.RemoveAll(n.dir) })
	n.must(os.Chmod(n.dir, 0o755)) // PostgreSQL runs as another user

	root, err := compose.Root()
	n.must(err)
	run(t, root, filepath.Join(root, "scripts/compose-env.sh"), filepath.Join(n.dir, "env"))
	n.project, err = compose.Load(ctx, root, filepath.Join(n.dir, "env"))
	n.must(err)
	for service, ports := range map[string][]string{"postgres": {"5432"}, "temporal": {"7233"}, "kafka": {"9092", "9093", "29092"}, "s3": {"7070"}} {
		for _, p := range ports {
			n.ports[service+":"+p] = n.freePort()
		}
	}
	programs := filepath.Join(n.dir, "bin")
	n.must(os.Mkdir(programs, 0o755))
	self, err := os.Executable()
	n.must(err)
	for _, name := range []string{"temporal-server", "temporal-sql-tool", "versitygw"} {
		n.must(os.Symlink(self, filepath.Join(programs, name)))
	}
	n.must(os.Symlink(built(t, weftProgram), filepath.Join(programs, "weft")))
	n.path = programs + ":" + n.bin + ":" + os.Getenv("PATH")
	n.phase("built")
	return n
}

func (n *native) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

func (n *native) phase(what string) {
	n.Logf("%5.1f s  %s", time.Since(n.began).Seconds(), what)
}

// freePort returns a port below those that systems give to outgoing connections: one of these could hold it when its server starts.
func (n *native) freePort() string {
	n.Helper()
	for range 1000 {
		port := strconv.Itoa(20_000 + rand.IntN(12_000))
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil || n.taken[port] {
			continue
		}
		n.must(l.Close())
		n.taken[port] = true
		return port
	}
	n.Fatal("no port is free between 20000 and 32000")
	return ""
}

// kafkaJars returns the folder of the broker's jars, which scripts/kafka-jars.sh fetches.
func kafkaJars(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("WEFT_KAFKA_JARS")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Skip("no folder for Kafka's jars: ", err)
		}
		dir = filepath.Join(cache, "weft", "kafka")
	}
	done, _ := filepath.Glob(filepath.Join(dir, "*", "complete"))
	if _, err := exec.LookPath("java"); err != nil || len(done) == 0 {
		t.Skipf("needs Java and the jars of Apache Kafka: scripts/kafka-jars.sh %s", dir)
	}
	return filepath.Join(filepath.Dir(done[len(done)-1]), "lib")
}

// translate makes text of a service one for this machine: hosts and ports become those of this machine, and the folders of
// volumes become folders of the test.
func (n *native) translate(service, text string) string {
	n.Helper()
	for _, v := range n.project.Services[service].Volumes {
		to := filepath.Join(n.dir, "volumes", v.Source)
		if v.Type == types.VolumeTypeBind {
			to = v.Source
		}
		if text == v.Target || strings.HasPrefix(text, v.Target+"/") {
			text = to + strings.TrimPrefix(text, v.Target)
		}
	}
	return regexp.MustCompile(`([a-z][a-z0-9-]*|127\.0\.0\.1|localhost|://|^):(\d+)\b`).ReplaceAllStringFunc(text, func(found string) string {
		at := strings.LastIndexByte(found, ':')
		host, port := found[:at], found[at+1:]
		of := host
		switch host {
		case "", "://", "127.0.0.1", "localhost":
			of = service
		}
		mine, ok := n.ports[of+":"+port]
		switch {
		case !ok:
			return found
		case host == "://":
			return "://127.0.0.1:" + mine
		}
		return "127.0.0.1:" + mine
	})
}

// env returns the environment of a service, and what its programs need of this machine.
func (n *native) env(service string, more ...string) []string {
	n.Helper()
	out := append([]string{"PATH=" + n.path}, more...)
	for key, value := range n.project.Services[service].Environment {
		text := n.translate(service, *value)
		switch {
		case text == "postgres": // its host alone
			text = "127.0.0.1"
		case text == "5432": // its port alone
			text = n.ports["postgres:5432"]
		case text == "0.0.0.0":
			text = "127.0.0.1"
		}
		out = append(out, key+"="+text)
	}
	return out
}

// argv returns what a service runs. The program of an image's own entrypoint is named by the caller.
func (n *native) argv(service string, program ...string) []string {
	s := n.project.Services[service]
	argv := slices.Concat(program, s.Entrypoint, s.Command)
	if service == "weft" || strings.HasPrefix(service, "weft-") {
		argv = slices.Insert(argv, 0, "weft") // the image's entrypoint
	}
	for i := range argv {
		argv[i] = n.translate(service, argv[i])
	}
	return argv
}

// command is a program with an environment and no other.
func (n *native) command(ctx context.Context, argv, env []string) *exec.Cmd {
	name := argv[0]
	for dir := range strings.SplitSeq(n.path, ":") {
		if file := filepath.Join(dir, argv[0]); !filepath.IsAbs(name) && isFile(file) {
			name = file
		}
	}
	c := exec.CommandContext(ctx, name, argv[1:]...)
	c.Dir, c.Env = n.dir, env
	return c
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular()
}

// run runs a service that ends by itself.
func (n *native) run(service string) string {
	n.Helper()
	out, err := n.command(n.ctx, n.argv(service), n.env(service)).CombinedOutput()
	if err != nil {
		n.logs()
		n.Fatalf("%s: %v\n%s", service, err, out)
	}
	n.phase(service + " is done")
	return string(out)
}

// logs shows the end of what every process has written.
func (n *native) logs() {
	n.Helper()
	files, _ := filepath.Glob(filepath.Join(n.dir, "*.log"))
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil {
			n.Logf("%s: %s", filepath.Base(file), text[max(0, len(text)-4000):])
		}
	}
}

// start runs a service that goes on.
func (n *native) start(name string, argv, env []string) *process {
	n.Helper()
	p := &process{name: name, done: make(chan struct{}), log: filepath.Join(n.dir, name+".log")}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	n.must(err)
	p.cmd = n.command(context.WithoutCancel(n.ctx), argv, env)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	n.must(p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		_ = log.Close()
		close(p.done)
	}()
	n.Cleanup(p.kill)
	return p
}

// await asks until there is no error any more, while the process runs.
func (n *native) await(what string, p *process, ask func() error) {
	n.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(90 * time.Second)
	for {
		err := ask()
		if err == nil {
			n.phase(what)
			return
		}
		select {
		case <-tick.C:
		case <-p.done:
			n.Fatalf("%s ended before %s: %v\n%s", p.name, what, p.err, p.tail())
		case <-limit:
			n.Fatalf("after 90 s not yet %s: %v\n%s", what, err, p.tail())
		}
	}
}

// health is what the health check of a service runs.
func (n *native) health(service string) []string {
	test := slices.Clone([]string(n.project.Services[service].HealthCheck.Test[1:]))
	for i := range test {
		test[i] = n.translate(service, test[i])
	}
	return test
}

func (n *native) listens(address string) func() error {
	return func() error {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

// startPostgres does what the image does with its variables and the script that is mounted into it.
func (n *native) startPostgres() {
	n.Helper()
	s := n.project.Services["postgres"]
	user := *s.Environment["POSTGRES_USER"]
	dir := filepath.Join(n.dir, "postgres")
	n.must(os.Mkdir(dir, 0o755))
	n.must(os.WriteFile(filepath.Join(dir, "password"), []byte(*s.Environment["POSTGRES_PASSWORD"]+"\n"), 0o644))
	attr := &syscall.SysProcAttr{Setpgid: true}
	if os.Getuid() == 0 { // PostgreSQL refuses to run as root
		const nobody = 65534
		attr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		n.must(os.Chown(dir, nobody, nobody))
	}
	data, port := filepath.Join(dir, "data"), n.ports["postgres:5432"]
	initdb := n.command(n.ctx, []string{"initdb", "-D", data, "--username=" + user, "--pwfile=" + filepath.Join(dir, "password"),
		"--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--no-sync"}, n.env("postgres"))
	initdb.SysProcAttr = attr
	if out, err := initdb.CombinedOutput(); err != nil {
		n.Fatalf("initdb: %v: %s", err, out)
	}
	args := slices.Concat(s.Command, []string{"-D", data, "-k", dir, "-c", "listen_addresses=127.0.0.1", "-c", "port=" + port, "-c", "fsync=off"})
	p := &process{name: "postgres", done: make(chan struct{}), log: filepath.Join(n.dir, "postgres.log")}
	log, err := os.Create(p.log)
	n.must(err)
	p.cmd = n.command(context.WithoutCancel(n.ctx), args, n.env("postgres"))
	p.cmd.SysProcAttr, p.cmd.Stdout, p.cmd.Stderr = attr, log, log
	n.must(p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		_ = log.Close()
		close(p.done)
	}()
	n.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGINT) // a fast shutdown: it does not wait for clients
		<-p.done
	})
	n.await("PostgreSQL answers", p, func() error {
		return n.command(n.ctx, []string{"pg_isready", "-h", dir, "-p", port}, n.env("postgres")).Run()
	})
	// The image makes a database of the user's name, and runs what is mounted.
	socket := []string{"PGHOST=" + dir, "PGPORT=" + port}
	if out, err := n.command(n.ctx, []string{"createdb", "-U", user, user}, n.env("postgres", socket...)).CombinedOutput(); err != nil {
		n.Fatalf("createdb: %v: %s", err, out)
	}
	script := n.translate("postgres", "/docker-entrypoint-initdb.d/10-weft.sh")
	if out, err := n.command(n.ctx, []string{script}, n.env("postgres", socket...)).CombinedOutput(); err != nil {
		n.Fatalf("%s: %v: %s", script, err, out)
	}
	n.await("PostgreSQL is healthy", p, func() error {
		out, err := n.command(n.ctx, append(n.health("postgres"), "-p", port), n.env("postgres")).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
}

// startKafka makes the broker's properties with the program that the image makes them with.
func (n *native) startKafka() {
	n.Helper()
	dir := filepath.Join(n.dir, "kafka")
	for _, name := range []string{"defaults", "mounted", "config"} {
		n.must(os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	const clusterOfImage = "5L6g3nShT-eMCtK--X86sw"
	java := func(main string, args ...string) []string {
		return append([]string{"java", "-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", n.jars + "/*", main}, args...)
	}
	env := n.env("kafka", "CLUSTER_ID="+clusterOfImage)
	out, err := n.command(n.ctx, java("kafka.docker.KafkaDockerWrapper", "setup", "--default-configs-dir", filepath.Join(dir, "defaults"),
		"--mounted-configs-dir", filepath.Join(dir, "mounted"), "--final-configs-dir", filepath.Join(dir, "config")), env).CombinedOutput()
	if err != nil {
		n.Fatalf("the set-up of the image: %v: %s", err, out)
	}
	properties := filepath.Join(dir, "config", "server.properties")
	text, err := os.ReadFile(properties)
	n.must(err)
	n.Logf("server.properties:\n%s", text)
	p := n.start("kafka", java("kafka.Kafka", properties), env)
	n.await("Kafka listens", p, n.listens("127.0.0.1:"+n.ports["kafka:9092"]))
}

func (n *native) startS3() {
	n.Helper()
	n.must(os.MkdirAll(filepath.Join(n.dir, "volumes", "s3"), 0o755))
	n.run("s3-bucket")
	p := n.start("s3", n.argv("s3", "versitygw"), n.env("s3"))
	test := n.health("s3")
	n.await("the object store is healthy", p, func() error {
		r, err := http.Get(test[len(test)-1])
		if err == nil {
			_ = r.Body.Close() // only its status counts
			if r.StatusCode != http.StatusOK {
				err = errors.New(r.Status)
			}
		}
		return err
	})
}

func (n *native) startTemporal() {
	n.Helper()
	var own []string // ports that others do not know, so that servers of other tests keep theirs
	for _, part := range []string{"FRONTEND", "MATCHING", "HISTORY", "WORKER"} {
		if part != "FRONTEND" {
			own = append(own, part+"_GRPC_PORT="+n.freePort())
		}
		own = append(own, part+"_MEMBERSHIP_PORT="+n.freePort())
	}
	own = append(own, "FRONTEND_HTTP_PORT="+n.freePort(), "FRONTEND_GRPC_PORT="+n.ports["temporal:7233"])
	p := n.start("temporal", []string{"temporal-server", "start"}, n.env("temporal", own...))
	test := n.health("temporal") // nc -z host port
	if len(test) != 4 || test[0] != "nc" || n.ports["temporal:"+test[3]] == "" {
		n.Fatalf("the health check of temporal is %q", test)
	}
	n.await("Temporal is healthy", p, n.listens("127.0.0.1:"+n.ports["temporal:"+test[3]]))
}

// runTemporalServer is what Temporal's program does with `start`, as the image starts it: the configuration comes from variables.
func runTemporalServer() error {
	cfg, err := config.Load(config.WithEmbedded())
	if err != nil {
		return err
	}
	authorizer, err := authorization.GetAuthorizerFromConfig(&cfg.Global.Authorization)
	if err != nil {
		return err
	}
	logger := log.NewZapLogger(log.BuildZapLogger(cfg.Log))
	claims, err := authorization.GetClaimMapperFromConfig(&cfg.Global.Authorization, logger)
	if err != nil {
		return err
	}
	s, err := temporal.NewServer(temporal.ForServices(temporal.DefaultServices), temporal.WithConfig(cfg), temporal.WithLogger(logger),
		temporal.InterruptOn(temporal.InterruptCh()), temporal.WithAuthorizer(authorizer),
		temporal.WithClaimMapper(func(*config.Config) authorization.ClaimMapper { return claims }))
	if err != nil {
		return err
	}
	return s.Start()
}

func runTemporalSQLTool() error { return sql.RunTool(os.Args) }

// runVersityGW is what the gateway's program does with the flags of docker-compose.yml; others it does not know.
func runVersityGW() error {
	f := flag.NewFlagSet("versitygw", flag.ContinueOnError)
	port := f.String("port", "", "")
	health := f.String("health", "", "")
	if err := f.Parse(os.Args[1:]); err != nil {
		return err
	}
	if f.NArg() != 2 || f.Arg(0) != "posix" {
		return fmt.Errorf("expected posix and a folder, got %q", f.Args())
	}
	folder, err := posix.New(f.Arg(1), meta.XattrMeta{}, posix.PosixOpts{})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return embedgw.RunVersityGW(ctx, folder, &embedgw.Config{
		RootUserAccess: os.Getenv("ROOT_ACCESS_KEY"), RootUserSecret: os.Getenv("ROOT_SECRET_KEY"), Region: "us-east-1",
		Ports: []string{*port}, HealthPath: *health, MaxConnections: 10_000, MaxRequests: 1_000, MultipartMaxParts: 10_000,
	})
}

// awaitHealthy asks the health check of one of Weft's services.
func (n *native) awaitHealthy(service string, p *process) {
	n.Helper()
	test := n.health(service)
	if test[0] != "/weft" {
		n.Fatalf("the health check of %s is %q", service, test)
	}
	test[0] = "weft"
	n.await(service+" is healthy", p, func() error {
		out, err := n.command(n.ctx, test, n.env(service)).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
}

// passwordsCount checks that PostgreSQL lets nobody in without the password that was made.
func (n *native) passwordsCount() {
	n.Helper()
	dsn := n.translate("weft", *n.project.Services["weft"].Environment["WEFT_STORE"])
	if version, known, err := store.Schema(n.ctx, dsn); err != nil || version != known {
		n.Errorf("the store has schema %d of %d: %v", version, known, err)
	}
	wrong := regexp.MustCompile(`:[0-9a-f]{48}@`).ReplaceAllString(dsn, ":wrong@")
	var e *store.Error
	if _, _, err := store.Schema(n.ctx, wrong); !errors.As(err, &e) || e.Class != store.User {
		n.Errorf("with a wrong password: %v", err)
	}
}

// pings asks all servers from Weft's environment, and then with one of them gone astray.
func (n *native) pings() {
	n.Helper()
	type answer struct {
		Server, At, Text, Error string
		OK                      bool
	}
	ask := func(code int, env []string, args ...string) (answers []answer) {
		n.Helper()
		out, err := n.command(n.ctx, append([]string{"weft", "ping", "--json"}, args...), env).Output()
		var exit *exec.ExitError
		if got := 0; errors.As(err, &exit) {
			if got = exit.ExitCode(); got != code {
				n.Errorf("weft ping %q ended with %d, want %d: %s", args, got, code, exit.Stderr)
			}
		} else if code != 0 || err != nil {
			n.Errorf("weft ping %q: %v, want exit code %d", args, err, code)
		}
		for line := range strings.Lines(string(out)) {
			var a answer
			n.must(json.Unmarshal([]byte(line), &a))
			answers = append(answers, a)
		}
		return answers
	}
	for _, a := range ask(0, n.env("weft"), "--polls", "weft") {
		n.Logf("%s at %s: %s%s", a.Server, a.At, a.Text, a.Error)
		if !a.OK || strings.Contains(a.At, *n.project.Services["s3"].Environment["ROOT_SECRET_KEY"]) || regexp.MustCompile(`[0-9a-f]{48}`).MatchString(a.At) {
			n.Errorf("%+v", a)
		}
	}
	for _, c := range []struct {
		args  []string
		env   string
		wrong string // what the error says
	}{
		{[]string{"--only", "temporal", "--polls", "nobody"}, "", "has polled the queue nobody"},
		{[]string{"--only", "temporal", "--namespace", "other"}, "", "weft setup --create-namespace"},
		{[]string{"--only", "kafka"}, "WEFT_KAFKA=127.0.0.1:1", "127.0.0.1:1"},
		{[]string{"--only", "s3"}, "WEFT_S3_SECRET_KEY=wrong", "key"},
		{[]string{"--only", "store"}, "WEFT_STORE=postgres://weft:wrong@127.0.0.1:" + n.ports["postgres:5432"] + "/weft?sslmode=disable", "password"},
	} {
		got := ask(1, append(n.env("weft"), c.env), c.args...)
		if len(got) != 1 || got[0].OK || !strings.Contains(got[0].Error, c.wrong) {
			n.Errorf("weft ping %q with %s: %+v, want an error with %q", c.args, c.env, got, c.wrong)
		}
	}
	n.phase("weft ping answers")
}

// weft runs a command in Weft's environment, as `docker compose exec weft /weft` does.
func (n *native) weft(args ...string) []byte {
	n.Helper()
	var stderr strings.Builder
	c := n.command(n.ctx, append([]string{"weft"}, args...), n.env("weft"))
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		n.logs()
		n.Fatalf("weft %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return out
}

// runJob plays a small environment into Kafka and deploys its job, which the agent runs.
func (n *native) runJob(agent *process) {
	n.Helper()
	n.weft("gen", "--out", "pay", "--orders", "500", "--seed", "3", "--span", "12h")
	play := []string{"produce", "-q", "--spec", "pay/job.yaml", "--partitions", "2"}
	for _, s := range paygen.Sources() {
		play = append(play, "--input", s[0]+"=pay/"+s[1])
	}
	n.weft(play...)
	n.phase("the records are in Kafka")
	n.weft("deploy", "--spec", "pay/job.yaml", "--watch")
	n.await("the job has sessions", agent, func() error {
		out, err := n.command(n.ctx, []string{"weft", "sessions", "--job", "payments", "--limit", "1", "--json"}, n.env("weft")).CombinedOutput()
		if err == nil && !strings.Contains(string(out), `"id"`) {
			err = errors.New("it has none")
		}
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
}

// stopInTime stops a process as `docker compose stop` does: it must end by itself before it would be killed.
func (n *native) stopInTime(service string, p *process) {
	n.Helper()
	how := map[string]syscall.Signal{"": syscall.SIGTERM, "SIGINT": syscall.SIGINT}[n.project.Services[service].StopSignal]
	n.must(p.cmd.Process.Signal(how))
	grace := time.Duration(*n.project.Services[service].StopGracePeriod)
	select {
	case <-p.done:
		if p.err != nil {
			n.Errorf("%s ended with %v: %s", p.name, p.err, p.tail())
		}
	case <-time.After(grace):
		n.Errorf("%s did not end within %s: %s", p.name, grace, p.tail())
	}
	n.phase(service + " stopped")
}
