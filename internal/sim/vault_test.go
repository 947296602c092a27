package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/sink/twophase"
)

// vault is the database that the app's two-phase sink writes to: a list for each account,
// and transactions, which may be prepared. It outlives every life of the app. It may forget
// a prepared transaction, as databases do after a while; its backup still has it then.
type vault struct {
	mu        sync.Mutex
	begun     int
	open      map[string]*deposit // not committed and not rolled back, by id
	committed map[string]bool
	lists     map[string][]int64
	lost      map[string]*deposit            // forgotten
	forgot    map[string]bool                // what ever was
	forget    int                            // so many are forgotten when they are to be committed
	again     bool                           // some were brought back, so they came out of turn
	listed    map[string]map[string]*deposit // what a life was told last that is left, by its name
	down      time.Time                      // until when it answers nobody
}

// deposit is a transaction.
type deposit struct {
	prepared bool
	values   []weir.KV[string, int64]
}

var errNoDeposit = errors.New("the vault has no such transaction")

func newVault() *vault {
	return &vault{open: map[string]*deposit{}, committed: map[string]bool{}, lists: map[string][]int64{}, lost: map[string]*deposit{}, forgot: map[string]bool{}, listed: map[string]map[string]*deposit{}}
}

// fault does what a step of a script says.
func (v *vault) fault(s step) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s.mode == "forget" {
		v.forget = s.n
		return
	}
	v.down = time.Now().Add(s.dur)
}

func (v *vault) heal() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.down, v.forget = time.Time{}, 0
}

// bringBack takes from the backup what was forgotten, if that is why a transaction is gone.
// Of two processes that were told so one after the other, the first one ends last at times.
func (v *vault) bringBack(handle string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.forgot[handle] {
		return false
	}
	maps.Copy(v.open, v.lost)
	clear(v.lost)
	v.again = true
	return true
}

// commit commits a prepared transaction. The lock is held.
func (v *vault) commit(id string) error {
	if v.committed[id] {
		return nil
	}
	d := v.open[id]
	if d != nil && d.prepared && v.forget > 0 {
		v.forget--
		v.lost[id], v.forgot[id] = d, true
		delete(v.open, id)
		d = nil
	}
	if d == nil || !d.prepared {
		return fmt.Errorf("%w: %s", twophase.ErrGone, id)
	}
	delete(v.open, id)
	v.committed[id] = true
	for _, kv := range d.values {
		v.lists[kv.Key] = append(v.lists[kv.Key], kv.Value)
	}
	return nil
}

// teller is a life's way to the vault.
type teller struct{ l *life }

func (teller) Check() error   { return nil }
func (teller) String() string { return "the vault" }

func (t teller) Connect(twophase.Env) (twophase.Receiver[weir.KV[string, int64]], error) {
	return t, nil
}

// Operations of the vault, of which steps may say that something happens at them, as of
// those of the store.
var vaultOps = []string{"begin", "prepare", "prepare", "commit", "commit", "leftovers", "abort"}

// do runs f at the vault, which takes a while. A process that is dead or stopped gets
// nowhere.
func (t teller) do(ctx context.Context, op string, f func(v *vault) error) error {
	_, err := t.l.store.operation(ctx, op, "", func() error {
		v := t.l.in.w.vault
		v.mu.Lock()
		defer v.mu.Unlock()
		if time.Now().Before(v.down) {
			return errDown
		}
		return f(v)
	})
	if err != nil && !errors.Is(err, twophase.ErrGone) {
		return &sink.Retriable{Err: err}
	}
	return err
}

func (t teller) Begin(ctx context.Context, writer int) (twophase.Transaction[weir.KV[string, int64]], error) {
	tx := &paying{t: t}
	return tx, t.do(ctx, "begin", func(v *vault) error {
		v.begun++
		tx.id = fmt.Sprintf("%v/%d/%d", t.l, writer, v.begun)
		v.open[tx.id] = &deposit{}
		return nil
	})
}

func (t teller) Commit(ctx context.Context, handle []byte) error {
	return t.do(ctx, "commit", func(v *vault) error { return v.commit(string(handle)) })
}

func (t teller) Leftovers(ctx context.Context, named [][]byte) (left [][]byte, err error) {
	err = t.do(ctx, "leftovers", func(v *vault) error {
		rest := maps.Clone(v.open)
		for _, h := range named {
			delete(rest, string(h))
		}
		v.listed[t.l.String()] = rest
		left = nil
		for _, id := range slices.Sorted(maps.Keys(rest)) {
			left = append(left, []byte(id))
		}
		return nil
	})
	return left, err
}

func (t teller) Abort(ctx context.Context, leftover []byte) error {
	return t.do(ctx, "abort", func(v *vault) error {
		delete(v.open, string(leftover))
		return nil
	})
}

func (teller) Close() error { return nil }

// paying is a transaction as a process sees it. Values get to the vault when it is
// prepared.
type paying struct {
	t      teller
	id     string
	values []weir.KV[string, int64]
}

func (p *paying) Write(kv weir.KV[string, int64]) error {
	p.values = append(p.values, kv)
	return nil
}

func (p *paying) Prepare(ctx context.Context) ([]byte, error) {
	err := p.t.do(ctx, "prepare", func(v *vault) error {
		d := v.open[p.id]
		if d == nil {
			return errNoDeposit // somebody rolled it back
		}
		d.prepared, d.values = true, p.values
		return nil
	})
	return []byte(p.id), err
}

func (p *paying) Rollback(ctx context.Context) {
	_ = p.t.do(ctx, "rollback", func(v *vault) error {
		delete(v.open, p.id)
		return nil
	})
}

// vaults gives every fourth world a vault, with what may happen to it and at it.
func (sc *script) vaults(r *rand.Rand, within time.Duration) {
	if sc.vault = r.IntN(4) == 0; !sc.vault {
		return
	}
	for range r.IntN(6) {
		s := step{verb: pick(r, verbVault, verbStore, verbStore, verbKill, verbKill, verbPause), who: active, dur: pick[time.Duration](r, 20, 200, 2000, 10000) * time.Millisecond}
		s.on, s.n = pick(r, vaultOps...), 1+r.IntN(4)
		switch s.verb {
		case verbVault:
			s.who, s.on, s.mode = "", "", pick(r, "down", "forget")
		case verbStore:
			s.mode = pick(r, "fail", "unknown", "unknown", "hang", "stall", "slow")
		default:
			s.mode = pick(r, "before", "after")
		}
		sc.insert(r, s, within)
	}
}

// checkVault makes sure that the vault has what the topic of large entries has, and that
// what the last active life found there was rolled back.
func (w *world) checkVault(accounts map[string]*account, large map[string][]int64) {
	v := w.vault
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(accounts)) {
		got, want := v.lists[name], large[name]
		if v.again {
			got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
		}
		if !slices.Equal(got, want) {
			w.violate("account %s: the vault has %v, the topic of large entries %v", name, got, want)
		}
	}
	last := w.active().current()
	left, asked := v.listed[last.String()]
	if !asked {
		w.violate("%v did not ask what was left in the vault", last)
	}
	for id, d := range left {
		if v.open[id] == d {
			w.violate("transaction %s was left in the vault when %v began, and is still there", id, last)
		}
	}
}

// gone tells what becomes of a life that ended because a transaction is gone: nothing, if
// the vault forgot it. Then it is brought back.
func (w *world) gone(l *life, err *twophase.GoneError) {
	if !w.vault.bringBack(string(err.Handle)) {
		w.violate("%v says that the vault lost something that it did not forget: %v", l, err)
		return
	}
	w.note(l.String(), "what the vault forgot is brought back")
}
