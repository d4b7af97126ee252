package workers

import (
	"errors"
	"fmt"

	"github.com/weftdata/weft/jobspec"
)

// Limits bound what one version of a job may ask for. A zero is no bound.
type Limits struct {
	CPU         float64 // processors of one of its processes
	MemoryBytes int64   // of one of its processes
	Shards      int
}

// Validate reports everything wrong at once.
func (l *Limits) Validate() error {
	var errs []error
	if l.CPU < 0 || l.CPU != l.CPU {
		errs = append(errs, fmt.Errorf("at most %v processors: expected 0 or more", l.CPU))
	}
	if l.MemoryBytes < 0 {
		errs = append(errs, fmt.Errorf("at most %d bytes of memory: expected 0 or more", l.MemoryBytes))
	}
	if l.Shards < 0 {
		errs = append(errs, fmt.Errorf("at most %d shards: expected 0 or more", l.Shards))
	}
	return errors.Join(errs...)
}

// Refuse lists what a version asks for beyond the limits, for a person; nothing where it may run.
func (l *Limits) Refuse(spec *jobspec.Spec, shards int) (reasons []string) {
	refuse := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }
	if l.CPU > 0 && spec.Resources.CPU > l.CPU {
		refuse("resources.cpu is %v, and the control workers allow %v (--max-cpu)", spec.Resources.CPU, l.CPU)
	}
	if l.MemoryBytes > 0 && spec.Resources.MemoryBytes > l.MemoryBytes {
		refuse("resources.memory is %s, and the control workers allow %s (--max-memory)", jobspec.FormatSize(spec.Resources.MemoryBytes), jobspec.FormatSize(l.MemoryBytes))
	}
	if l.Shards > 0 && shards > l.Shards {
		refuse("%d shards are asked for, and the control workers allow %d (--max-shards)", shards, l.Shards)
	}
	return reasons
}
