package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weirstream/weir/sink/twophase"
)

// vault is a receiver in memory with prepared transactions.
type vault struct {
	mu        sync.Mutex
	next      int
	pending   map[string]*deposit // open or prepared, by id
	committed [][]string
	ids       []string // of those
}

func newVault() *vault { return &vault{pending: map[string]*deposit{}} }

// contents returns the transactions that are committed. Nothing says which of two that
// subtasks prepared at once comes first, but for the order of the commits.
func (v *vault) contents() any {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([][]string{}, v.committed...)
}

func deposits(transactions [][]string) any { return append([][]string{}, transactions...) }

// deposit is a transaction, right or with a mistake.
type deposit struct {
	in       *depositor
	id       string
	subtask  int
	values   []string
	prepared bool
}

// vaultParticipant writes to a vault.
type vaultParticipant struct {
	to     *vault
	broken string
}

func (vaultParticipant) Check() error { return nil }

func (p vaultParticipant) String() string {
	if p.broken == "TheDescriptionIsFit" {
		return ""
	}
	return "a vault"
}

func (p vaultParticipant) Connect(env twophase.Env) (twophase.Receiver[string], error) {
	return &depositor{vaultParticipant: p, owner: env.App + " " + env.Operator, instance: env.Instance}, nil
}

type depositor struct {
	vaultParticipant
	owner    string
	instance string
	open     *deposit
	handle   []byte
	busy     sync.Mutex
}

func (r *depositor) Begin(ctx context.Context, subtask int) (twophase.Transaction[string], error) {
	switch r.broken {
	case "SubtasksBeginAndPrepareBesideCommits":
		if !r.busy.TryLock() {
			return nil, errors.New("busy")
		}
		defer r.busy.Unlock()
		time.Sleep(time.Millisecond)
	case "no transaction when the context has ended":
		if ctx.Err() != nil {
			return nil, nil
		}
	}
	r.to.mu.Lock()
	defer r.to.mu.Unlock()
	switch r.broken {
	case "ATransactionBeginsBesideThosePrepared":
		for _, d := range r.to.pending {
			if d.owner() == r.owner && d.subtask == subtask {
				return nil, errors.New("there is a transaction")
			}
		}
	case "SubtasksHaveTransactionsOfTheirOwn":
		if r.open != nil && !r.open.prepared {
			return r.open, nil
		}
	}
	r.to.next++
	if r.broken == "handles are used again" {
		r.to.next = len(r.to.pending) + 1
	}
	d := &deposit{in: r, id: fmt.Sprintf("deposit-%06d", r.to.next), subtask: subtask}
	r.to.pending[d.id] = d
	r.open = d
	return d, nil
}

func (d *deposit) owner() string { return d.in.owner }

func (d *deposit) Write(v string) error {
	d.in.to.mu.Lock()
	defer d.in.to.mu.Unlock()
	d.values = append(d.values, v)
	return nil
}

func (d *deposit) Prepare(ctx context.Context) ([]byte, error) {
	to := d.in.to
	to.mu.Lock()
	defer to.mu.Unlock()
	d.prepared = true
	if len(d.values) == 0 && d.in.broken != "nothing is committed" {
		if d.in.broken != "nothing is left" {
			delete(to.pending, d.id)
		}
		if d.in.broken == "ATransactionMayHaveNoValues" {
			return nil, errors.New("it is empty")
		}
		return nil, nil
	}
	switch d.in.broken {
	case "no handle when the context has ended":
		if ctx.Err() != nil {
			return nil, nil
		}
	case "WhatIsCommittedIsSeen":
		d.values = d.values[1:]
	case "NothingIsSeenBeforeTheCommit":
		to.commit(d)
	case "AReplacedProcessDoesNoHarm":
		if to.pending[d.id] == nil {
			to.commit(d)
		}
	case "AHandleIsOfOneTransaction":
		d.in.handle = append(d.in.handle[:0], d.id...)
		return d.in.handle, nil
	}
	return []byte(d.id), nil
}

func (d *deposit) Rollback(context.Context) {
	if d.in.broken == "ARollbackLeavesNothing" {
		return
	}
	d.in.to.mu.Lock()
	defer d.in.to.mu.Unlock()
	delete(d.in.to.pending, d.id)
}

func (v *vault) commit(d *deposit) {
	v.committed, v.ids = append(v.committed, d.values), append(v.ids, d.id)
	delete(v.pending, d.id)
}

func (r *depositor) Commit(ctx context.Context, handle []byte) error {
	if r.broken == "CallsEndWithTheirContext" && ctx.Err() != nil {
		select {}
	}
	if ctx.Err() != nil && r.broken == "no error when the context has ended" {
		return nil
	}
	to := r.to
	to.mu.Lock()
	defer to.mu.Unlock()
	id := string(handle)
	d := to.pending[id]
	switch {
	case slices.Contains(to.ids, id):
		if r.broken == "ACommitMayBeRepeated" {
			return fmt.Errorf("%s: %w", id, twophase.ErrGone)
		}
		return nil
	case d == nil && r.broken == "WhatIsGoneIsSaidToBe":
		return nil
	case d == nil:
		return fmt.Errorf("%s: %w", id, twophase.ErrGone)
	case r.broken == "KillsRepeatAndLoseNothing" && d.in != r:
		return nil
	case r.broken == "TwoProcessesMayCommitAtOnce":
		to.mu.Unlock()
		time.Sleep(time.Millisecond)
		to.mu.Lock()
	}
	to.commit(d)
	return nil
}

func (r *depositor) Leftovers(ctx context.Context, named [][]byte) ([][]byte, error) {
	if ctx.Err() != nil && r.broken == "no leftovers when the context has ended" {
		return nil, nil
	}
	to := r.to
	to.mu.Lock()
	defer to.mu.Unlock()
	var left [][]byte
	for id, d := range to.pending {
		isNamed := slices.ContainsFunc(named, func(h []byte) bool { return string(h) == id })
		ours := d.owner() == r.owner
		if r.broken == "AnotherInstanceTakesOver" {
			ours = ours && d.in.instance == r.instance
		}
		if (ours || r.broken == "LeftoversAreOurs") && (!isNamed || r.broken == "LeftoversHaveNothingThatIsNamed") {
			left = append(left, []byte(id))
		}
	}
	switch r.broken {
	case "LeftoversAreWhatIsOpenOrPrepared":
		return nil, nil
	case "LeftoversHaveNothingThatIsCommitted":
		for _, id := range to.ids {
			left = append(left, []byte(id))
		}
	}
	return left, nil
}

func (r *depositor) Abort(_ context.Context, leftover []byte) error {
	to := r.to
	to.mu.Lock()
	defer to.mu.Unlock()
	id := string(leftover)
	if r.broken == "AnAbortMayBeRepeated" && to.pending[id] == nil {
		return errors.New("no such transaction")
	}
	if d := to.pending[id]; d != nil && r.broken == "an abort is of a whole subtask" {
		for _, other := range to.pending {
			if other.owner() == r.owner && other.subtask == d.subtask {
				delete(to.pending, other.id)
			}
		}
	}
	delete(to.pending, id)
	if at := slices.Index(to.ids, id); at >= 0 {
		to.ids, to.committed = slices.Delete(to.ids, at, at+1), slices.Delete(to.committed, at, at+1)
	}
	return nil
}

func (r *depositor) Close() error {
	if r.broken != "APreparedTransactionSurvivesItsProcess" {
		return nil
	}
	r.to.mu.Lock()
	defer r.to.mu.Unlock()
	for id, d := range r.to.pending {
		if d.in == r {
			delete(r.to.pending, id)
		}
	}
	return nil
}

func TestEachRuleForTwoPhaseParticipantsFindsWhatBreaksIt(t *testing.T) {
	suite := func(broken string) []rule {
		return TwoPhase[string]{Values: samples, New: func(testing.TB) Transactional[string] {
			to := newVault()
			return Transactional[string]{
				Participant: func() twophase.Participant[string] { return vaultParticipant{to, broken} },
				Contents:    to.contents, Want: deposits,
			}
		}}.rules()
	}
	var controls []control
	for _, r := range suite("") {
		controls = append(controls, control{r.name, suite(r.name)})
	}
	for broken, rule := range map[string]string{
		"nothing is left":                           "ATransactionMayHaveNoValues",
		"handles are used again":                    "AHandleIsOfOneTransaction",
		"an abort is of a whole subtask":            "LeftoversHaveNothingThatIsNamed",
		"no transaction when the context has ended": "CallsEndWithTheirContext",
		"no handle when the context has ended":      "CallsEndWithTheirContext",
		"no error when the context has ended":       "CallsEndWithTheirContext",
		"no leftovers when the context has ended":   "CallsEndWithTheirContext",
	} {
		controls = append(controls, control{rule, suite(broken)})
	}
	for name, text := range failures(t, suite("nothing is committed")) {
		t.Errorf("rule %s finds in a participant that commits transactions without values: %s", name, text)
	}
	every(t, suite(""), controls)
}
