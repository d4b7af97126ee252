package paygen

import "math/bits"

// mulmod is a*b mod m, without overflow; m > b.
func mulmod(a, b, m uint64) uint64 {
	hi, lo := bits.Mul64(a%m, b)
	return bits.Rem64(hi, lo, m)
}

// The formats below write fields that nobody reads between those that the job reads, as real systems do. What they
// say is drawn from the occurrence's seed, so that a line written again is the same line.

// record writes one occurrence as its source does. Sources whose lines hold several have methods of their own.
func (t *text) record(m *market, c *chain, o *occurrence) {
	switch o.src {
	case account:
		t.accountRow(c, o)
	case billing:
		t.billingLog(m, c, o)
	case delivery:
		t.deliveryRow(m, c, o)
	case gateway:
		t.accessLog(c, o)
	case orders:
		t.orderEvent(m, c, o)
	case refunds:
		t.refundRow(c, o)
	case risk:
		t.riskLog(c, o)
	case store:
		t.storeLog(m, c, o)
	case wallet:
		t.walletCallback(m, c, o)
	}
}

func (c *chain) orderKind() string {
	if c.kind == "" {
		return "normal"
	}
	return c.kind
}

// money is the currency of an occurrence.
func (c *chain) money(o *occurrence) string {
	switch {
	case o.currency == 0:
		return c.currency
	case c.currency == "USD":
		return "EUR"
	}
	return "USD"
}

// orderEvent is a message of the order service: flat header, nested order and user.
func (t *text) orderEvent(m *market, c *chain, o *occurrence) {
	it := &m.items[c.item]
	t.str(`{"event_id":"`).hex(o.seed, 16).str(`","ts":`).int(o.time / millisecond).str(`,"event":"`).str(words[o.step])
	t.str(`","app":"`).str(c.game.id).str(`","order":{"id":"`).order(c, o.keys[orderKey]).str(`","type":"`).str(c.orderKind())
	t.str(`","amount":`).int(o.amount).str(`,"currency":"`).str(c.currency).str(`","sku":"`).str(it.sku).str(`","title":`).str(it.text)
	t.str(`},"user":{"id":"`).user(c.user).str(`","level":`).int(1 + int64(o.seed>>20%90)).str(`,"nick":`).str(m.nicks[mix(uint64(c.user))%uint64(len(m.nicks))])
	t.str(`},"channel":"`).str(c.channel.id).str(`","host":"order-`).int(int64(o.seed >> 30 % 12)).str(`","coupon":null}`)
}

// walletCallback is what a payment channel posts: its own time zone, its amounts in decimals.
func (t *text) walletCallback(m *market, c *chain, o *occurrence) {
	local := o.time + 8*hour
	t.str(`{"notify_id":"`).hex(o.seed, 16).str(`","notify_type":"trade_status_sync","notify_time":"`).dateOf(local).str(" ").clock(local)
	t.str(`","app":"`).str(c.game.id).str(`","channel":"`).str(c.channel.id).str(`","trade_no":"`).txn(c, o.keys[txnKey])
	t.str(`","out_trade_no":`)
	if n := o.keys[orderKey]; n > 0 {
		t.str(`"`).order(c, n).str(`"`)
	} else {
		t.str("null")
	}
	t.str(`,"trade_status":"`).str(words[o.step]).str(`","total_amount":"`).int(o.amount/100).str(".").digits(uint64(o.amount%100), 2)
	t.str(`","currency":"`).str(c.currency).str(`","subject":`).str(m.items[c.item].text).str(`,"buyer_logon_id":"1`).digits(o.seed>>8, 2)
	t.str(`****`).digits(o.seed>>16, 4).str(`","return_url":"https:\/\/pay.example.com\/r","sign":"`).opaque(o.seed>>3, 43).str(`="}`)
}

// storeLog is a line of the service that verifies store receipts.
func (t *text) storeLog(m *market, c *chain, o *occurrence) {
	t.stamp(o.time, " ").str(" [iap-verify-").int(int64(o.seed % 16)).str("] INFO  c.g.pay.ReceiptVerifier - app=").str(c.game.id)
	t.str(" channel=").str(c.channel.id).str(" result=").str(words[o.step]).str(" env=")
	if c.sandbox {
		t.str("Sandbox")
	} else {
		t.str("Production")
	}
	t.str(" receipt=").receipt(c, o.keys[receiptKey]).str(" txn=").txn(c, o.keys[txnKey]).str(" product=com.example.").str(c.game.id)
	t.str(".").str(m.items[c.item].sku).str(" qty=1 req=").hex(o.seed, 16).str(" cost=").int(int64(20 + o.seed>>24%900)).str("ms")
}

// billingLog is a logfmt line of the billing centre.
func (t *text) billingLog(m *market, c *chain, o *occurrence) {
	t.str("ts=").stamp(o.time, "T").str("Z level=info svc=billing-core node=bj-").int(int64(o.seed%9)).str(" log_id=").hex(o.seed, 16)
	t.str(" event=").str(words[o.step]).str(" app=").str(c.game.id).str(" order=").order(c, o.keys[orderKey]).str(" txn=").txn(c, o.keys[txnKey])
	t.str(" uid=").user(c.user).str(" channel=").str(c.channel.id).str(" amount=").int(o.amount).str(" currency=").str(c.money(o))
	t.str(" item=").str(m.items[c.item].text).str(" took=").int(int64(3 + o.seed>>24%200)).str("ms")
}

// billRows writes a message of the billing database's binlog with one row for each occurrence, and sets their indexes.
func (t *text) billRows(rows []entry) {
	o := rows[0].occurrence()
	last := rows[len(rows)-1].occurrence()
	t.str(`{"data":[`)
	for i := range rows {
		c, o := rows[i].chain, rows[i].occurrence()
		o.index = uint16(i)
		if i > 0 {
			t.str(",")
		}
		t.str(`{"ID":"`).int(c.number*4+int64(o.keys[txnKey])).str(`","APP":"`).str(c.game.id).str(`","CHANNEL_TXN":"`).txn(c, o.keys[txnKey])
		t.str(`","UID":"`).user(c.user).str(`","CHANNEL":"`).str(c.channel.id).str(`","AMOUNT":"`).int(o.amount).str(`","MEMO":null,"STATUS":"`).str(words[o.step])
		t.str(`","UPDATED_AT":"`).stamp(o.time, " ").str(`"}`)
	}
	t.str(`],"database":"billing","es":`).int(last.time / millisecond).str(`,"id":`).int(int64(o.seed >> 34)).str(`,"isDdl":false,"old":`)
	if o.step == billPaid {
		t.str(`null`)
	} else {
		t.str(`[`)
		for i := range rows {
			if i > 0 {
				t.str(",")
			}
			t.str(`{"STATUS":"2"}`)
		}
		t.str(`]`)
	}
	t.str(`,"pkNames":["ID"],"sql":"","table":"t_bill","ts":`).int(last.time/millisecond + 40).str(`,"type":"`)
	if o.step == billPaid {
		t.str(`INSERT"}`)
	} else {
		t.str(`UPDATE"}`)
	}
}

// accountRow is a change of the wallet table with the envelope of its connector.
func (t *text) accountRow(c *chain, o *occurrence) {
	ms := o.time / millisecond
	t.str(`{"schema":{"type":"struct","optional":false,"name":"acct.wallet_txn.Envelope"},"payload":{"before":null,"after":{"id":`)
	id := c.number*8 + 2*int64(o.keys[txnKey])
	if o.step == debited {
		id++
	}
	t.int(id).str(`,"app":"`).str(c.game.id).str(`","account":"`).user(c.user).str(`","txn":"`).txn(c, o.keys[txnKey])
	t.str(`","reason":"`).str(words[o.step]).str(`","delta":`).int(o.amount).str(`,"balance":`).int(o.amount + int64(o.seed>>40%5000))
	t.str(`,"created_at":`).int(o.time).str(`},"source":{"connector":"postgresql","name":"acct","ts_ms":`).int(ms)
	t.str(`,"db":"account","schema":"public","table":"wallet_txn","lsn":`).int(int64(o.seed >> 24)).str(`},"op":"c","ts_ms":`).int(ms + 130).str(`}}`)
}

// refundRow is a change of the refund table. Its order id is a number, beyond what a float64 can hold.
func (t *text) refundRow(c *chain, o *occurrence) {
	t.str(`{"database":"refund","table":"refund_order","type":"`)
	if o.step == refundRequested {
		t.str("insert")
	} else {
		t.str("update")
	}
	t.str(`","ts":`).int(o.time / second).str(`,"xid":`).int(int64(o.seed >> 33)).str(`,"commit":true,"data":{"id":`).int(c.number + 1)
	t.str(`,"app":"`).str(c.game.id).str(`","order_id":`).order(c, o.keys[orderKey]).str(`,"uid":"`).user(c.user).str(`","amount":`).int(o.amount)
	t.str(`,"currency":"`).str(c.currency).str(`","state":"`).str(words[o.step]).str(`","memo":"误触 \"kids\" \u2014 n\u00b0 `).int(int64(o.seed % 97)).str(`"}`)
	if o.step != refundRequested {
		t.str(`,"old":{"state":"requested"}`)
	}
	t.str(`}`)
}

// deliveryRow is a line of the file that game servers upload every minute.
func (t *text) deliveryRow(m *market, c *chain, o *occurrence) {
	t.stamp(o.time, "T").str("Z,").str(c.game.id).str(",s").digits(mix(uint64(c.user))%400, 3).str(",").delivery(c, o.keys[deliveryKey]).str(",")
	if n := o.keys[orderKey]; n > 0 {
		t.order(c, n)
	}
	user := c.user
	if c.kind == "gift" {
		user = c.other
	}
	t.str(",").user(user).str(",").str(m.items[c.item].csv).str(",1,").str(words[o.step]).str(",").int(int64(o.attempt))
	t.str(",").int(int64(2+o.seed%400)).str(",trace-").hex(o.seed, 16)
}

// accessLog is a line of the API gateway; the identifiers stand in the arguments.
func (t *text) accessLog(c *chain, o *occurrence) {
	t.str("10.").int(int64(o.seed >> 8 % 32)).str(".").int(int64(o.seed >> 16 % 250)).str(".").int(int64(1 + o.seed>>24%250)).str(" - - [")
	t.accessTime(o.time).str(`] "POST `)
	if o.keys[receiptKey] > 0 {
		t.str("/iap/verify?app=")
	} else {
		t.str("/pay/create?app=")
	}
	t.str(c.game.id).str("&uid=").user(c.user).str("&order=").order(c, o.keys[orderKey])
	if n := o.keys[receiptKey]; n > 0 {
		t.str("&receipt=").receipt(c, n)
	}
	t.str("&sdk=4.").int(int64(o.seed % 20)).str(` HTTP/1.1" `).str(words[o.step]).str(" ").int(int64(180 + o.seed>>32%700))
	t.agent(c).str(" rt=0.").digits(o.seed>>40, 3).str(" rid=").hex(o.seed, 16)
}

func (t *text) accessTime(micros int64) *text {
	n := len(t.b)
	t.dateOf(micros)
	var date [10]byte
	copy(date[:], t.b[n:])
	t.b = append(t.b[:n], date[8], date[9], '/')
	t.month(micros).str("/")
	t.b = append(t.b, date[:4]...)
	return t.str(":").clock(micros).str(" +0000")
}

// agent writes the user agent between quotes, as the web server escapes it.
func (t *text) agent(c *chain) *text {
	switch c.device & 1 {
	case 0:
		return t.str(` "Payer/4.1 (iPhone15,2; iOS 17.4; \x22`).str(c.game.id).str(`\x22)"`)
	}
	return t.str(` "okhttp/4.12.0 (Android 14; Pixel 8; `).str(c.game.id).str(`)"`)
}

// riskLog is a line of risk control.
func (t *text) riskLog(c *chain, o *occurrence) {
	t.str("<134>1 ").stamp(o.time, "T").str("Z risk-").digits(o.seed%24, 2).str(" decision ").int(int64(1000+o.seed>>8%9000)).str(" - [id=").hex(o.seed, 16)
	t.str(" app=").str(c.game.id).str(" order=").order(c, o.keys[orderKey]).str(" uid=").user(c.user).str(" device=").deviceOf(c)
	t.str(" score=").int(int64(o.seed >> 24 % 100)).str(" rules=geo,velocity] verdict=").str(words[o.step]).str(" latency=").int(int64(1 + o.seed>>32%60)).str("ms")
}

// telemetry writes one batch of a client: the occurrences in order, and between them events that no job reads. It sets
// each occurrence's index.
func (t *text) telemetry(c *chain, events []occurrence) {
	first, last := &events[0], &events[len(events)-1]
	t.str(`{"batch":"`).hex(first.seed, 16).str(`","app":"`).str(c.game.id).str(`","account":"`).user(c.user)
	if c.device&1 == 0 {
		t.str(`","device":{"id":"`).deviceOf(c).str(`","os":"iOS 17.4","model":"iPhone15,2"}`)
	} else {
		t.str(`","device":{"id":"`).deviceOf(c).str(`","os":"Android 14","model":"Pixel \"8\""}`)
	}
	t.str(`,"ver":"4.1.`).int(int64(first.seed % 30)).str(`","sent":`).int(last.time/millisecond + 900).str(`,"events":[`)
	index := uint16(0)
	for i := range events {
		e := &events[i]
		if e.seed>>50&3 == 0 {
			t.telemetryHead(index, "view_shop", e.time-2*second).str(`,"tab":"hot"},`)
			index++
		}
		e.index = index
		t.telemetryHead(index, words[e.step], e.time)
		if n := e.keys[orderKey]; n > 0 {
			t.str(`,"order":"`).order(c, n).str(`"`)
		}
		if n := e.keys[receiptKey]; n > 0 {
			t.str(`,"receipt":"`).receipt(c, n).str(`"`)
		}
		t.str(`,"net":"wifi","fps":`).int(int64(28 + e.seed>>32%33)).str(`},`)
		index++
	}
	t.b = t.b[:len(t.b)-1]
	t.str(`]}`)
}

func (t *text) telemetryHead(seq uint16, name string, micros int64) *text {
	return t.str(`{"seq":`).int(int64(seq)).str(`,"name":"`).str(name).str(`","ts":`).int(micros / millisecond)
}

// noise writes a line that the job skips: another table, another path, a batch without a purchase. It tells whether
// the source has such lines.
func (t *text) noise(c *chain, o *occurrence) bool {
	switch o.src {
	case account:
		t.str(`{"schema":null,"payload":{"before":null,"after":{"id":`).int(int64(o.seed >> 12)).str(`,"app":"`).str(c.game.id)
		t.str(`","account":"`).user(c.user).str(`","day":17,"created_at":`).int(o.time).str(`},"source":{"db":"account","table":"login_bonus","ts_ms":`)
		t.int(o.time / millisecond).str(`},"op":"c","ts_ms":`).int(o.time / millisecond).str(`}}`)
	case billingDB:
		t.str(`{"data":[{"ID":"`).int(int64(o.seed >> 14)).str(`","APP":"`).str(c.game.id).str(`","OPERATOR":"cron","STATUS":"9","UPDATED_AT":"`)
		t.stamp(o.time, " ").str(`"}],"database":"billing","es":`).int(o.time / millisecond).str(`,"id":7,"isDdl":false,"old":null,"table":"t_audit","ts":`)
		t.int(o.time / millisecond).str(`,"type":"INSERT"}`)
	case client:
		t.str(`{"batch":"`).hex(^o.seed, 16).str(`","app":"`).str(c.game.id).str(`","account":"`).user(c.user).str(`","device":{"id":"`).deviceOf(c)
		t.str(`"},"events":[`).telemetryHead(0, "view_shop", o.time).str(`,"tab":"new"},`)
		t.telemetryHead(1, "fps_drop", o.time+second).str(`,"fps":9}]}`)
	case gateway:
		t.str("10.0.3.9 - - [").accessTime(o.time).str(`] "GET /api/notice?app=`).str(c.game.id).str("&uid=").user(c.user)
		t.str(` HTTP/1.1" 304 0`).agent(c).str(" rt=0.001 rid=").hex(^o.seed, 16)
	default:
		return false
	}
	return true
}
