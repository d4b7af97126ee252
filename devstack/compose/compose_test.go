package compose

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
)

func root(t *testing.T) string {
	t.Helper()
	dir, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// envFile makes an env file as the documents say.
func envFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "env")
	if out, err := exec.CommandContext(t.Context(), filepath.Join(root(t), "scripts/compose-env.sh"), file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return file
}

func project(t *testing.T) *types.Project {
	t.Helper()
	p, err := Load(t.Context(), root(t), envFile(t))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// jobs are the services that end by themselves, and those that people start.
func jobs() []string { return []string{"temporal-schema", "s3-bucket", "weft-setup", "temporal-tools"} }

func TestServices(t *testing.T) {
	p := project(t)
	want := []string{"kafka", "postgres", "s3", "s3-bucket", "temporal", "temporal-schema", "temporal-tools", "temporal-ui", "weft", "weft-agent", "weft-setup"}
	if got := slices.Sorted(maps.Keys(p.Services)); !slices.Equal(got, want) {
		t.Fatalf("services are %q, want %q", got, want)
	}
	for name, s := range p.Services {
		ends := slices.Contains(jobs(), name)
		if ends {
			if s.HealthCheck != nil && !s.HealthCheck.Disable || s.Restart != "" && s.Restart != "no" {
				t.Errorf("%s ends by itself: it needs neither a health check nor a restart", name)
			}
			continue
		}
		if s.Restart != "unless-stopped" {
			t.Errorf("%s: restart is %q", name, s.Restart)
		}
		h := s.HealthCheck
		if h == nil || h.Disable || len(h.Test) < 2 || h.Test[0] != "CMD" {
			t.Errorf("%s has no health check that does without a shell: %+v", name, h)
			continue
		}
		if h.Interval == nil || h.Timeout == nil || h.StartPeriod == nil || h.StartInterval == nil || *h.StartInterval > *h.Interval || *h.Timeout > *h.Interval {
			t.Errorf("%s: times of the health check are %+v", name, h)
		}
		if len(s.Profiles) > 0 {
			t.Errorf("%s starts only with the profiles %v", name, s.Profiles)
		}
	}
	if tools := p.Services["temporal-tools"]; !slices.Equal(tools.Profiles, []string{"tools"}) {
		t.Errorf("temporal-tools has the profiles %v: it is for people to run", tools.Profiles)
	}
}

func TestNothingListensBeyondLoopback(t *testing.T) {
	taken := map[string]string{}
	for name, s := range project(t).Services {
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" || port.Published == "" || port.Protocol != "tcp" {
				t.Errorf("%s publishes %+v: expected 127.0.0.1 and a port", name, port)
			}
			if other := taken[port.Published]; other != "" {
				t.Errorf("%s and %s both publish %s", name, other, port.Published)
			}
			taken[port.Published] = name
		}
		if s.NetworkMode != "" || s.Privileged || s.Pid != "" || s.Ipc != "" {
			t.Errorf("%s leaves its container: network %q, privileged %v", name, s.NetworkMode, s.Privileged)
		}
	}
	want := map[string]string{"7233": "temporal", "8233": "temporal-ui", "9000": "s3", "15432": "postgres", "29092": "kafka"}
	if !maps.Equal(taken, want) {
		t.Errorf("published are %v, want %v", taken, want)
	}
}

func TestVolumes(t *testing.T) {
	p := project(t)
	used := map[string]int{}
	for name, s := range p.Services {
		for _, v := range s.Volumes {
			switch v.Type {
			case types.VolumeTypeVolume:
				if _, ok := p.Volumes[v.Source]; !ok {
					t.Errorf("%s uses the volume %s, which is not declared", name, v.Source)
				}
				used[v.Source]++
			case types.VolumeTypeBind:
				if !v.ReadOnly {
					t.Errorf("%s can write to %s of this machine", name, v.Source)
				}
				if info, err := os.Stat(v.Source); err != nil || !info.Mode().IsRegular() {
					t.Errorf("%s mounts %s: %v", name, v.Source, err)
				} else if strings.HasSuffix(v.Target, ".sh") && info.Mode()&0o111 == 0 {
					// The image would source it, with its own shell's settings, instead of running it.
					t.Errorf("%s mounts %s, which cannot be executed", name, v.Source)
				}
			default:
				t.Errorf("%s mounts a %s", name, v.Type)
			}
		}
	}
	for name := range p.Volumes {
		if used[name] == 0 {
			t.Errorf("nobody uses the volume %s", name)
		}
	}
	for service, target := range map[string]string{"postgres": "/var/lib/postgresql/data", "s3": "/data", "weft": "/var/lib/weft", "weft-agent": "/var/lib/weft",
		"kafka": *p.Services["kafka"].Environment["KAFKA_LOG_DIRS"]} {
		if !slices.ContainsFunc(p.Services[service].Volumes, func(v types.ServiceVolumeConfig) bool { return v.Type == types.VolumeTypeVolume && v.Target == target }) {
			t.Errorf("%s keeps %s in no volume", service, target)
		}
	}
}

// TestNoPasswordIsKnown leaves each password out in turn: there must be no other, and the error must say what to do.
func TestNoPasswordIsKnown(t *testing.T) {
	file := envFile(t)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others can read the passwords: %v, %v", info.Mode(), err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	passwords := regexp.MustCompile(`(?m)^(\w+)=([0-9a-f]{48})$`).FindAllStringSubmatch(string(text), -1)
	if len(passwords) != 3 {
		t.Fatalf("compose-env.sh makes %d passwords, want 3", len(passwords))
	}
	for _, p := range passwords {
		without := filepath.Join(t.TempDir(), "without")
		if err := os.WriteFile(without, []byte(strings.Replace(string(text), p[0], "", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(t.Context(), root(t), without)
		if err == nil || !strings.Contains(err.Error(), p[1]) || !strings.Contains(err.Error(), "run scripts/compose-env.sh") {
			t.Errorf("without %s: %v", p[1], err)
		}
	}
	// Each stands where it belongs and nowhere else.
	holders := map[string][]string{}
	for name, s := range project(t).Services {
		for key, value := range s.Environment {
			if value != nil && regexp.MustCompile(`[0-9a-f]{48}`).MatchString(*value) {
				holders[name] = append(holders[name], key)
			} else if value != nil && regexp.MustCompile(`PASSWORD|PWD|SECRET`).MatchString(key) {
				t.Errorf("%s: %s is a password that everybody knows", name, key)
			}
		}
	}
	want := map[string][]string{"postgres": {"POSTGRES_PASSWORD", "WEFT_STORE_PASSWORD"}, "temporal-schema": {"SQL_PASSWORD"}, "temporal": {"POSTGRES_PWD"},
		"s3": {"ROOT_SECRET_KEY"}}
	for _, name := range []string{"weft", "weft-agent", "weft-setup"} {
		want[name] = []string{"WEFT_S3_SECRET_KEY", "WEFT_STORE"}
	}
	for name, keys := range holders {
		slices.Sort(keys)
		if !slices.Equal(keys, want[name]) {
			t.Errorf("%s holds the passwords %q, want %q", name, keys, want[name])
		}
	}
	if len(holders) != len(want) {
		t.Errorf("passwords are in %v, want %v", holders, want)
	}
}

func TestEnvFileIsNotReplaced(t *testing.T) {
	file := envFile(t)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(root(t), "scripts/compose-env.sh"), file).CombinedOutput()
	after, readErr := os.ReadFile(file)
	if err == nil || readErr != nil || string(before) != string(after) || !strings.Contains(string(out), "down --volumes") {
		t.Errorf("a second run: %v, %s", err, out)
	}
}

// TestWeftContainers checks what keeps the containers of Weft small and harmless.
func TestWeftContainers(t *testing.T) {
	p := project(t)
	for _, name := range []string{"weft", "weft-agent", "weft-setup"} {
		s := p.Services[name]
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") || len(s.CapAdd) > 0 || s.User != "" {
			t.Errorf("%s: read_only %v, cap_drop %v, security_opt %v, cap_add %v, user %q", name, s.ReadOnly, s.CapDrop, s.SecurityOpt, s.CapAdd, s.User)
		}
		if s.Image != "weft:local" || s.Build == nil || s.Build.Context != root(t) || !slices.Equal(s.Tmpfs, []string{"/tmp"}) || s.Init == nil || !*s.Init {
			t.Errorf("%s: image %s, build %+v, tmpfs %v, init %v", name, s.Image, s.Build, s.Tmpfs, s.Init)
		}
		const lastCheckpoint = 30 * time.Second
		if s.StopGracePeriod == nil || time.Duration(*s.StopGracePeriod) <= lastCheckpoint {
			t.Errorf("%s is killed after %v, before its last checkpoint", name, s.StopGracePeriod)
		}
		if !maps.EqualFunc(s.Environment, p.Services["weft"].Environment, func(a, b *string) bool { return *a == *b }) {
			t.Errorf("%s has another environment than weft", name)
		}
	}
	if s := p.Services["weft-agent"]; s.MemLimit < 1<<30 {
		t.Errorf("weft-agent has a memory limit of %d bytes: it runs all versions", s.MemLimit)
	}
}

// TestOrder checks that nothing starts before what it asks.
func TestOrder(t *testing.T) {
	p := project(t)
	const healthy, done = types.ServiceConditionHealthy, types.ServiceConditionCompletedSuccessfully
	for name, needs := range map[string]map[string]string{
		"temporal-schema": {"postgres": healthy},
		"temporal":        {"postgres": healthy, "temporal-schema": done},
		"temporal-ui":     {"temporal": healthy},
		"s3":              {"s3-bucket": done},
		"weft-setup":      {"temporal": healthy},
		"weft":            {"weft-setup": done, "temporal": healthy, "postgres": healthy, "kafka": healthy, "s3": healthy},
		"weft-agent":      {"weft-setup": done, "temporal": healthy, "postgres": healthy, "kafka": healthy, "s3": healthy},
	} {
		got := map[string]string{}
		for other, d := range p.Services[name].DependsOn {
			got[other] = d.Condition
		}
		if !maps.Equal(got, needs) {
			t.Errorf("%s waits for %v, want %v", name, got, needs)
		}
	}
}

// TestAddresses follows every host:port that one service calls another by.
func TestAddresses(t *testing.T) {
	p := project(t)
	listens := map[string][]string{"postgres": {"5432"}, "temporal": {"7233"}, "kafka": {"9092", "9093", "29092"}, "s3": {"7070"}, "temporal-ui": {"8080"}}
	found := 0
	for name, s := range p.Services {
		for key, value := range s.Environment {
			if value == nil {
				continue
			}
			for _, m := range regexp.MustCompile(`(?:^|[@/,])([a-z0-9-]+):(\d+)`).FindAllStringSubmatch(*value, -1) {
				if m[1] == "localhost" || m[1] == "weft" { // the latter is a user, before its password
					continue
				}
				found++
				if !slices.Contains(listens[m[1]], m[2]) {
					t.Errorf("%s: %s names %s:%s, where nobody listens", name, key, m[1], m[2])
				}
			}
		}
		for _, port := range s.Ports {
			if !slices.ContainsFunc(listens[name], func(p string) bool { return port.Target == number(p) }) {
				t.Errorf("%s publishes %d, where it does not listen", name, port.Target)
			}
		}
	}
	if found < 12 {
		t.Errorf("found %d addresses: the test reads nothing", found)
	}
	for _, listener := range []string{"INSIDE://kafka:9092", "OUTSIDE://127.0.0.1:29092"} {
		if !strings.Contains(*p.Services["kafka"].Environment["KAFKA_ADVERTISED_LISTENERS"], listener) {
			t.Errorf("Kafka is not reached as %s", listener)
		}
	}
}

func number(s string) (n uint32) {
	for _, c := range s {
		n = n*10 + uint32(c-'0')
	}
	return n
}

// TestVersions checks that every image is pinned, and to the version that the tests of this repository run.
func TestVersions(t *testing.T) {
	dir := root(t)
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	module := func(path string) string {
		m := regexp.MustCompile(`(?m)^\s+` + regexp.QuoteMeta(path) + ` (v\S+)`).FindStringSubmatch(read("devstack/go.mod"))
		if m == nil {
			t.Fatalf("devstack/go.mod does not require %s", path)
		}
		return m[1]
	}
	server := strings.TrimPrefix(module("go.temporal.io/server"), "v")
	jars, _ := filepath.Glob(filepath.Join(dir, "scripts/kafka-*.sha256"))
	if len(jars) != 1 {
		t.Fatalf("expected one version of Kafka's jars, found %q", jars)
	}
	want := map[string]string{
		"temporalio/server":      server,
		"temporalio/admin-tools": server,
		"versity/versitygw":      module("github.com/versity/versitygw"),
		"apache/kafka":           strings.TrimSuffix(strings.TrimPrefix(filepath.Base(jars[0]), "kafka-"), ".sha256"),
		"weft":                   "local",
	}
	pinned := regexp.MustCompile(`^v?\d+\.\d+(\.\d+)?(-[a-z]+)?$`)
	for name, s := range project(t).Services {
		repository, tag, _ := strings.Cut(s.Image, ":")
		if w := want[repository]; w != "" && tag != w || w == "" && !pinned.MatchString(tag) {
			t.Errorf("%s: the image %s is not pinned, or not to %s", name, s.Image, w)
		}
	}
	if from, goes := read("Dockerfile"), regexp.MustCompile(`(?m)^go (\S+)`).FindStringSubmatch(read("devstack/go.mod")); !strings.Contains(from, "FROM golang:"+goes[1]+"-") {
		t.Errorf("the Dockerfile builds with another Go than %s, which the tests want", goes[1])
	}
}

// TestCommandsAreInTheImages checks that what a container is told to run is known to be in its image.
func TestCommandsAreInTheImages(t *testing.T) {
	dir := root(t)
	known := map[string][]string{
		"postgres":               {"postgres", "pg_isready"}, // Debian's packages of the server and of its client
		"temporalio/server":      {"nc"},                     // of Alpine's busybox
		"temporalio/admin-tools": {"/bin/sh", "temporal", "temporal-sql-tool"},
		"temporalio/ui":          {"wget"}, // of Alpine's busybox
		"apache/kafka":           {"/opt/kafka/bin/kafka-broker-api-versions.sh"},
		"versity/versitygw":      {"mkdir", "wget"}, // of Alpine's busybox
		"weft":                   {"/weft"},
	}
	for name, s := range project(t).Services {
		repository, _, _ := strings.Cut(s.Image, ":")
		var commands []string
		if s.HealthCheck != nil {
			commands = append(commands, s.HealthCheck.Test[1])
		}
		switch {
		case len(s.Entrypoint) > 0:
			commands = append(commands, s.Entrypoint[0])
		case name == "postgres" || name == "temporal-tools": // their entrypoints run a command that is given
			commands = append(commands, s.Command[0])
		}
		for _, c := range commands {
			if !slices.Contains(known[repository], c) {
				t.Errorf("%s runs %s: nothing says that it is in the image %s", name, c, s.Image)
			}
		}
	}
	// Two of the projects ship the recipe of their image with the module of the same version.
	for _, c := range []struct{ module, recipe, holds string }{
		{"go.temporal.io/server", "docker/targets/server.Dockerfile", "\nFROM alpine:"},
		{"go.temporal.io/server", "docker/targets/admin-tools.Dockerfile", "temporal-sql-tool"},
		{"go.temporal.io/server", "docker/targets/admin-tools.Dockerfile", "/temporal "},
		{"github.com/versity/versitygw", "Dockerfile", "\nFROM alpine:"},
	} {
		list := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", c.module)
		list.Dir = filepath.Join(dir, "devstack")
		out, err := list.Output()
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), c.recipe))
		if err != nil || !strings.Contains(string(text), c.holds) {
			t.Errorf("%s of %s does not have %q: %v", c.recipe, c.module, c.holds, err)
		}
	}
}
