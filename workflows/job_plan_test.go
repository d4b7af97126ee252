package workflows

import (
	"fmt"
	"strings"
	"testing"
)

func (j *jobTest) rollbackPlan(to int) (p RollbackPlan) {
	j.Helper()
	v, err := j.QueryWorkflow(QueryRollbackPlan, Request{To: to})
	if err == nil {
		err = v.Get(&p)
	}
	if err != nil {
		j.Fatal(err)
	}
	return p
}

// In every phase a rollback does what its plan says, and the plan itself changes nothing.
func TestRollbackDoesWhatItsPlanSays(t *testing.T) {
	for phase, reach := range jobPhases() {
		for _, to := range []int{1, 2, 3, 99} {
			t.Run(fmt.Sprintf("%s, to %d", phase, to), func(t *testing.T) {
				t.Parallel()
				served := 1
				if phase == Empty {
					served = 0
				}
				j := newJobTest(t, served)
				reach(j)
				var p RollbackPlan
				before := 0
				j.then(func() {
					before = j.is()
					log := len(j.log())
					p = j.rollbackPlan(to)
					if p.To != to || (p.Way == "") != (p.Refused != "") || (p.Way == "") != (len(p.Steps) == 0) {
						t.Errorf("%+v", p)
					}
					if len(j.log()) != log {
						t.Error("a plan decided something")
					}
					j.SignalWorkflow(SignalRollback, Request{To: to, RequestID: "r"})
				})
				j.then(func() {
					switch p.Way {
					case "":
						j.last(SignalRollback, RejectedWhat, p.Refused)
					case ByStaying:
						if j.last(SignalRollback, Done, fmt.Sprintf("version %d is served; ", to)); j.is() != before {
							t.Errorf("version %d is served, it was %d", j.is(), before)
						}
					case BySwitch:
						if j.last(SignalRollback, Done, fmt.Sprintf("in place of version %d", p.Current)); j.is() != to {
							t.Errorf("version %d is served", j.is())
						}
						if s := j.switches[len(j.switches)-1]; s.From != p.From || !strings.Contains(strings.Join(p.Steps, " "), fmt.Sprintf("epoch %d ", s.Back)) {
							t.Errorf("the switch was %+v, planned was %+v", s, p)
						}
					case ByCatchUp:
						if to > 50 { // the registry has no such version
							j.last(SignalRollback, RejectedWhat, "none in the registry")
							break
						}
						if j.last(SignalRollback, Accepted, "version"); j.is() != before {
							t.Errorf("version %d is served before it has caught up", j.is())
						}
						if s := j.status(); !s.Degraded {
							t.Errorf("%+v", s)
						}
					}
				})
				j.run()
			})
		}
	}
}

func TestRollbackPlanOfGarbage(t *testing.T) {
	j := newJobTest(t, 1)
	j.then(func() {
		for _, arg := range []any{"x", nil, 7, Request{}, map[string]int{"too": 1}} {
			if _, err := j.QueryWorkflow(QueryRollbackPlan, arg); err == nil {
				t.Errorf("%v is understood", arg)
			}
		}
		if s := j.status(); s.Count != 0 {
			t.Errorf("%+v", s)
		}
	})
	j.run()
}
