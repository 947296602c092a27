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
	// Done tells that every input has ended.
	Done bool
	// Abandoned is the id of a pending alignment that was given up, because a newer
	// barrier came or because it was cancelled; 0 means none. No snapshot was taken
	// for it and none will be.
	Abandoned int64
}

// Aligner lines up the barriers of a subtask's inputs: it holds an input whose barrier
// came until the barrier came on all of them, so that the snapshot contains exactly
// what lies before the barrier on each input.
//
// It is driven by the goroutine of its subtask and is not safe for use by others. It
// allocates nothing after NewAligner, except for errors.
type Aligner struct {
	blocked []bool  // by input: its barrier `pending` came
	ended   []bool  // by input
	last    []int64 // by input: the newest barrier that came on it
	live    int     // inputs that have not ended
	arrived int     // inputs that are blocked
	pending int64   // the checkpoint being aligned, 0 = none
	// cancelled is the newest id that was cancelled: a barrier up to it that an input
	// still carries opens no alignment. What was snapshot needs no such mark, its
	// barrier came on every input that is alive.
	cancelled int64
}

// NewAligner returns an Aligner for a subtask with the given number of inputs, numbered
// from 0. With less than one input every event is refused with ErrNoSuchInput.
func NewAligner(inputs int) *Aligner {
	inputs = max(inputs, 0)
	return &Aligner{
		blocked: make([]bool, inputs),
		ended:   make([]bool, inputs),
		last:    make([]int64, inputs),
		live:    inputs,
	}
}

// Blocked tells whether input must not be read now, because its barrier came and that of
// another input has not. It panics if input is out of range.
func (a *Aligner) Blocked(input int) bool { return a.blocked[input] }

// Pending returns the checkpoint that is being aligned.
func (a *Aligner) Pending() (id int64, ok bool) { return a.pending, a.pending != 0 }

// Barrier takes note that the barrier of checkpoint id came on input. A barrier newer
// than the pending one replaces it: checkpoints are taken one after the other, so the
// older one is dead. A barrier of a checkpoint that was replaced or cancelled is skipped.
func (a *Aligner) Barrier(input int, id int64) (Effect, error) {
	if err := a.open(input); err != nil {
		return Effect{}, fmt.Errorf("barrier %d on input %d: %w", id, input, err)
	}
	switch last := a.last[input]; {
	case id < 1 || id < last:
		return Effect{}, fmt.Errorf("barrier %d on input %d after barrier %d: %w", id, input, last, ErrBarrierBackwards)
	case id == last:
		return Effect{}, fmt.Errorf("barrier %d on input %d: %w", id, input, ErrDuplicateBarrier)
	case a.blocked[input]:
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
	a.blocked[input] = true
	a.arrived++
	return a.complete(e), nil
}

// EndOfInput takes note that nothing more comes on input. It counts as every later
// barrier, and completes a pending alignment that waited for this input alone.
func (a *Aligner) EndOfInput(input int) (Effect, error) {
	err := a.open(input)
	if err == nil && a.blocked[input] {
		err = ErrInputBlocked
	}
	if err != nil {
		return Effect{}, fmt.Errorf("end of input %d: %w", input, err)
	}
	a.ended[input] = true
	a.live--
	e := a.complete(Effect{})
	e.Done = a.live == 0
	return e, nil
}

// Cancel takes note that checkpoint id was cancelled by the coordinator. A pending
// alignment of it, or of an older checkpoint, is given up. Its barriers that are still to
// come are skipped. To cancel twice, or what was snapshot already, has no effect.
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

// complete finishes the pending alignment if no input that is still alive lacks the
// barrier. An alignment is pending only while a live input holds its barrier, so that
// arrived is never 0 here.
func (a *Aligner) complete(e Effect) Effect {
	if a.pending == 0 || a.arrived < a.live {
		return e
	}
	e.Snapshot, e.Unblock = a.pending, true
	a.release()
	return e
}

func (a *Aligner) abandon() Effect {
	if a.pending == 0 {
		return Effect{}
	}
	e := Effect{Abandoned: a.pending, Unblock: true}
	a.release()
	return e
}

func (a *Aligner) release() {
	clear(a.blocked)
	a.arrived = 0
	a.pending = 0
}
