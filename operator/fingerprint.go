package operator

import (
	"fmt"
	"slices"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// decodeRules changes whenever a decoder takes other times from the same record, or rejects others.
const decodeRules = "1"

// Fingerprint names what decides which events a source's records have, and when: two jobs whose sources have the same
// fingerprint find the same event times, and the same rejects, in the same records. It covers more than need be (all of the
// source, its files, and the fields' types), so what differs may still agree.
func (j *Job) Fingerprint(source int) string {
	s := j.Spec.Sources[source]
	s.Parquet = nil // it is about other files
	// Where something stands in the text decides nothing.
	s.Pos, s.Format.Pos, s.Time.Pos, s.Step.Pos = jobspec.Pos{}, jobspec.Pos{}, jobspec.Pos{}, jobspec.Pos{}
	s.Where, s.Keys, s.Fields = slices.Clone(s.Where), slices.Clone(s.Keys), slices.Clone(s.Fields)
	for i := range s.Where {
		s.Where[i].Pos = jobspec.Pos{}
	}
	for i := range s.Keys {
		s.Keys[i].Pos = jobspec.Pos{}
	}
	for i := range s.Fields {
		s.Fields[i].Pos = jobspec.Pos{}
	}
	var asset []byte
	if s.Format.Schema != "" && j.options.Assets != nil {
		asset, _ = j.options.Assets(s.Format.Schema) // a schema may stand in the spec itself
	}
	text := fmt.Appendf(nil, "%s %q %#v %#v %q", decodeRules, j.Spec.ShardBy, s, j.Spec.Fields, asset)
	return fmt.Sprintf("%016x%016x", event.Hash(1, text), event.Hash(2, text))
}
