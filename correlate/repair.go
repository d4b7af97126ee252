package correlate

import "encoding/binary"

// Repair sets a sink right after a restore. ids are the sessions, and tombstones of sessions, that the sink got after the
// snapshot that this core comes from, from a run that ended without another. What the state holds of them is handed out
// again by the next Flush, as it was at the snapshot or as it has become; of what the state does not hold, a tombstone
// is handed out now. Without that, a session that was handed out alone before a crash and is merged after it would stay.
func (c *Core) Repair(ids []ID, out Output) {
	missing := make(map[ID]bool, len(ids))
	for _, id := range ids {
		missing[id] = true
	}
	c.eachFrag(func(_ uint32, f *frag) {
		for i := f.emitted; i != 0; i = c.emitted.at(i).next {
			if id := c.emitted.at(i).id; missing[id] {
				delete(missing, id)
				c.markDirty(f)
			}
		}
	})
	for _, id := range ids {
		if missing[id] {
			delete(missing, id)
			c.seq++
			out.Tombstone(c.seq, id)
		}
	}
}

// RepairCells does for report cells what Repair does for sessions; of cells only Report, Window and By are read. What the
// state does not hold is handed out as a cell without sessions.
func (c *Core) RepairCells(cells []Cell, out Output) {
	r := &c.reports
	for _, cell := range cells {
		if cell.Report < 0 || cell.Report >= len(c.cfg.Reports) {
			continue // of a report that this version does not have; nobody reads it
		}
		key := binary.BigEndian.AppendUint64(nil, uint64(cell.Window))
		for _, v := range cell.By {
			key = appendText(key, v)
		}
		if n := r.look(r.hash(cell.Report, key), cell.Report, key); n != 0 {
			r.touch(n, r.cells.at(n))
			continue
		}
		zero := Cell{Report: cell.Report, Window: cell.Window, By: cell.By}
		zero.Measures = make([]int64, len(c.cfg.Reports[cell.Report].Measures))
		c.seq++
		out.Cell(c.seq, &zero)
	}
}
