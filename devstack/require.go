//go:build require

package devstack

// End-to-end tests reach more of the main module than the stack does. With these, `go mod tidy` keeps what that takes.
import (
	_ "github.com/cockroachdb/pebble/v2"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/klauspost/compress/zstd"
	_ "github.com/pressly/goose/v3"
	_ "github.com/pressly/goose/v3/lock"
	_ "github.com/prometheus/client_golang/prometheus/promhttp"
	_ "go.temporal.io/sdk/testsuite"
	_ "modernc.org/sqlite"

	_ "github.com/weftdata/weft/backfill"
)
