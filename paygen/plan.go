package paygen

// clocks is the resolution of each source's time, in microseconds.
var clocks = [sources]int64{
	account: 1, billing: millisecond, billingDB: millisecond, client: millisecond, delivery: millisecond, gateway: second,
	orders: millisecond, refunds: second, risk: millisecond, store: millisecond, wallet: second,
}

// planner writes down what happens in one chain. Its plots are short stories told with few verbs.
type planner struct {
	r      rng
	c      *chain
	now    int64
	amount int64 // the price of the order
}

// family restricts a plot to chains paid through a wallet or a store.
type family uint8

const (
	anyFamily family = iota
	walletOnly
	storeOnly
)

// plot is a story and how often it happens.
type plot struct {
	weight int64
	family family
	tell   func(*planner)
}

func plots() []plot {
	return []plot{
		{6300, anyFamily, (*planner).normal},
		{900, anyFamily, (*planner).abandoned},
		{350, anyFamily, (*planner).refused},
		{150, anyFamily, (*planner).refusedThenPaid},
		{150, anyFamily, (*planner).callbackTwice},
		{110, anyFamily, (*planner).callbackMissing},
		{60, anyFamily, (*planner).callbackLate},
		{120, anyFamily, (*planner).neverDelivered},
		{150, anyFamily, (*planner).slowDelivery},
		{120, anyFamily, (*planner).deliveryRetried},
		{50, anyFamily, (*planner).deliveredTwice},
		{50, anyFamily, (*planner).neverPaid},
		{60, anyFamily, (*planner).chargedTwice},
		{60, walletOnly, (*planner).sharedTransaction},
		{50, storeOnly, (*planner).receiptReplayed},
		{140, anyFamily, (*planner).refundedLate},
		{60, anyFamily, (*planner).refundedFirst},
		{60, anyFamily, (*planner).refundedPartly},
		{60, anyFamily, (*planner).refundRefused},
		{60, anyFamily, (*planner).chargedBack},
		{50, anyFamily, (*planner).wrongAmount},
		{50, walletOnly, (*planner).wrongChannelAmount},
		{50, anyFamily, (*planner).wrongCurrency},
		{110, anyFamily, (*planner).blocked},
		{90, anyFamily, (*planner).reviewed},
		{130, anyFamily, (*planner).gift},
		{130, anyFamily, (*planner).coupon},
		{90, storeOnly, (*planner).sandbox},
		{150, storeOnly, (*planner).renewal},
		{200, anyFamily, (*planner).cancelledByUser},
		{40, anyFamily, (*planner).paidAfterCancel},
		{150, anyFamily, (*planner).expiredUnpaid},
		{50, anyFamily, (*planner).paidAfterExpiry},
		{110, anyFamily, (*planner).gatewayRecovers},
		{60, anyFamily, (*planner).gatewayDown},
		{50, anyFamily, (*planner).binlogOnly},
		{90, anyFamily, (*planner).crash},
	}
}

// add notes an occurrence at the present moment.
func (p *planner) add(src source, s step, k keys) *occurrence { return p.addAt(p.now, src, s, k) }

func (p *planner) addAt(at int64, src source, s step, k keys) *occurrence {
	p.c.events = append(p.c.events, occurrence{
		time: at - at%clocks[src], amount: p.amount, seed: p.r.next(), keys: k, src: src, step: s, attempt: 1,
	})
	return &p.c.events[len(p.c.events)-1]
}

func (p *planner) wait(from, to int64) { p.now += p.r.between(from, to) }

// open is a checkout: the client, the order service, the gateway and risk control see order o.
func (p *planner) open(o uint8) {
	p.place(o)
	p.wait(20*millisecond, 300*millisecond)
	p.add(risk, riskPassed, of(o, 0, 0, 0))
}

// place is a checkout up to risk control.
func (p *planner) place(o uint8) {
	p.add(client, checkout, of(o, 0, 0, 0))
	p.wait(80*millisecond, 900*millisecond)
	p.add(orders, ordered, of(o, 0, 0, 0))
	p.wait(5*millisecond, 60*millisecond)
	p.add(gateway, gatewayOK, of(o, 0, 0, 0))
}

// pay is order o paid by transaction t: the channel says so and the billing centre books it.
func (p *planner) pay(o, t uint8) {
	p.confirm(o, t)
	p.book(o, t)
}

// confirm is the channel's word that transaction t (at a store also receipt t) pays order o.
func (p *planner) confirm(o, t uint8) {
	p.wait(4*second, 40*second)
	if !p.c.channel.store {
		p.add(wallet, callback, of(o, t, 0, 0))
		return
	}
	p.submit(o, t)
	p.wait(100*millisecond, 2*second)
	p.add(store, verified, of(0, t, t, 0))
}

// submit is a receipt handed in for order o.
func (p *planner) submit(o, receipt uint8) {
	p.add(client, purchased, of(0, 0, receipt, 0))
	p.wait(100*millisecond, 2*second)
	p.add(gateway, gatewayOK, of(o, 0, receipt, 0))
}

// book is what the billing centre and the account do with transaction t.
func (p *planner) book(o, t uint8) {
	p.wait(50*millisecond, 900*millisecond)
	p.add(billing, paid, of(o, t, 0, 0))
	p.bookRows(t)
}

// bookRows is the part of book that only databases show. Settlement follows within hours.
func (p *planner) bookRows(t uint8) {
	p.wait(2*millisecond, 40*millisecond)
	p.add(billingDB, billPaid, of(0, t, 0, 0))
	p.wait(5*millisecond, 80*millisecond)
	p.add(account, credited, of(0, t, 0, 0))
	p.addAt(p.now+p.r.between(30*minute, 3*hour), billingDB, billSettled, of(0, t, 0, 0))
}

// deliver is delivery d of order o, from the request to the player's bag.
func (p *planner) deliver(o, d uint8) {
	p.request(o, d, 1)
	p.arrive(o, d, 1)
}

func (p *planner) request(o, d, attempt uint8) {
	p.wait(50*millisecond, 2*second)
	p.add(delivery, requested, of(o, 0, 0, d)).attempt = attempt
}

func (p *planner) arrive(o, d, attempt uint8) {
	p.wait(100*millisecond, 3*second)
	p.add(delivery, delivered, of(0, 0, 0, d)).attempt = attempt
	p.wait(10*millisecond, 200*millisecond)
	p.add(orders, completed, of(o, 0, 0, 0))
	p.wait(200*millisecond, 4*second)
	p.add(client, granted, of(o, 0, 0, 0))
}

// refuse is the channel's no to transaction t.
func (p *planner) refuse(o, t uint8) {
	p.wait(4*second, 60*second)
	if p.c.channel.store {
		p.submit(o, t)
		p.add(store, storeDeclined, of(0, t, t, 0))
		return
	}
	p.add(wallet, declined, of(o, t, 0, 0))
}

// refund gives back amount of order o, paid by transaction t.
func (p *planner) refund(o, t uint8, amount int64) {
	p.add(refunds, refundRequested, of(o, 0, 0, 0)).amount = amount
	p.wait(20*second, 10*minute)
	p.add(refunds, refunded, of(o, 0, 0, 0)).amount = amount
	p.add(billingDB, billRefunded, of(0, t, 0, 0))
}

func (p *planner) normal() {
	p.open(1)
	p.pay(1, 1)
	p.deliver(1, 1)
}

func (p *planner) abandoned() { p.open(1) }

func (p *planner) refused() {
	p.open(1)
	p.refuse(1, 1)
	if p.r.chance(5000) {
		p.wait(second, 5*second)
		p.add(billing, chargeFailed, of(1, 1, 0, 0))
	}
}

func (p *planner) refusedThenPaid() {
	p.open(1)
	p.refuse(1, 1)
	p.pay(1, 2)
	p.deliver(1, 1)
}

func (p *planner) callbackTwice() {
	p.open(1)
	p.pay(1, 1)
	p.wait(second, 20*second)
	if p.c.channel.store {
		p.add(store, verified, of(0, 1, 1, 0))
	} else {
		p.add(wallet, callback, of(1, 1, 0, 0))
	}
	p.deliver(1, 1)
}

// callbackMissing is a payment that the billing centre found by asking the channel.
func (p *planner) callbackMissing() {
	p.open(1)
	p.wait(30*second, 3*minute)
	if p.c.channel.store {
		p.submit(1, 1)
	}
	p.book(1, 1)
	p.deliver(1, 1)
}

func (p *planner) callbackLate() {
	p.open(1)
	p.wait(70*minute, 5*hour)
	p.pay(1, 1)
	p.deliver(1, 1)
}

func (p *planner) neverDelivered() {
	p.open(1)
	p.pay(1, 1)
	if p.r.chance(5000) {
		p.request(1, 1, 1)
		p.wait(second, 5*second)
		p.add(delivery, deliveryFailed, of(0, 0, 0, 1))
	}
}

func (p *planner) slowDelivery() {
	p.open(1)
	p.pay(1, 1)
	p.request(1, 1, 1)
	p.wait(150*second, 12*minute)
	p.arrive(1, 1, 1)
}

func (p *planner) deliveryRetried() {
	p.open(1)
	p.pay(1, 1)
	last := uint8(p.r.between(2, 5))
	for attempt := uint8(1); attempt < last; attempt++ {
		p.request(1, 1, attempt)
		p.wait(second, 8*second)
		p.add(delivery, deliveryFailed, of(0, 0, 0, 1)).attempt = attempt
		p.wait(5*second, 15*second)
	}
	p.request(1, 1, last)
	p.arrive(1, 1, last)
}

func (p *planner) deliveredTwice() {
	p.normal()
	p.wait(5*second, 90*second)
	p.request(1, 2, 1)
	p.wait(100*millisecond, 3*second)
	p.add(delivery, delivered, of(0, 0, 0, 2))
}

func (p *planner) neverPaid() {
	p.open(1)
	p.wait(5*second, 30*second)
	p.deliver(1, 1)
}

func (p *planner) chargedTwice() {
	p.open(1)
	p.pay(1, 1)
	p.pay(1, 2)
	p.deliver(1, 1)
}

// sharedTransaction is two orders in one basket, paid at once.
func (p *planner) sharedTransaction() {
	p.open(1)
	p.wait(2*second, 20*second)
	p.open(2)
	p.pay(1, 1)
	p.wait(10*millisecond, 300*millisecond)
	p.add(wallet, callback, of(2, 1, 0, 0))
	p.deliver(1, 1)
	p.deliver(2, 2)
}

// receiptReplayed is a second order for which the first one's receipt is handed in again.
func (p *planner) receiptReplayed() {
	p.normal()
	p.wait(10*minute, 10*hour)
	p.open(2)
	p.wait(second, 10*second)
	p.submit(2, 1)
	p.wait(100*millisecond, second)
	p.add(store, receiptReused, of(0, 1, 1, 0))
}

func (p *planner) refundedLate() {
	p.normal()
	p.wait(25*hour, 150*hour)
	p.refund(1, 1, p.amount)
	if p.r.chance(6000) {
		p.wait(second, minute)
		p.add(account, debited, of(0, 1, 0, 0))
	}
}

func (p *planner) refundedFirst() {
	p.open(1)
	p.pay(1, 1)
	p.wait(20*second, 4*minute)
	p.refund(1, 1, p.amount)
	if p.r.chance(5000) {
		p.wait(second, minute)
		p.deliver(1, 1)
	}
}

func (p *planner) refundedPartly() {
	p.normal()
	p.wait(hour, 20*hour)
	p.refund(1, 1, 1+p.r.below(p.amount-1))
}

func (p *planner) refundRefused() {
	p.normal()
	p.wait(hour, 90*hour)
	p.add(refunds, refundRequested, of(1, 0, 0, 0))
	p.wait(10*minute, 5*hour)
	p.add(refunds, refundRejected, of(1, 0, 0, 0))
}

func (p *planner) chargedBack() {
	p.normal()
	p.wait(6*hour, 60*hour)
	if p.c.channel.store {
		p.add(store, revoked, of(0, 1, 1, 0))
	} else {
		p.add(wallet, disputed, of(0, 1, 0, 0))
	}
}

// booked applies f to what the billing centre wrote.
func (p *planner) booked(f func(*occurrence)) {
	for i := range p.c.events {
		if p.c.events[i].src == billing {
			f(&p.c.events[i])
		}
	}
}

func (p *planner) wrongAmount() {
	p.normal()
	p.booked(func(o *occurrence) { o.amount = o.amount/2 + 1 })
}

func (p *planner) wrongChannelAmount() {
	p.normal()
	for i := range p.c.events {
		if o := &p.c.events[i]; o.src == wallet {
			o.amount -= 1 + o.amount/20
		}
	}
}

func (p *planner) wrongCurrency() {
	p.normal()
	p.booked(func(o *occurrence) { o.currency = 1 })
}

func (p *planner) blocked() {
	p.place(1)
	p.wait(20*millisecond, 300*millisecond)
	p.add(risk, riskBlocked, of(1, 0, 0, 0))
}

func (p *planner) reviewed() {
	p.place(1)
	p.wait(20*millisecond, 300*millisecond)
	p.add(risk, riskReview, of(1, 0, 0, 0))
	p.wait(minute, 40*minute)
	p.add(risk, riskApproved, of(1, 0, 0, 0))
	p.pay(1, 1)
	p.deliver(1, 1)
}

func (p *planner) gift() {
	p.c.kind = "gift"
	p.normal()
}

// coupon is an order that costs nothing: no channel, no bill.
func (p *planner) coupon() {
	p.c.kind = "coupon"
	p.amount = 0
	p.open(1)
	p.wait(second, 3*second)
	p.deliver(1, 1)
}

func (p *planner) sandbox() {
	p.c.sandbox = true
	p.normal()
}

// renewal is a subscription that the store renews; no client is open.
func (p *planner) renewal() {
	p.c.kind = "subscription"
	p.add(store, renewed, of(0, 1, 1, 0))
	p.wait(50*millisecond, 800*millisecond)
	p.add(orders, ordered, of(1, 0, 0, 0))
	p.book(1, 1)
	p.request(1, 1, 1)
	p.wait(100*millisecond, 3*second)
	p.add(delivery, delivered, of(0, 0, 0, 1))
	p.wait(10*millisecond, 200*millisecond)
	p.add(orders, completed, of(1, 0, 0, 0))
}

func (p *planner) cancelledByUser() {
	p.open(1)
	p.wait(3*second, 4*minute)
	p.add(orders, cancelled, of(1, 0, 0, 0))
}

func (p *planner) paidAfterCancel() {
	p.cancelledByUser()
	p.pay(1, 1)
	p.deliver(1, 1)
}

func (p *planner) expiredUnpaid() {
	p.open(1)
	p.now += 15 * minute
	p.add(orders, expired, of(1, 0, 0, 0))
}

func (p *planner) paidAfterExpiry() {
	p.expiredUnpaid()
	p.pay(1, 1)
	if p.r.chance(5000) {
		p.deliver(1, 1)
	}
}

func (p *planner) gatewayRecovers() {
	p.add(client, checkout, of(1, 0, 0, 0))
	p.wait(80*millisecond, 900*millisecond)
	for range p.r.between(1, 4) {
		p.add(gateway, gateway5xx, of(1, 0, 0, 0))
		p.wait(second, 6*second)
	}
	p.open(1)
	p.pay(1, 1)
	p.deliver(1, 1)
}

func (p *planner) gatewayDown() {
	p.add(client, checkout, of(1, 0, 0, 0))
	for range p.r.between(2, 5) {
		p.wait(second, 6*second)
		p.add(gateway, gateway5xx, of(1, 0, 0, 0))
	}
}

// binlogOnly is a payment whose log of the billing centre is gone; its database still shows it.
func (p *planner) binlogOnly() {
	p.open(1)
	p.confirm(1, 1)
	p.wait(50*millisecond, 900*millisecond)
	p.bookRows(1)
	p.deliver(1, 1)
}

func (p *planner) crash() {
	p.open(1)
	p.wait(second, 10*second)
	p.add(client, crashed, of(1, 0, 0, 0))
	if p.r.chance(4000) {
		p.wait(minute, 10*minute)
		p.pay(1, 1)
		p.deliver(1, 1)
	}
}
