package agent

import (
	"context"
	"sync"

	"go.temporal.io/sdk/worker"
)

// Slots keeps an agent from asking for more processes than it may run. It is a worker.SlotSupplier that counts what runs, and
// not only what its own activities started: those end when their process has started, and an agent can find processes running
// when it starts.
type Slots struct {
	most int

	mu       sync.Mutex
	reserved int           // by polls and starts
	running  int           // processes
	changed  chan struct{} // closed when there may be room
}

func newSlots(most int) *Slots { return &Slots{most: most, changed: make(chan struct{})} }

func (s *Slots) add(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running += n
	s.wake()
}

func (s *Slots) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// ReserveSlot waits until there is room for one process more.
func (s *Slots) ReserveSlot(ctx context.Context, _ worker.SlotReservationInfo) (*worker.SlotPermit, error) {
	for {
		s.mu.Lock()
		changed := s.changed
		if s.reserved+s.running < s.most {
			s.reserved++
			s.mu.Unlock()
			return &worker.SlotPermit{}, nil
		}
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// TryReserveSlot takes a slot where there is one.
func (s *Slots) TryReserveSlot(worker.SlotReservationInfo) *worker.SlotPermit {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reserved+s.running >= s.most {
		return nil
	}
	s.reserved++
	return &worker.SlotPermit{}
}

// MarkSlotUsed does nothing: a slot is used as long as it is reserved.
func (s *Slots) MarkSlotUsed(worker.SlotMarkUsedInfo) {}

// ReleaseSlot gives a slot back; a process that was started with it counts by itself by then.
func (s *Slots) ReleaseSlot(worker.SlotReleaseInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved--
	s.wake()
}

// MaxSlots returns how many there are.
func (s *Slots) MaxSlots() int { return s.most }
