package paygen

// source numbers a source of records. The order is that of the topics, so that numbers compare as topics do.
type source uint8

const (
	account source = iota
	billing
	billingDB
	client
	delivery
	gateway
	orders
	refunds
	risk
	store
	wallet
	sources
)

// files lists the sources by number: their name in the job spec and the file that holds their records.
var files = [sources]struct{ name, file string }{
	account:   {"account", "account.jsonl"},
	billing:   {"billing", "billing.log"},
	billingDB: {"billing_db", "billing_db.jsonl"},
	client:    {"client", "client.jsonl"},
	delivery:  {"delivery", "delivery.csv"},
	gateway:   {"gateway", "gateway.log"},
	orders:    {"orders", "orders.jsonl"},
	refunds:   {"refunds", "refunds.jsonl"},
	risk:      {"risk", "risk.log"},
	store:     {"store", "store.log"},
	wallet:    {"wallet", "wallet.jsonl"},
}

// step is a business step; words holds what its source writes for it.
type step uint8

const (
	credited step = iota
	debited
	paid
	chargeFailed
	billPaid
	billSettled
	billRefunded
	checkout
	purchased
	crashed
	granted
	requested
	delivered
	deliveryFailed
	gatewayOK
	gateway5xx
	ordered
	cancelled
	expired
	completed
	refundRequested
	refunded
	refundRejected
	riskPassed
	riskReview
	riskApproved
	riskBlocked
	verified
	storeDeclined
	receiptReused
	renewed
	revoked
	callback
	declined
	disputed
	steps
)

var words = [steps]string{
	credited: "recharge", debited: "clawback",
	paid: "charge_ok", chargeFailed: "charge_failed",
	billPaid: "2", billSettled: "3", billRefunded: "4",
	checkout: "checkout", purchased: "iap_purchased", crashed: "crash", granted: "item_granted",
	requested: "REQ", delivered: "OK", deliveryFailed: "FAIL",
	gatewayOK: "200", gateway5xx: "502",
	ordered: "ORDER_CREATED", cancelled: "ORDER_CANCELLED", expired: "ORDER_EXPIRED", completed: "ORDER_COMPLETED",
	refundRequested: "requested", refunded: "done", refundRejected: "rejected",
	riskPassed: "PASS", riskReview: "REVIEW", riskApproved: "APPROVE", riskBlocked: "REJECT",
	verified: "VERIFIED", storeDeclined: "DECLINED", receiptReused: "REUSED", renewed: "RENEWED", revoked: "REVOKED",
	callback: "TRADE_SUCCESS", declined: "TRADE_CLOSED", disputed: "DISPUTE_OPENED",
}

// The link keys of a chain. A record carries at most one of each kind.
const (
	orderKey = iota
	txnKey
	receiptKey
	deliveryKey
	keyKinds
)

// gaps are how far apart in time a value still links, in microseconds, as the job spec has it.
var gaps = [keyKinds]int64{orderKey: 168 * hour, txnKey: 168 * hour, receiptKey: 24 * hour, deliveryKey: 24 * hour}

// Times and durations are microseconds.
const (
	millisecond = int64(1000)
	second      = 1000 * millisecond
	minute      = 60 * second
	hour        = 60 * minute
	day         = 24 * hour
)

// keys says which of its chain's identifiers a record carries: 0 none, n the n-th of the kind.
type keys [keyKinds]uint8

func of(order, txn, receipt, delivery uint8) keys { return keys{order, txn, receipt, delivery} }

// occurrence is one event of a chain as planned, and where it was written.
type occurrence struct {
	time     int64 // as the source writes it, so no finer than its clock
	amount   int64
	seed     uint64 // draws what else the record says, so that writing it again gives the same bytes
	keys     keys
	src      source
	step     step
	attempt  uint8
	currency uint8 // 0 the chain's, 1 a wrong one

	written bool
	index   uint16
	offset  int64
}

// place is where an event stands.
type place struct {
	src    source
	index  uint16
	offset int64
}

// chain is one purchase: everything that happened to it, in one game, by one user.
type chain struct {
	number   int64
	seed     uint64
	game     *game
	channel  *channel
	user     int64 // within the game
	other    int64 // who receives a gift
	device   uint8
	item     uint8
	kind     string // normal gift coupon subscription
	sandbox  bool
	currency string
	start    int64

	events  []occurrence // sorted by source, then as planned
	folded  []place
	pending int // lines still to be written
}

// reset empties the chain for reuse.
func (c *chain) reset() {
	*c = chain{events: c.events[:0], folded: c.folded[:0]}
}
