package activities

import (
	"errors"
	"unicode/utf8"

	"go.temporal.io/sdk/temporal"

	"github.com/weftdata/weft/archiver"
	"github.com/weftdata/weft/streaming"
)

// The types of failures: whose fault one is, or what happened where a person or a workflow acts on that.
const (
	User       = "user"        // somebody must change something first
	External   = "external"    // a server or the way to it
	Internal   = "internal"    // a defect of this program
	Fenced     = "fenced"      // a later run of the same shard has started
	OffsetGone = "offset_gone" // records were deleted before they were read
	Recreated  = "recreated"   // the topic was deleted and made again
)

// Failure is the class of an error as adapters know it.
type Failure struct {
	Type      string // User, External or Internal
	Retryable bool   // the same may succeed later
}

// messageBytesMax is what Temporal keeps of a failure's text: 4 KiB, less what it adds around it.
const messageBytesMax = 3500

// failure turns an error into what Temporal is told. Its text has the hint; the chain of causes is left out, since it only
// repeats the text and counts towards the limit.
func (h *Host) failure(err error) error {
	f := classify(err, h.Classify)
	return temporal.NewApplicationErrorWithOptions(shorten(err.Error()), f.Type, temporal.ApplicationErrorOptions{NonRetryable: !f.Retryable})
}

// classify puts an error into its class.
//
// Fenced is tried again although a later run has started. A run that Temporal still counts as the current one can be fenced
// by one that it gave up: that one may have been held up before it took its epoch. It ends as soon as its heartbeat is
// refused, so the next attempt holds.
func classify(err error, adapters func(error) Failure) Failure {
	switch {
	case errors.Is(err, streaming.ErrFenced), errors.Is(err, archiver.ErrFenced):
		return Failure{Fenced, true}
	case errors.Is(err, streaming.ErrOffsetGone), errors.Is(err, archiver.ErrOffsetGone):
		return Failure{OffsetGone, false}
	case errors.Is(err, streaming.ErrRecreated), errors.Is(err, archiver.ErrRecreated):
		return Failure{Recreated, false}
	case adapters != nil:
		return adapters(err)
	}
	return Failure{Internal, true}
}

func shorten(text string) string {
	if len(text) <= messageBytesMax {
		return text
	}
	cut := messageBytesMax
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + " …"
}
