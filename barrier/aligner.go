package barrier

import (
	"errors"
	"fmt"
)

// ErrProtocol is wrapped by every error that tells of a broken contract: of a bug in
// whoever drives a state machine of this package or feeds it, never of bad data or of
// a failing service.
var ErrProtocol = errors.New("barrier protocol violated")

// What an Aligner refuses. Each wraps ErrProtocol.
var (
	// ErrDuplicateBarrier: the same barrier came twice on one input.
	ErrDuplicateBarrier = fmt.Errorf("%w: duplicate barrier", ErrProtocol)
	// ErrBarrierBackwards: a barrier is older than one before it on the same input,
	// or its id is not positive.
	ErrBarrierBackwards = fmt.Errorf("%w: barrier ids go backwards", ErrProtocol)
	// ErrInputBlocked: an input was read past a barrier that others have not reached.
	ErrInputBlocked = fmt.Errorf("%w: blocked input was read", ErrProtocol)
	// ErrInputEnded: something came on an input after its end.
	ErrInputEnded = fmt.Errorf("%w: input has ended", ErrProtocol)
	// ErrNoSuchInput: the index of the input is out of range.
	ErrNoSuchInput = fmt.Errorf("%w: no such input", ErrProtocol)
)

// Effect is what a subtask has to do after an event. The contract of the package gives the
// order. The zero Effect asks for nothing.
type Effect struct {
	// Snapshot is the id of the checkpoint to take now and whose barrier to forward;
	// 0 means none.
	Snapshot int64
	// Unblock tells that inputs which were held may be read again: all of them, or
	// after a newer barrier replaced a pending one, all but the one it came on.
	Unblock bool
	// Captured is the id of an unaligned checkpoint whose barrier has now come on every
	// input: what was captured for it is complete. 0 means none.
	Captured int64
	// Done tells that every input has ended.
	Done bool
	// Abandoned is the id of a pending checkpoint that was given up, because a newer
	// barrier came or because it was cancelled; 0 means none. If it was being aligned no
	// snapshot was taken for it and none will be; if it was being captured, what was
	// captured is to be dropped.
	Abandoned int64
}

// Aligner makes a consistent cut out of the barriers of a subtask's inputs, in one of two
// ways that may change in the midst of a checkpoint:
//
//   - aligned: it holds an input whose barrier came until the barrier came on all of
//     them, so that the snapshot contains exactly what lies before the barrier on each
//     input;
//   - unaligned, after [Aligner.Unalign]: the snapshot is taken at once and no input is
//     held. What the snapshot lacks of what lies before the barrier is captured: on each
//     input whose barrier has not come, all that is still to be processed in front of it.
//
// The unaligned cut is that of Chandy and Lamport's snapshot algorithm ("Distributed
// Snapshots", 1985), where a process may record its state before the first marker comes;
// that a cut begins aligned and turns unaligned later is Flink's idea (FLIP-76).
//
// It is driven by the goroutine of its subtask and is not safe for use by others. It
// allocates nothing after NewAligner, except for errors.
type Aligner struct {
	came      []bool  // by input: its barrier `pending` came
	ended     []bool  // by input
	last      []int64 // by input: the newest barrier that came on it
	live      int     // inputs that have not ended
	arrived   int     // inputs that are alive and whose barrier `pending` came
	pending   int64   // the checkpoint being aligned or captured, 0 = none
	capturing bool    // pending is unaligned: its snapshot was taken
	// cancelled is the newest id that was cancelled: a barrier up to it that an input
	// still carries opens no alignment. What was snapshot needs no such mark: either its
	// barrier came on every input that is alive, or it is pending.
	cancelled int64
	taken     int64 // the newest id that was snapshot
}

// NewAligner returns an Aligner for a subtask with the given number of inputs, numbered
// from 0. With less than one input every event is refused with ErrNoSuchInput.
func NewAligner(inputs int) *Aligner {
	inputs = max(inputs, 0)
	return &Aligner{
		came:  make([]bool, inputs),
		ended: make([]bool, inputs),
		last:  make([]int64, inputs),
		live:  inputs,
	}
}

// Blocked tells whether input must not be read now, because its barrier came and that of
// another input has not. It panics if input is out of range.
func (a *Aligner) Blocked(input int) bool { return a.came[input] && !a.capturing }

// Capturing tells whether what comes on input belongs to the unaligned checkpoint that is
// pending: its snapshot was taken, and the barrier has not come on this input. It panics
// if input is out of range.
func (a *Aligner) Capturing(input int) bool {
	return a.capturing && !a.came[input] && !a.ended[input]
}

// Pending returns the checkpoint that is being aligned or captured.
func (a *Aligner) Pending() (id int64, ok bool) { return a.pending, a.pending != 0 }

// Barrier takes note that the barrier of checkpoint id came on input. A barrier newer
// than the pending one replaces it: checkpoints are taken one after the other, so the
// older one is dead. A barrier of a checkpoint that was replaced or cancelled is skipped.
// A new checkpoint begins aligned.
func (a *Aligner) Barrier(input int, id int64) (Effect, error) {
	if err := a.open(input); err != nil {
		return Effect{}, fmt.Errorf("barrier %d on input %d: %w", id, input, err)
	}
	switch last := a.last[input]; {
	case id < 1 || id < last:
		return Effect{}, fmt.Errorf("barrier %d on input %d after barrier %d: %w", id, input, last, ErrBarrierBackwards)
	case id == last:
		return Effect{}, fmt.Errorf("barrier %d on input %d: %w", id, input, ErrDuplicateBarrier)
	case a.Blocked(input):
		return Effect{}, fmt.Errorf("barrier %d on input %d, which waits for barrier %d on others: %w", id, input, a.pending, ErrInputBlocked)
	}
	a.last[input] = id
	if id <= a.cancelled || id < a.pending {
		return Effect{}, nil
	}
	var e Effect
	if id > a.pending {
		e = a.abandon()
		a.pending = id
	}
	a.came[input] = true
	a.arrived++
	return a.complete(e), nil
}

// Unalign takes note that checkpoint id need not be aligned any more: its barrier may
// overtake what is queued in front of it on every input. If it is pending and aligned it
// turns unaligned; if nothing of it came yet it begins unaligned, and replaces one that is
// pending. The snapshot is taken at once. It has no effect for a checkpoint that was
// snapshot, replaced or cancelled, nor after the end of all inputs.
//
// It may be called as soon as it is sure that the barrier is on its way on every input
// that doesn't end before it: whether a clock says so, or a barrier that was seen ahead of
// what is queued.
func (a *Aligner) Unalign(id int64) (Effect, error) {
	if id < 1 {
		return Effect{}, fmt.Errorf("unalign checkpoint %d: %w", id, ErrBarrierBackwards)
	}
	if id <= a.cancelled || id <= a.taken || id < a.pending || a.live == 0 {
		return Effect{}, nil
	}
	e := Effect{Unblock: a.arrived > 0}
	if id > a.pending {
		e = a.abandon()
		a.pending = id
	}
	a.capturing, a.taken = true, id
	e.Snapshot = id
	return e, nil
}

// EndOfInput takes note that nothing more comes on input. It counts as every later
// barrier, and completes a pending checkpoint that waited for this input alone.
func (a *Aligner) EndOfInput(input int) (Effect, error) {
	err := a.open(input)
	if err == nil && a.Blocked(input) {
		err = ErrInputBlocked
	}
	if err != nil {
		return Effect{}, fmt.Errorf("end of input %d: %w", input, err)
	}
	a.ended[input] = true
	a.live--
	if a.came[input] {
		a.arrived--
	}
	e := a.complete(Effect{})
	e.Done = a.live == 0
	return e, nil
}

// Cancel takes note that checkpoint id was cancelled by the coordinator. A pending one, if
// it is that or an older one, is given up. Its barriers that are still to come are skipped.
// To cancel twice, or what was snapshot and needs no capture any more, has no effect.
func (a *Aligner) Cancel(id int64) (Effect, error) {
	if id < 1 {
		return Effect{}, fmt.Errorf("cancel checkpoint %d: %w", id, ErrBarrierBackwards)
	}
	a.cancelled = max(a.cancelled, id)
	if id < a.pending {
		return Effect{}, nil
	}
	return a.abandon(), nil
}

func (a *Aligner) open(input int) error {
	switch {
	case input < 0 || input >= len(a.ended):
		return ErrNoSuchInput
	case a.ended[input]:
		return ErrInputEnded
	}
	return nil
}

// complete finishes the pending checkpoint if no input that is still alive lacks the
// barrier. An alignment is pending only while a live input holds its barrier; a capture
// may end by the end of the last input.
func (a *Aligner) complete(e Effect) Effect {
	if a.pending == 0 || a.arrived < a.live {
		return e
	}
	if a.capturing {
		e.Captured = a.pending
	} else {
		e.Snapshot, e.Unblock, a.taken = a.pending, true, a.pending
	}
	a.release()
	return e
}

func (a *Aligner) abandon() Effect {
	if a.pending == 0 {
		return Effect{}
	}
	e := Effect{Abandoned: a.pending, Unblock: !a.capturing}
	a.release()
	return e
}

func (a *Aligner) release() {
	clear(a.came)
	a.arrived = 0
	a.pending = 0
	a.capturing = false
}
