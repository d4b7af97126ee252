package paygen

import (
	"bytes"

	"github.com/weftdata/weft/event"
)

// defect is one way in which a line breaks, and the reason with which it must be rejected.
type defect struct {
	reason   string
	old, new string // the first old becomes new; both empty: see cut
	cut      bool   // only the start arrives; otherwise bytes that mean nothing
}

func defects() (list [sources][]defect) {
	syntax, noTime, badTime := string(event.ReasonSyntax), string(event.ReasonNoTime), string(event.ReasonBadTime)
	noStep, noShard, badField := string(event.ReasonNoStep), string(event.ReasonNoShard), string(event.ReasonBadField)
	torn, junk := defect{reason: syntax, cut: true}, defect{reason: syntax}
	list[account] = []defect{torn, junk, {reason: noTime, old: `"created_at":`, new: `"created":`}, {reason: noShard, old: `"app":`, new: `"appl":`}}
	list[billing] = []defect{
		{reason: noTime, old: "ts=", new: "t="}, {reason: badTime, old: "ts=2", new: "ts=~2"},
		{reason: noStep, old: " event=", new: " evt="}, {reason: noShard, old: " app=", new: " application="},
		{reason: badField, old: " amount=", new: " amount=CNY"},
	}
	list[billingDB] = []defect{torn, junk, {reason: badTime, old: `"UPDATED_AT":"`, new: `"UPDATED_AT":"+`}, {reason: noShard, old: `"APP":"`, new: `"APP_":"`}}
	list[client] = []defect{torn, torn, junk, {reason: noShard, old: `"app":`, new: `"game":`}}
	list[delivery] = []defect{{reason: syntax, old: ",", new: ";"}, {reason: badTime, old: "T", new: "_"}, junk}
	list[gateway] = []defect{torn, junk, {reason: noShard, old: "?app=", new: "?application="}}
	list[orders] = []defect{
		torn, junk, {reason: noTime, old: `"ts":`, new: `"timestamp":`}, {reason: badTime, old: `"ts":`, new: `"ts":"today","was":`},
		{reason: noStep, old: `"event":`, new: `"evt":`}, {reason: badField, old: `"amount":`, new: `"amount":"n/a","was":`},
	}
	list[refunds] = []defect{torn, junk, {reason: noTime, old: `"ts":`, new: `"t":`}}
	list[risk] = []defect{torn, junk, {reason: badTime, old: "T", new: "@"}}
	list[store] = []defect{torn, junk, {reason: badTime, old: "-", new: "/"}}
	list[wallet] = []defect{torn, junk, {reason: badTime, old: `"notify_time":"`, new: `"notify_time":"D`}, {reason: badField, old: `"total_amount":"`, new: `"total_amount":"¥`}}
	return list
}

// apply appends the broken form of line to dst.
func (d *defect) apply(dst, line []byte, r *rng) []byte {
	switch {
	case d.old != "":
		return append(dst, bytes.Replace(line, []byte(d.old), []byte(d.new), 1)...)
	case d.cut:
		return append(dst, line[:r.between(int64(len(line))/3, int64(len(line))*8/10)]...)
	}
	dst = append(dst, 0, 0x16) // as a TLS handshake that hits a text port
	for range r.between(40, 200) {
		if b := byte(r.next()); b != '\n' && b != '\r' {
			dst = append(dst, b)
		}
	}
	return dst
}
