// Package clock has a workflow that reads the clock. `make workflowcheck` must find it, or it finds nothing.
package clock

import (
	"time"

	"go.temporal.io/sdk/workflow"
)

// Workflow is not deterministic.
func Workflow(workflow.Context) error {
	if time.Now().Hour() > 12 {
		return nil
	}
	return nil
}
