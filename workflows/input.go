package workflows

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"
)

// What people type into tctl reaches a workflow as it is: signals and inputs are received raw and decoded here, strictly.
// A typed receive would drop "x" silently and turn null into a zero value.

const (
	rejectedMax  = 10  // that a status shows; the rest is counted
	rejectedText = 200 // bytes of one that are shown
)

// Rejected is a signal that changed nothing, since it could not be understood.
type Rejected struct {
	Signal string    `json:"signal"`
	Reason string    `json:"reason"`
	Input  string    `json:"input,omitempty"` // its beginning
	At     time.Time `json:"at"`
}

// Rejections are the signals that were rejected.
type Rejections struct {
	Rejected []Rejected `json:"rejected,omitempty"` // the latest
	Count    int        `json:"rejected_count,omitempty"`
}

// decode reads one JSON object into a pointer: no other JSON, no unknown keys, nothing after it.
func decode(raw converter.RawValue, into any) error {
	p := raw.Payload()
	if p == nil {
		return errors.New("it is empty: expected one JSON object")
	}
	data := bytes.TrimSpace(p.GetData())
	switch e := string(p.GetMetadata()[converter.MetadataEncoding]); {
	case e == converter.MetadataEncodingNil:
		return errors.New("it is null: expected one JSON object")
	case e != converter.MetadataEncodingJSON:
		return fmt.Errorf("its encoding is %.40q: expected one JSON object", e)
	}
	if len(data) == 0 || data[0] != '{' {
		return errors.New("expected one JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the JSON object")
	}
	return nil
}

// badInput is the error of a workflow that was started with an input that it cannot read.
func badInput(workflowType, example string, err error) error {
	return temporal.NewNonRetryableApplicationError(
		fmt.Sprintf("input of workflow %s: %v; it looks like %s", workflowType, err, example), "user", nil)
}

// Order is what most signals carry: who wants it and why. Both may be left out, and so may the input as a whole.
type Order struct {
	Reason string `json:"reason,omitempty"`
	Actor  string `json:"actor,omitempty"`
}

// inbox takes in the signals of a workflow. Handlers are called in their order, which decides where signals of several
// names came at once; what they return as an error is recorded, and changed nothing.
type inbox struct {
	handlers []handler
	*Rejections
}

type handler struct {
	signal string
	take   func(raw converter.RawValue) error
}

// order returns a handler of a signal that carries an Order or nothing.
func order(signal string, do func(Order) error) handler {
	return handler{signal, func(raw converter.RawValue) error {
		var o Order
		if raw.Payload() != nil {
			if err := decode(raw, &o); err != nil {
				return err
			}
		}
		return do(o)
	}}
}

// drain handles every signal that has arrived. It tells whether there was any.
func (in *inbox) drain(ctx workflow.Context) (any bool) {
	for _, h := range in.handlers {
		any = in.take(ctx, h) || any
	}
	names := workflow.GetUnhandledSignalNames(ctx)
	slices.Sort(names) // they come from a map
	for _, name := range names {
		any = in.take(ctx, handler{name, func(converter.RawValue) error {
			var known []string
			for _, h := range in.handlers {
				known = append(known, h.signal)
			}
			return fmt.Errorf("no such signal; there are %q", known)
		}}) || any
	}
	return any
}

func (in *inbox) take(ctx workflow.Context, h handler) (any bool) {
	channel := workflow.GetSignalChannel(ctx, h.signal)
	for {
		var raw converter.RawValue
		if !channel.ReceiveAsync(&raw) {
			return any
		}
		any = true
		if err := h.take(raw); err != nil {
			in.reject(ctx, h.signal, raw, err)
		}
	}
}

func (in *inbox) reject(ctx workflow.Context, signal string, raw converter.RawValue, err error) {
	text := string(raw.Payload().GetData())
	in.Count++
	in.Rejected = append(in.Rejected, Rejected{clip(signal), clip(err.Error()), clip(text), workflow.Now(ctx)})
	if len(in.Rejected) > rejectedMax {
		in.Rejected = slices.Delete(in.Rejected, 0, len(in.Rejected)-rejectedMax)
	}
	workflow.GetLogger(ctx).Warn("a signal was rejected", "signal", clip(signal), "error", err)
}

// clip bounds a text for a status, and makes it one that JSON can carry.
func clip(text string) string { return clipTo(text, rejectedText) }

func clipTo(text string, most int) string {
	if len(text) > most {
		text = text[:most] + "…"
	}
	return string(bytes.ToValidUTF8([]byte(text), []byte("�")))
}

// pending tells whether a signal waits. It is a condition for workflow.Await, so it changes nothing.
func (in *inbox) pending(ctx workflow.Context) bool {
	return len(workflow.GetUnhandledSignalNames(ctx)) > 0
}
