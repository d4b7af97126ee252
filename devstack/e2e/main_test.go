package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestMain lets this program stand for Temporal's own programs: under their names it does what they do, since building them
// would compile and link a hundred megabytes more.
func TestMain(m *testing.M) {
	program, ok := map[string]func() error{
		"temporal-server":   runTemporalServer,
		"temporal-sql-tool": runTemporalSQLTool,
	}[filepath.Base(os.Args[0])]
	if !ok {
		os.Exit(m.Run())
	}
	if err := program(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
