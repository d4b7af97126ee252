package streaming

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// ErrMemory says that state does not fit Config.MemoryBytes whatever is spilled.
var ErrMemory = errors.New("the state does not fit its memory")

const (
	spillPartBytes   = 8 << 20 // a file becomes objects of this size
	spillPartsAtOnce = 4       // objects that are read at a time
	spillFilesMax    = 48      // where there are more, input waits for a merge
	mergeFiles       = 4       // of one size: so many become one
	goneBytesMax     = 1 << 30
	mergeWait        = time.Second // for which it waits, with every batch
)

// SpillStatus describes what left memory.
type SpillStatus struct {
	Files       int
	Components  int64 // on disk and not in memory again; some may have expired
	Events      int64 // in their timelines
	Bytes       int64 // on disk
	MemoryBytes int64 // of the indexes
	Lookups     int64 // key values that were looked up, since the run started; so are all below
	Misled      int64 // reads of an index for nothing, since a filter was wrong
	Loads       int64 // components that went back into memory
	Spills      int64 // components that left it
	Merges      int64
}

// spill keeps components on local disk while memory is short, and puts them back before an event can link to them. The
// shard's goroutine owns it; a merge of files runs beside it.
//
// Files are immutable, so a checkpoint saves each once, and names it for as long as it is part of the state. Which components
// are in memory again is a bit each.
type spill struct {
	dir      string // of this run
	prefix   string // of objects
	epoch    uint64
	seed     uint64 // of hashes in files; all of a shard have one
	bound    int64
	log      logger
	wait     func(ctx context.Context, what string, full func(error) bool, f func() error) error
	files    []*spillFile
	made     uint64
	out      spillBuilder
	hits     []spillHit
	blocks   blockReader
	page     [pageBytes]byte
	pause    int64 // memory below which it is of no use to try again
	merging  []*mergeInput
	merged   chan mergeResult
	oldest   event.Micros
	unmerged int // files when a merge failed: it is of no use to try again with the same ones

	saving bool         // a checkpoint that is on its way reads files
	graves []*spillFile // files that are part of the state no more, but of that checkpoint

	status SpillStatus
}

type spillHit struct {
	file   *spillFile
	place  int // of file, to sort by
	number uint32
}

type mergeResult struct {
	file *spillFile
	err  error
}

// newSpill makes the run's folder, and deletes those of runs before it.
func newSpill(s *shard) (*spill, error) {
	all := filepath.Join(s.cfg.SpillDir, strings.NewReplacer("/", "-", string(filepath.Separator), "-").Replace(s.cfg.Name))
	name := fmt.Sprintf("%016x", s.epoch)
	p := &spill{
		dir: filepath.Join(all, name), prefix: s.cfg.Name + "/", epoch: s.epoch, seed: rand.Uint64(), bound: s.cfg.MemoryBytes, log: s.log,
		oldest: event.MinTime, wait: s.retryIf,
	}
	left, err := os.ReadDir(all)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("look for left-over spilled state: %w", err)
	}
	for _, e := range left {
		if e.Name() <= name { // what is later is of a run after this one
			if err := os.RemoveAll(filepath.Join(all, e.Name())); err != nil {
				return nil, fmt.Errorf("delete left-over spilled state: %w", err)
			}
		}
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder for spilled state: %w", err)
	}
	return p, nil
}

// openSpill makes ready to spill, and fetches what the last checkpoint spilled.
func (s *shard) openSpill(ctx context.Context, before *spillState) (err error) {
	if s.cfg.MemoryBytes == 0 && before == nil {
		return nil
	}
	if s.cfg.SpillDir == "" {
		return errors.New("the last checkpoint has state that was spilled to disk, and the shard has no folder for it")
	}
	if s.spill, err = newSpill(s); err != nil {
		return err
	}
	return s.retry(ctx, "fetch spilled state", func() error { return s.spill.restore(ctx, s.cfg.Objects, before) })
}

// close ends a merge that is under way and deletes the run's folder.
func (p *spill) close() {
	if p == nil {
		return
	}
	if p.merging != nil {
		if r := <-p.merged; r.file != nil {
			p.graves = append(p.graves, r.file)
		}
	}
	for _, f := range slices.Concat(p.files, p.graves) {
		f.f.Close()
	}
	if err := os.RemoveAll(p.dir); err != nil {
		p.log.Warn("spilled state is left", "folder", p.dir, "error", err)
	}
}

// load puts back what the events of a batch could link to.
func (p *spill) load(core *correlate.Core, b *event.Batch) error {
	if p == nil || len(p.files) == 0 {
		return nil
	}
	needs := core.Needs(b, p.seed)
	p.status.Lookups += int64(len(needs))
	for place, f := range p.files { // all needs of one file after another: its filter stays in the cache
		if err := p.search(place, f, needs); err != nil {
			return err
		}
	}
	return p.loadHits(core)
}

func (p *spill) search(place int, f *spillFile, needs []correlate.Need) error {
	for i := range needs {
		n := &needs[i]
		if !f.filter.has(n.Hash) {
			continue
		}
		found, err := f.find(n, &p.page, func(number uint32) { p.hits = append(p.hits, spillHit{f, place, number}) })
		if err != nil {
			return err
		}
		if !found {
			p.status.Misled++
		}
	}
	return nil
}

// loadHits puts back the components that were found, neighbours together.
func (p *spill) loadHits(core *correlate.Core) error {
	slices.SortFunc(p.hits, func(a, b spillHit) int { return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(a.number, b.number)) })
	for _, h := range p.hits {
		if h.file.gone.has(h.number) {
			continue // found by several keys
		}
		b, err := p.blocks.component(h.file, h.number)
		if err != nil {
			return err
		}
		events, err := core.Load(b)
		if err != nil {
			return fmt.Errorf("load spilled state of %s: %w", h.file.f.Name(), err)
		}
		h.file.gone.set(h.number)
		h.file.goneCount++
		h.file.goneEvents += uint64(events)
		p.status.Loads++
	}
	p.hits = p.hits[:0]
	return nil
}

// loadIDs puts back the components that have handed out sessions, so that Repair finds them.
func (p *spill) loadIDs(core *correlate.Core, ids []correlate.ID) error {
	if p == nil || len(ids) == 0 {
		return nil
	}
	wanted := make(map[uint64]bool, len(ids))
	for i := range ids {
		wanted[idHash(&ids[i])] = true
	}
	for place, f := range p.files {
		err := f.ids(func(hash uint64, number uint32) {
			if wanted[hash] && !f.gone.has(number) {
				p.hits = append(p.hits, spillHit{f, place, number})
			}
		})
		if err != nil {
			return err
		}
	}
	return p.loadHits(core)
}

// memory is what the core and the indexes use.
func (p *spill) memory(core *correlate.Core) int64 {
	n := core.UsedBytes()
	for _, f := range p.files {
		n += f.memory()
	}
	return n
}

// relieve spills what is needed to keep to the bound, and tidies up. flush hands out what changed: only that can be spilled.
// It returns ErrMemory where that does not help.
func (p *spill) relieve(ctx context.Context, core *correlate.Core, flush func()) error {
	if p == nil {
		return nil
	}
	if err := p.tidy(ctx, core.Oldest()); err != nil || p.bound == 0 {
		return err
	}
	used := p.memory(core)
	if used <= max(p.bound, p.pause) {
		return nil
	}
	step := min(p.bound/32, 16<<20)
	goal := max(used-p.bound, step)
	freed := core.Spill(p.seed, goal, false, p.out.add)
	p.pause = 0
	if freed < goal/2 {
		p.pause = used - freed + step // most is not handed out yet: it is of no use to try again with every batch
	}
	if used-freed > p.bound+p.bound/4 {
		p.pause = 0
		flush()
		core.Spill(p.seed, used-freed-p.bound, true, p.out.add)
	}
	if err := p.writeOut(ctx); err != nil {
		return err
	}
	if used := p.memory(core); used > p.bound+p.bound/2 {
		return fmt.Errorf("%w: %d bytes are in use that cannot be spilled, the bound is %d: raise the memory of the job, or use more shards", ErrMemory, used, p.bound)
	}
	return nil
}

// writeOut makes a file of what left the core. A disk that is full holds up the input, for a while.
func (p *spill) writeOut(ctx context.Context) error {
	if len(p.out.parts) == 0 {
		return nil
	}
	var f *spillFile
	path, key := p.nextFile()
	err := p.wait(ctx, "spill to disk", diskFull, func() (err error) {
		f, err = p.out.build(path, p.seed)
		return err
	})
	if err != nil {
		if diskFull(err) {
			err = fmt.Errorf("%w: free disk below %s, or give the job more memory or more shards", err, filepath.Dir(p.dir))
		}
		return err
	}
	f.key = key
	p.files = append(p.files, f)
	p.status.Spills += int64(len(p.out.parts))
	p.out.reset()
	return nil
}

func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// nextFile names a file, here and among the objects.
func (p *spill) nextFile() (path, key string) {
	p.made++
	name := fmt.Sprintf("%016x-%016x", p.epoch, p.made)
	return filepath.Join(p.dir, name), p.prefix + "spill-" + name
}

// tidy drops files that nobody can need any more, and merges.
func (p *spill) tidy(ctx context.Context, oldest event.Micros) error {
	p.oldest = oldest
	if p.merging != nil {
		select {
		case r := <-p.merged:
			p.endMerge(r)
		default:
			if len(p.files) > spillFilesMax { // files come faster than they can be merged
				select {
				case r := <-p.merged:
					p.endMerge(r)
				case <-time.After(mergeWait): // the shard has to show that it is alive
				case <-ctx.Done():
					return nil
				}
			}
		}
	}
	p.files = slices.DeleteFunc(p.files, func(f *spillFile) bool {
		if f.live() > 0 && f.Late >= int64(oldest) || p.isMerging(f) {
			return false
		}
		p.bury(f)
		return true
	})
	if p.merging == nil && len(p.files) != p.unmerged {
		if files := p.mergeable(); files != nil {
			p.startMerge(files)
		}
	}
	return nil
}

func (p *spill) isMerging(f *spillFile) bool {
	return slices.ContainsFunc(p.merging, func(m *mergeInput) bool { return m.file == f })
}

// bury deletes a file, once no checkpoint reads it.
func (p *spill) bury(f *spillFile) {
	if p.saving {
		p.graves = append(p.graves, f)
		return
	}
	if p.blocks.file == f {
		p.blocks.file = nil
	}
	if err := f.remove(); err != nil {
		p.log.Warn("a spill file is left", "error", err)
	}
}

// mergeable returns files that are to become one: several of about one size, by what is still wanted of them, or one of which
// most is not.
func (p *spill) mergeable() []*spillFile {
	tiers := map[int][]*spillFile{}
	for _, f := range p.files {
		tier := 0
		for n := f.liveBytes() >> 20; n > 0; n /= mergeFiles {
			tier++
		}
		tiers[tier] = append(tiers[tier], f)
		if len(tiers[tier]) == mergeFiles {
			return tiers[tier]
		}
	}
	for _, f := range p.files {
		if f.live() < f.Components/2 {
			return []*spillFile{f}
		}
	}
	return nil
}

func (p *spill) startMerge(files []*spillFile) {
	for _, f := range files {
		p.merging = append(p.merging, newMergeInput(f))
	}
	path, key := p.nextFile()
	p.merged = make(chan mergeResult, 1)
	inputs, oldest, done := p.merging, p.oldest, p.merged
	go func() {
		f, err := mergeSpill(path, inputs, oldest)
		if err == nil {
			f.key = key
		}
		done <- mergeResult{f, err}
	}()
}

// endMerge puts a merged file in place of those that it was made of. What has gone back into memory meanwhile is gone there
// too.
func (p *spill) endMerge(r mergeResult) {
	inputs := p.merging
	p.merging, p.merged = nil, nil
	if r.err != nil { // what there is stays as good as it was
		p.log.Warn("spilled state was not merged", "error", r.err)
		p.unmerged = len(p.files)
		return
	}
	p.status.Merges++
	p.unmerged = 0
	for _, in := range inputs {
		for k, word := range in.file.gone {
			for late := word &^ in.gone[k] & in.live[k]; late != 0; late &= late - 1 {
				r.file.gone.set(in.number(uint32(k*64 + bits.TrailingZeros64(late))))
				r.file.goneCount++
			}
		}
		r.file.goneEvents += in.file.goneEvents - in.events
	}
	p.files = slices.DeleteFunc(p.files, func(f *spillFile) bool {
		for _, in := range inputs {
			if in.file == f {
				p.bury(f)
				return true
			}
		}
		return false
	})
	if r.file.live() == 0 {
		p.bury(r.file)
		return
	}
	p.files = append(p.files, r.file)
}

// tell describes what left memory.
func (p *spill) tell() SpillStatus {
	if p == nil {
		return SpillStatus{}
	}
	s := p.status
	s.Files = len(p.files)
	for _, f := range p.files {
		s.Components += int64(f.live())
		s.Events += max(0, int64(f.Events)-int64(f.goneEvents))
		s.Bytes += f.bytes
		s.MemoryBytes += f.memory()
	}
	return s
}

// spillState is what a manifest says of spilled components.
type spillState struct {
	Seed  uint64        `json:"seed,string"`
	Files []spillObject `json:"files"`
	Gone  *stateFile    `json:"gone,omitempty"` // which components are in memory again; none: of no file any is
}

// spillObject is a file, in parts of spillPartBytes.
type spillObject struct {
	Key   string   `json:"key"` // without "-" and the number of a part, 4 digits
	Bytes int64    `json:"bytes"`
	CRC   []uint32 `json:"crc32c"` // of each part
}

func (o *spillObject) part(i int) string { return fmt.Sprintf("%s-%04d", o.Key, i) }

// keys lists all objects that it names.
func (s *spillState) keys() (keys []string) {
	if s == nil {
		return nil
	}
	for i := range s.Files {
		for k := range s.Files[i].CRC {
			keys = append(keys, s.Files[i].part(k))
		}
	}
	if s.Gone != nil {
		keys = append(keys, s.Gone.Key)
	}
	return keys
}

// spillSave is what a checkpoint has to upload.
type spillSave struct {
	files []*spillFile // those that were not saved yet
	gone  []byte
	state *spillState
}

// checkpoint describes the spilled state as it is now. Its files stay until saved is called.
func (p *spill) checkpoint(number uint64) *spillSave {
	if p == nil || len(p.files) == 0 {
		return nil
	}
	p.saving = true
	save := &spillSave{state: &spillState{Seed: p.seed}}
	any := false
	var gone []byte
	for _, f := range p.files {
		save.state.Files = append(save.state.Files, spillObject{f.key, f.bytes, f.crc})
		if !f.saved {
			save.files = append(save.files, f)
		}
		any = any || f.goneCount > 0
		gone = binary.AppendUvarint(gone, f.goneEvents)
		for _, word := range f.gone {
			gone = binary.LittleEndian.AppendUint64(gone, word)
		}
	}
	if any {
		save.gone = s2.Encode(nil, gone)
		save.state.Gone = &stateFile{
			Key:   fmt.Sprintf("%sspill-%016x-gone-%016x", p.prefix, p.epoch, number),
			Bytes: len(save.gone), CRC: crc32.Checksum(save.gone, castagnoli),
		}
	}
	return save
}

// saved notes that no checkpoint is on its way any more.
func (p *spill) saved() {
	if p == nil {
		return
	}
	p.saving = false
	for _, f := range p.graves {
		p.bury(f)
	}
	p.graves = nil
}

// upload stores what was not stored yet, each object with a try of its own. It runs beside the shard.
func (s *spillSave) upload(objects Objects, try func(what string, f func(context.Context) error) error) error {
	if s == nil {
		return nil
	}
	put := func(key string, data []byte) error {
		return try("save spilled state", func(ctx context.Context) error {
			// A try whose reply was lost has written just these bytes under this name.
			if _, err := objects.Put(ctx, key, data, ""); err != nil && !errors.Is(err, ErrChanged) {
				return fmt.Errorf("write the spilled state %s: %w", key, err)
			}
			return nil
		})
	}
	var part []byte
	for _, f := range s.files {
		o := spillObject{f.key, f.bytes, f.crc}
		for i := range f.crc {
			at := int64(i) * spillPartBytes
			part = slices.Grow(part[:0], spillPartBytes)[:min(spillPartBytes, f.bytes-at)]
			if _, err := f.f.ReadAt(part, at); err != nil {
				return fmt.Errorf("read spilled state: %w", err)
			}
			if crc32.Checksum(part, castagnoli) != f.crc[i] { // better no checkpoint than one that cannot be restored
				return fmt.Errorf("%w: %s changed on disk", errSpillCorrupt, f.f.Name())
			}
			if err := put(o.part(i), part); err != nil {
				return err
			}
		}
		f.saved = true
	}
	if s.gone == nil {
		return nil
	}
	return put(s.state.Gone.Key, s.gone)
}

// restore fetches the files that a manifest names.
func (p *spill) restore(ctx context.Context, objects Objects, state *spillState) error {
	if state == nil {
		return nil
	}
	p.seed = state.Seed
	for _, f := range p.files { // of a try before
		p.bury(f)
	}
	p.files = nil
	for i := range state.Files {
		o := &state.Files[i]
		path, _ := p.nextFile()
		f, err := createSpillFile(path, func(f *os.File) (*spillFile, error) {
			if err := o.fetch(ctx, objects, f); err != nil {
				return nil, err
			}
			return openSpillFile(f)
		})
		if err != nil {
			return err
		}
		f.key, f.crc, f.saved = o.Key, o.CRC, true
		p.files = append(p.files, f)
	}
	if state.Gone == nil {
		return nil
	}
	packed, err := fetchObject(ctx, objects, state.Gone.Key, int64(state.Gone.Bytes), state.Gone.CRC)
	if err != nil {
		return err
	}
	if n, err := s2.DecodedLen(packed); err != nil || n > goneBytesMax {
		return fmt.Errorf("%w: %s does not say what is gone", errSpillCorrupt, state.Gone.Key)
	}
	gone, err := s2.Decode(nil, packed)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", errSpillCorrupt, state.Gone.Key, err)
	}
	for _, f := range p.files {
		events, n := binary.Uvarint(gone)
		if n <= 0 || len(gone)-n < len(f.gone)*8 {
			return fmt.Errorf("%w: %s is cut short", errSpillCorrupt, state.Gone.Key)
		}
		f.goneEvents, gone = events, gone[n:]
		for k := range f.gone {
			f.gone[k] = binary.LittleEndian.Uint64(gone[8*k:])
		}
		gone = gone[8*len(f.gone):]
		f.goneCount = uint32(f.gone.count())
	}
	return nil
}

// fetch writes the parts of a file to disk, some at a time.
func (o *spillObject) fetch(ctx context.Context, objects Objects, f *os.File) error {
	if int64(len(o.CRC)) != (o.Bytes+spillPartBytes-1)/spillPartBytes {
		return fmt.Errorf("%w: %s: %d bytes in %d parts", errSpillCorrupt, o.Key, o.Bytes, len(o.CRC))
	}
	errs := make([]error, len(o.CRC))
	var readers sync.WaitGroup
	turns := make(chan struct{}, spillPartsAtOnce)
	for i := range o.CRC {
		turns <- struct{}{}
		readers.Go(func() {
			defer func() { <-turns }()
			at := int64(i) * spillPartBytes
			data, err := fetchObject(ctx, objects, o.part(i), min(spillPartBytes, o.Bytes-at), o.CRC[i])
			if err == nil {
				_, err = f.WriteAt(data, at)
			}
			errs[i] = err
		})
	}
	readers.Wait()
	return errors.Join(errs...)
}

// fetchObject reads an object of a size and checksum.
func fetchObject(ctx context.Context, objects Objects, key string, size int64, crc uint32) ([]byte, error) {
	data, _, err := objects.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("read the spilled state %s: %w", key, err)
	}
	if sum := crc32.Checksum(data, castagnoli); int64(len(data)) != size || sum != crc {
		return nil, fmt.Errorf("the spilled state %s is damaged: %d bytes with checksum %08x, expected %d with %08x", key, len(data), sum, size, crc)
	}
	return data, nil
}
