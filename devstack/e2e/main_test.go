package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// programs is the folder of the programs that tests run. Each is built once: linking the servers takes half a minute of a busy
// machine.
var programs string

// TestMain lets this program stand for those of other servers: under their names it does what they do, since building them would
// compile and link a hundred megabytes more.
func TestMain(m *testing.M) {
	program, ok := map[string]func() error{
		"temporal-server":   runTemporalServer,
		"temporal-sql-tool": runTemporalSQLTool,
		"versitygw":         runVersityGW,
	}[filepath.Base(os.Args[0])]
	if ok {
		if err := program(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	dir, err := os.MkdirTemp("", "weft-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs = dir
	code := m.Run()
	_ = os.RemoveAll(dir) // a folder for temporary files
	os.Exit(code)
}

var (
	weftProgram = sync.OnceValues(func() (string, error) { return buildProgram("../..", "./cmd/weft") })
	devProgram  = sync.OnceValues(func() (string, error) { return buildProgram("..", "./cmd/weft-dev") })
)

func buildProgram(module, folder string) (string, error) {
	name := filepath.Join(programs, filepath.Base(folder))
	build := exec.Command("go", "build", "-o", name, folder)
	build.Dir, build.Stderr = module, os.Stderr
	return name, build.Run()
}

// built returns the path of a program.
func built(t *testing.T, program func() (string, error)) string {
	t.Helper()
	name, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return name
}
