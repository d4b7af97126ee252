// Package examples holds complete job specs that are kept true by tests.
package examples

import _ "embed"

//go:embed payments.yaml
var payments string

// Payments returns the job spec of a payment environment, as YAML: the one whose records `weft gen` writes.
func Payments() string { return payments }
