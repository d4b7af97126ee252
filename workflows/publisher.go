package workflows

import (
	"errors"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// PublisherInput is the input of Publisher.
type PublisherInput struct {
	Job   string `json:"job"`
	State *kept  `json:"state,omitempty"` // of the run before, by continue-as-new
}

const publisherExample = `{"job":"payments"}`

// Publisher keeps the publisher of a job running; its id is PublisherID. Query QueryStatus returns a Status; signals are
// SignalStop, SignalPause, SignalResume and SignalRetry.
func Publisher(ctx workflow.Context, raw converter.RawValue) error {
	var in PublisherInput
	err := decode(raw, &in)
	if err == nil && in.Job == "" {
		err = errors.New("job is missing")
	}
	if err != nil {
		return badInput(PublisherType, publisherExample, err)
	}
	k := newKeeper(in.Job, "", in.State)
	k.start = func(ctx workflow.Context) workflow.Future {
		var a *activities.Publishers
		ctx = workflow.WithActivityOptions(ctx, longOptions(activities.PublishQueue))
		return workflow.ExecuteActivity(ctx, a.RunPublisher, activities.PublishInput{Job: in.Job})
	}
	return k.keep(ctx, PublisherType, func() any { return k.Status }, func(s *kept) any { in.State = s; return in })
}
