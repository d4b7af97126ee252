package correlate

// Owning tells whether a session that starts in Config.Range can still be open, when events come in order of time. Once it is
// false behind the end of the range, no event that is still to come changes what the core owns.
func (c *Core) Owning() bool {
	r := c.cfg.Range
	owning := false
	c.comps.each(func(_ uint32, p *comp) {
		switch {
		case p.n == 0 || owning:
		case r.all():
			owning = true
		case p.over:
			for k := p.frags; k != 0; k = c.frags.at(k).next {
				f := c.frags.at(k)
				owning = owning || f.min < r.To && f.max >= r.From
			}
		default: // where it becomes over, each of its parts is a session
			owning = p.min < r.To && p.max >= r.From
		}
	})
	return owning
}
