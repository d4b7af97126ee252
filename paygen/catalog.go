package paygen

import "strconv"

// region is where a game is published; it decides which channels and currencies its players use.
type region uint8

const (
	china region = iota
	japan
	korea
	global
	regions
)

// game is one title. Its weight is its share of the orders.
type game struct {
	id     string
	region region
	weight int64
}

// channel is one way to pay. A store knows its own receipts and names no order; a wallet is told the order id.
type channel struct {
	id       string
	store    bool
	currency [regions]string // empty: not offered there
	weight   int64
}

// item is one thing on sale: its number selects the price in every currency. text is JSON-quoted, csv CSV-quoted.
type item struct{ sku, text, csv string }

func games() []game {
	return []game{
		{"inkblade", china, 230}, {"jadefall", china, 140}, {"lanternway", china, 95}, {"mistport", china, 60},
		{"cloudherd", china, 42}, {"tidecaller", china, 30}, {"paperfox", china, 21}, {"bronzeage_td", china, 12},
		{"onsen_story", japan, 80}, {"kitsune_run", japan, 45}, {"moonrail", japan, 20},
		{"hanok_tycoon", korea, 60}, {"neon_guild", korea, 33},
		{"starhollow", global, 120}, {"emberlane", global, 75}, {"gearwild", global, 50}, {"skyferry", global, 34},
		{"deepwell", global, 22}, {"frostmarch", global, 14}, {"pocket_orchard", global, 8},
	}
}

func channels() []channel {
	in := func(r region, currency string) (c [regions]string) {
		c[r] = currency
		return c
	}
	return []channel{
		{"alipay", false, in(china, "CNY"), 300},
		{"wechatpay", false, in(china, "CNY"), 260},
		{"unionpay", false, in(china, "CNY"), 30},
		{"qpay", false, in(china, "CNY"), 12},
		{"apple", true, [regions]string{"CNY", "JPY", "KRW", "USD"}, 210},
		{"google", true, [regions]string{"", "JPY", "KRW", "USD"}, 190},
		{"huawei", true, in(china, "CNY"), 60},
		{"xiaomi", true, in(china, "CNY"), 45},
		{"oppo", true, in(china, "CNY"), 35},
		{"vivo", true, in(china, "CNY"), 33},
		{"samsung", true, [regions]string{"", "", "KRW", "USD"}, 18},
		{"onestore", true, in(korea, "KRW"), 70},
		{"amazon", true, in(global, "USD"), 10},
		{"steam", false, [regions]string{"CNY", "", "", "USD"}, 40},
		{"paypal", false, in(global, "USD"), 70},
		{"card_eu", false, in(global, "EUR"), 60},
		{"card_us", false, [regions]string{"", "USD", "USD", "USD"}, 55},
		{"pix", false, in(global, "BRL"), 25},
		{"upi", false, in(global, "INR"), 22},
		{"razer", false, [regions]string{"", "USD", "USD", "USD"}, 9},
	}
}

// prices are in minor units; yen and won have none.
func prices(currency string) [6]int64 {
	switch currency {
	case "CNY":
		return [6]int64{600, 3000, 6800, 12800, 32800, 64800}
	case "JPY":
		return [6]int64{160, 650, 1500, 3000, 7800, 15800}
	case "KRW":
		return [6]int64{1500, 5900, 14000, 28000, 69000, 149000}
	case "BRL":
		return [6]int64{490, 2490, 4990, 9990, 24990, 49990}
	case "INR":
		return [6]int64{8900, 44900, 89900, 179900, 449900, 899900}
	}
	return [6]int64{99, 499, 999, 1999, 4999, 9999}
}

func items() [6]item {
	var list [6]item
	for i, text := range []string{
		"60 Gems", "330 Gems, +30 free", `Starter "Phoenix" Pack`, "月卡 · 30天", "Cofre del Dragón\t×10", "限定スキン「夜桜」🌸",
	} {
		list[i] = item{"sku." + strconv.Itoa(i+1) + "." + []string{"gem60", "gem330", "starter", "monthly", "chest10", "skin"}[i],
			strconv.Quote(text), csvQuote(text)}
	}
	return list
}

func csvQuote(text string) string {
	quoted := []byte{'"'}
	for i := range len(text) {
		if text[i] == '"' {
			quoted = append(quoted, '"')
		}
		quoted = append(quoted, text[i])
	}
	return string(append(quoted, '"'))
}

// nicks are JSON-quoted player names.
func nicks() []string {
	names := []string{
		"阿狸不吃鱼", "Mr. \"Boom\"", "夜航船", "さくら猫", "한강라면", "O'Brien", "Zoë", "Łukasz_88", "back\\slash", "龙哥🐉",
		"tab\there", "Иван Грозный", "أمير", "小鹿&小象", "xX_slayer_Xx", "柚子茶 半糖",
	}
	for i, name := range names {
		names[i] = strconv.Quote(name)
	}
	return names
}

// lottery draws a number in proportion to weights.
type lottery struct{ upTo []int64 }

func (l *lottery) add(weight int64) {
	if n := len(l.upTo); n > 0 {
		weight += l.upTo[n-1]
	}
	l.upTo = append(l.upTo, weight)
}

func (l *lottery) draw(r *rng) int {
	n := r.below(l.upTo[len(l.upTo)-1])
	i := 0
	for l.upTo[i] <= n {
		i++
	}
	return i
}

// market is the catalog ready for drawing: which channels a game's players use.
type market struct {
	games    []game
	channels []channel
	items    [6]item
	nicks    []string
	byGame   lottery
	byRegion [regions]lottery // over all channels; those not offered have weight 0
}

func newMarket() *market {
	m := &market{games: games(), channels: channels(), items: items(), nicks: nicks()}
	for _, g := range m.games {
		m.byGame.add(g.weight)
	}
	for r := range regions {
		for _, c := range m.channels {
			if c.currency[r] == "" {
				c.weight = 0
			}
			m.byRegion[r].add(c.weight)
		}
	}
	return m
}
