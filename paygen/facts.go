package paygen

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
)

// amount is a number that may be missing.
type amount struct {
	value int64
	known bool
}

func (a *amount) take(value int64) {
	if !a.known {
		*a = amount{value, true}
	}
}

func (a amount) differs(b amount) bool { return a.known && b.known && a.value != b.value }

// facts is what a scenario is decided from: the events up to a moment.
type facts struct {
	count       [steps]int64
	first, last [steps]int64
	ids         [keyKinds]int // distinct identifiers of each kind
	kind        string
	sandbox     bool

	order, channel, paid, refund amount
	orderCurrency, paidCurrency  amount // 0 the chain's, 1 a wrong one
}

// gather reads the facts from events sorted by less, leaving out those after until.
func gather(c *chain, events []occurrence, until int64) facts {
	var f facts
	var seen [keyKinds]uint32
	for i := range events {
		e := &events[i]
		if e.time > until {
			break
		}
		if f.count[e.step] == 0 {
			f.first[e.step] = e.time
		}
		f.count[e.step]++
		f.last[e.step] = e.time
		for kind, n := range e.keys {
			if n > 0 {
				seen[kind] |= 1 << n
			}
		}
		switch e.src {
		case orders:
			f.order.take(e.amount)
			f.orderCurrency.take(0)
			f.kind = c.kind
		case wallet:
			f.channel.take(e.amount)
		case billing:
			f.paid.take(e.amount)
			f.paidCurrency.take(int64(e.currency))
		case refunds:
			f.refund.take(e.amount)
		case store:
			f.sandbox = c.sandbox
		}
	}
	for kind := range seen {
		f.ids[kind] = bits.OnesCount32(seen[kind])
	}
	return f
}

func (f *facts) any(list ...step) bool { return f.times(list...) > 0 }

func (f *facts) times(list ...step) (n int64) {
	for _, s := range list {
		n += f.count[s]
	}
	return n
}

// since returns the first time of any of the steps.
func (f *facts) since(list ...step) (at int64, ok bool) {
	at = math.MaxInt64
	for _, s := range list {
		if f.count[s] > 0 {
			at, ok = min(at, f.first[s]), true
		}
	}
	return at, ok
}

// scenario is one rule of the example job, told in Go: the truth is never taken from the engine under test.
type scenario struct {
	name string
	when func(*facts) bool
	// With a step, events later than within after its first time do not count.
	after  []step
	within int64
}

// scenarios lists the rules of examples/payments.yaml by name.
func scenarios() []scenario {
	list := []scenario{
		{name: "delivered", when: func(f *facts) bool { return f.any(paid) && f.any(delivered) }},
		{name: "paid_not_delivered", when: func(f *facts) bool { return f.any(paid) && !f.any(delivered) },
			after: []step{paid}, within: 5 * minute},
		{name: "delivered_not_paid", after: []step{delivered}, within: 2 * hour, when: func(f *facts) bool {
			return f.any(delivered) && !f.any(paid, billPaid) && !(f.order.known && f.order.value == 0)
		}},
		{name: "callback_not_booked", after: []step{callback, verified}, within: 10 * minute,
			when: func(f *facts) bool { return f.any(callback, verified) && !f.any(paid) }},
		{name: "abandoned_at_checkout", when: func(f *facts) bool {
			return f.any(checkout) && !f.any(paid, billPaid, delivered, callback, verified, declined, storeDeclined,
				cancelled, expired, riskBlocked, gateway5xx)
		}},
		{name: "channel_declined", when: func(f *facts) bool { return f.any(declined, storeDeclined) && !f.any(paid) }},
		{name: "declined_then_paid", when: func(f *facts) bool {
			return f.any(declined, storeDeclined) && f.any(paid) && max(f.last[declined], f.last[storeDeclined]) < f.last[paid]
		}},
		{name: "duplicate_callback", when: func(f *facts) bool {
			return f.times(callback, verified) > 1 && f.ids[txnKey] == 1 && f.ids[orderKey] == 1
		}},
		{name: "callback_missing", when: func(f *facts) bool { return f.any(paid) && !f.any(callback, verified, renewed) }},
		{name: "late_callback", when: func(f *facts) bool {
			first, ok := f.since(callback, verified)
			return ok && f.any(ordered) && first-f.first[ordered] > hour
		}},
		{name: "double_charge", when: func(f *facts) bool {
			return f.times(paid) > 1 && f.ids[txnKey] > 1 && f.ids[orderKey] == 1
		}},
		{name: "shared_transaction", when: func(f *facts) bool {
			return f.ids[orderKey] > 1 && f.ids[txnKey] == 1 && !f.any(receiptReused)
		}},
		{name: "receipt_replayed", when: func(f *facts) bool { return f.any(receiptReused) && f.ids[orderKey] > 1 }},
		{name: "refunded", when: func(f *facts) bool { return f.any(refunded) }},
		{name: "refunded_late", when: func(f *facts) bool {
			return f.any(refunded) && f.any(paid) && f.last[refunded]-f.first[paid] > 24*hour
		}},
		{name: "refund_before_delivery", when: func(f *facts) bool {
			return f.any(refunded) && f.any(paid) && (!f.any(delivered) || f.first[refunded] < f.first[delivered])
		}},
		{name: "partial_refund", when: func(f *facts) bool {
			return f.any(refunded) && f.paid.known && f.refund.value > 0 && f.refund.value < f.paid.value
		}},
		{name: "refund_rejected", when: func(f *facts) bool { return f.any(refundRejected) && !f.any(refunded) }},
		{name: "refunded_item_kept", when: func(f *facts) bool {
			return f.any(refunded) && f.any(delivered) && !f.any(debited)
		}},
		{name: "chargeback", when: func(f *facts) bool { return f.any(revoked, disputed) }},
		{name: "slow_delivery", when: func(f *facts) bool {
			return f.any(paid) && f.any(delivered) && f.first[delivered]-f.first[paid] > 2*minute
		}},
		{name: "delivery_retried", when: func(f *facts) bool { return f.any(deliveryFailed) && f.any(delivered) }},
		{name: "delivery_failed", when: func(f *facts) bool { return f.any(deliveryFailed) && !f.any(delivered) }},
		{name: "delivered_twice", when: func(f *facts) bool {
			return f.times(delivered) > 1 && f.ids[deliveryKey] > 1 && f.ids[orderKey] == 1
		}},
		{name: "wrong_amount", when: func(f *facts) bool { return f.order.differs(f.paid) && f.ids[orderKey] == 1 }},
		{name: "wrong_channel_amount", when: func(f *facts) bool { return f.channel.differs(f.paid) }},
		{name: "currency_mismatch", when: func(f *facts) bool { return f.orderCurrency.differs(f.paidCurrency) }},
		{name: "risk_blocked", when: func(f *facts) bool { return f.any(riskBlocked) }},
		{name: "risk_review_then_paid", when: func(f *facts) bool {
			return f.any(riskReview) && f.any(paid) && f.first[riskReview] < f.first[paid]
		}},
		{name: "gift", when: func(f *facts) bool { return f.kind == "gift" }},
		{name: "coupon_only", when: func(f *facts) bool { return f.order.known && f.order.value == 0 && f.any(delivered) }},
		{name: "sandbox", when: func(f *facts) bool { return f.sandbox }},
		{name: "subscription_renewal", when: func(f *facts) bool { return f.any(renewed) }},
		{name: "cancelled_by_user", when: func(f *facts) bool { return f.any(cancelled) && !f.any(paid) }},
		{name: "paid_after_cancel", when: func(f *facts) bool {
			return f.any(cancelled) && f.any(paid) && f.first[cancelled] < f.last[paid]
		}},
		{name: "expired", when: func(f *facts) bool { return f.any(expired) && !f.any(paid) }},
		{name: "paid_after_expiry", when: func(f *facts) bool {
			return f.any(expired) && f.any(paid) && f.first[expired] < f.last[paid]
		}},
		{name: "gateway_5xx_then_ok", when: func(f *facts) bool {
			return f.any(gateway5xx) && f.any(gatewayOK) && f.first[gateway5xx] < f.last[gatewayOK]
		}},
		{name: "gateway_down", when: func(f *facts) bool { return f.any(gateway5xx) && !f.any(gatewayOK) }},
		{name: "binlog_only", when: func(f *facts) bool { return f.any(billPaid) && !f.any(paid) }},
		{name: "client_crash", when: func(f *facts) bool { return f.any(crashed) }},
	}
	slices.SortFunc(list, func(a, b scenario) int { return cmp.Compare(a.name, b.name) })
	return list
}

// judge returns the scenarios that hold for events of one chain, as bits by number. It sorts events.
func judge(rules []scenario, c *chain, events []occurrence) (held uint64) {
	slices.SortFunc(events, compare)
	whole := gather(c, events, math.MaxInt64)
	for i := range rules {
		rule, f := &rules[i], &whole
		if rule.after != nil {
			first, ok := whole.since(rule.after...)
			if !ok {
				continue
			}
			if until := first + rule.within; len(events) > 0 && events[len(events)-1].time > until {
				past := gather(c, events, until)
				f = &past
			}
		}
		if rule.when(f) {
			held |= 1 << i
		}
	}
	return held
}

// compare orders events by time, then by where they stand.
func compare(a, b occurrence) int {
	return cmp.Or(cmp.Compare(a.time, b.time), cmp.Compare(a.src, b.src),
		cmp.Compare(a.offset, b.offset), cmp.Compare(a.index, b.index))
}

// components numbers the groups of events that their identifiers tie together: two events are linked where they share
// an identifier and are at most the kind's gap apart. groups[i] is the number of events[i]'s group, counted from 0.
func components(events []occurrence, groups []int) (n int) {
	for i := range groups {
		groups[i] = -1
	}
	for i := range events {
		if groups[i] < 0 {
			spread(events, groups, i, n)
			n++
		}
	}
	return n
}

// spread numbers everything that event i reaches.
func spread(events []occurrence, groups []int, i, n int) {
	groups[i] = n
	for k := range events {
		if groups[k] < 0 && linked(&events[i], &events[k]) {
			spread(events, groups, k, n)
		}
	}
}

func linked(a, b *occurrence) bool {
	apart := max(a.time-b.time, b.time-a.time)
	for kind, gap := range gaps {
		if a.keys[kind] != 0 && a.keys[kind] == b.keys[kind] && apart <= gap {
			return true
		}
	}
	return false
}
