package paygen

import (
	"math"
	"slices"
	"testing"
)

// tell plans one chain of a story.
func tell(story func(*planner), seed uint64, inStore bool) *chain {
	m := newMarket()
	c := &chain{number: int64(seed), game: &m.games[0], start: 1_772_323_200 * second, currency: "CNY"}
	for i := range m.channels {
		if m.channels[i].store == inStore {
			c.channel = &m.channels[i]
		}
	}
	p := planner{r: rng(mix(seed)), c: c, now: c.start, amount: 600}
	story(&p)
	return c
}

func named(rules []scenario, held uint64) (list []string) {
	for i := range rules {
		if held>>i&1 > 0 {
			list = append(list, rules[i].name)
		}
	}
	return list
}

func TestStories(t *testing.T) {
	list := func(names ...string) []string { return names }
	for _, story := range []struct {
		name   string
		family family
		tell   func(*planner)
		want   []string // always
		may    []string // in some runs
	}{
		{"normal", anyFamily, (*planner).normal, list("delivered"), nil},
		{"abandoned", anyFamily, (*planner).abandoned, list("abandoned_at_checkout"), nil},
		{"refused", anyFamily, (*planner).refused, list("channel_declined"), nil},
		{"refused, then paid", anyFamily, (*planner).refusedThenPaid, list("declined_then_paid", "delivered"), nil},
		{"callback twice", anyFamily, (*planner).callbackTwice, list("delivered", "duplicate_callback"), nil},
		{"callback missing", anyFamily, (*planner).callbackMissing, list("callback_missing", "delivered"), nil},
		{"callback late", anyFamily, (*planner).callbackLate, list("delivered", "late_callback"), nil},
		{"never delivered", anyFamily, (*planner).neverDelivered, list("paid_not_delivered"), list("delivery_failed")},
		{"slow delivery", anyFamily, (*planner).slowDelivery, list("delivered", "slow_delivery"), list("paid_not_delivered")},
		{"delivery retried", anyFamily, (*planner).deliveryRetried, list("delivered", "delivery_retried"), nil},
		{"delivered twice", anyFamily, (*planner).deliveredTwice, list("delivered", "delivered_twice"), nil},
		{"never paid", anyFamily, (*planner).neverPaid, list("delivered_not_paid"), nil},
		{"charged twice", anyFamily, (*planner).chargedTwice, list("delivered", "double_charge"), nil},
		{"shared transaction", walletOnly, (*planner).sharedTransaction, list("delivered", "shared_transaction"), nil},
		{"receipt replayed", storeOnly, (*planner).receiptReplayed, list("delivered", "receipt_replayed"), nil},
		{"refunded late", anyFamily, (*planner).refundedLate, list("delivered", "refunded", "refunded_late"), list("refunded_item_kept")},
		{"refunded first", anyFamily, (*planner).refundedFirst, list("refund_before_delivery", "refunded"),
			list("delivered", "paid_not_delivered", "refunded_item_kept", "slow_delivery")},
		{"refunded partly", anyFamily, (*planner).refundedPartly, list("delivered", "partial_refund", "refunded", "refunded_item_kept"), nil},
		{"refund refused", anyFamily, (*planner).refundRefused, list("delivered", "refund_rejected"), nil},
		{"charged back", anyFamily, (*planner).chargedBack, list("chargeback", "delivered"), nil},
		{"wrong amount, wallet", walletOnly, (*planner).wrongAmount, list("delivered", "wrong_amount", "wrong_channel_amount"), nil},
		{"wrong amount, store", storeOnly, (*planner).wrongAmount, list("delivered", "wrong_amount"), nil},
		{"wrong channel amount", walletOnly, (*planner).wrongChannelAmount, list("delivered", "wrong_channel_amount"), nil},
		{"wrong currency", anyFamily, (*planner).wrongCurrency, list("currency_mismatch", "delivered"), nil},
		{"blocked", anyFamily, (*planner).blocked, list("risk_blocked"), nil},
		{"reviewed", anyFamily, (*planner).reviewed, list("delivered", "risk_review_then_paid"), nil},
		{"gift", anyFamily, (*planner).gift, list("delivered", "gift"), nil},
		{"coupon", anyFamily, (*planner).coupon, list("coupon_only"), nil},
		{"sandbox", storeOnly, (*planner).sandbox, list("delivered", "sandbox"), nil},
		{"renewal", storeOnly, (*planner).renewal, list("delivered", "subscription_renewal"), nil},
		{"cancelled", anyFamily, (*planner).cancelledByUser, list("cancelled_by_user"), nil},
		{"paid after cancel", anyFamily, (*planner).paidAfterCancel, list("delivered", "paid_after_cancel"), nil},
		{"expired", anyFamily, (*planner).expiredUnpaid, list("expired"), nil},
		{"paid after expiry", anyFamily, (*planner).paidAfterExpiry, list("paid_after_expiry"), list("delivered", "paid_not_delivered")},
		{"gateway recovers", anyFamily, (*planner).gatewayRecovers, list("delivered", "gateway_5xx_then_ok"), nil},
		{"gateway down", anyFamily, (*planner).gatewayDown, list("gateway_down"), nil},
		{"binlog only", anyFamily, (*planner).binlogOnly, list("binlog_only", "callback_not_booked"), nil},
		{"crash", anyFamily, (*planner).crash, list("client_crash"), list("abandoned_at_checkout", "delivered")},
	} {
		t.Run(story.name, func(t *testing.T) {
			rules, seen := scenarios(), map[string]bool{}
			for seed := range uint64(400) {
				inStore := story.family == storeOnly || story.family == anyFamily && seed%2 == 0
				c := tell(story.tell, seed, inStore)
				got := named(rules, judge(rules, c, c.events))
				for _, name := range story.want {
					if !slices.Contains(got, name) {
						t.Fatalf("seed %d: %v lacks %s", seed, got, name)
					}
				}
				for _, name := range got {
					seen[name] = true
					if !slices.Contains(story.want, name) && !slices.Contains(story.may, name) {
						t.Fatalf("seed %d: %v has %s", seed, got, name)
					}
				}
			}
			for _, name := range story.may {
				if !seen[name] {
					t.Errorf("%s never holds", name)
				}
			}
		})
	}
}

// TestStoriesAreWhole makes sure that nothing splits a chain of which no record is lost, and that no story outlasts
// the job's max_span.
func TestStoriesAreWhole(t *testing.T) {
	for i, story := range plots() {
		for seed := range uint64(200) {
			c := tell(story.tell, seed, story.family == storeOnly || story.family == anyFamily && seed%2 == 0)
			if n := components(c.events, make([]int, len(c.events))); n != 1 {
				t.Fatalf("story %d, seed %d: %d parts", i, seed, n)
			}
			first, last := int64(math.MaxInt64), int64(0)
			for _, e := range c.events {
				first, last = min(first, e.time), max(last, e.time)
			}
			if last-first > 200*hour {
				t.Fatalf("story %d, seed %d: spans %d hours", i, seed, (last-first)/hour)
			}
		}
	}
}

func TestComponents(t *testing.T) {
	at := func(time int64, k keys) occurrence { return occurrence{time: time, keys: k} }
	for _, test := range []struct {
		name   string
		events []occurrence
		want   []int
	}{
		{"one order", []occurrence{at(0, of(1, 0, 0, 0)), at(hour, of(1, 0, 0, 0))}, []int{0, 0}},
		{"two orders", []occurrence{at(0, of(1, 0, 0, 0)), at(0, of(2, 0, 0, 0))}, []int{0, 1}},
		{"tied by the last", []occurrence{at(0, of(1, 0, 0, 0)), at(0, of(0, 1, 0, 0)), at(0, of(1, 1, 0, 0))}, []int{0, 0, 0}},
		{"kinds are apart", []occurrence{at(0, of(1, 0, 0, 0)), at(0, of(0, 1, 0, 0))}, []int{0, 1}},
		{"just within the gap", []occurrence{at(0, of(0, 0, 1, 0)), at(24*hour, of(0, 0, 1, 0))}, []int{0, 0}},
		{"past the gap", []occurrence{at(0, of(0, 0, 1, 0)), at(24*hour+1, of(0, 0, 1, 0))}, []int{0, 1}},
		{"past the gap by steps", []occurrence{at(0, of(0, 0, 1, 0)), at(30*hour, of(0, 0, 1, 0)), at(15*hour, of(0, 0, 1, 0))}, []int{0, 0, 0}},
	} {
		got := make([]int, len(test.events))
		components(test.events, got)
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// TestEveryRegionHasBothFamilies makes sure that a plot of either family finds a channel for every game.
func TestEveryRegionHasBothFamilies(t *testing.T) {
	for r := range regions {
		stores, wallets := 0, 0
		for _, c := range channels() {
			switch {
			case c.currency[r] == "":
			case c.store:
				stores++
			default:
				wallets++
			}
		}
		if stores == 0 || wallets == 0 {
			t.Errorf("region %d has %d stores and %d wallets", r, stores, wallets)
		}
	}
}
