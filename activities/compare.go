package activities

// TrialInput names two versions of a job that run side by side.
type TrialInput struct {
	Job     string `json:"job"`
	Version int    `json:"version"` // the candidate, whose spec has the gates
	Current int    `json:"current"`
	From    int64  `json:"from_us"` // sessions that start from here on
	Key     string `json:"key"`     // of the object that keeps the sessions that differ
}

// The verdicts of a Trial. Too few samples never pass.
const (
	GatesPass         = "pass"
	GatesFail         = "fail"
	GatesInconclusive = "inconclusive"
)

// Trial is how a candidate compares.
type Trial struct {
	Verdict string       `json:"verdict"`
	Gates   []GateResult `json:"gates"`

	Sessions      int64   `json:"sessions"` // decided in both versions, by time and by what each has
	Matched       int64   `json:"matched"`
	MatchRate     float64 `json:"match_rate"`
	OnlyCurrent   int64   `json:"only_current"`
	OnlyCandidate int64   `json:"only_candidate"`
	ScenarioShift float64 `json:"scenario_shift"`
	Shifted       string  `json:"shifted,omitempty"` // the scenario whose share changed most
	Records       int64   `json:"records"`           // that the candidate has read
	Rejects       int64   `json:"rejects"`
	RejectRate    float64 `json:"reject_rate"`
	LagMS         int64   `json:"lag_ms"`                // -1: not known
	Clipped       bool    `json:"clipped,omitempty"`     // there were more sessions: the newest were compared
	Differences   string  `json:"differences,omitempty"` // object with sessions that differ
	Summary       string  `json:"summary,omitempty"`     // in words, what does not agree
}

// GateResult is what one gate says.
type GateResult struct {
	Gate    string `json:"gate"`
	Want    string `json:"want"`
	Got     string `json:"got"`
	Verdict string `json:"verdict"`
}
