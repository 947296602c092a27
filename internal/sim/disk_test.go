package sim

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weirstream/weir/checkpoint"
)

// disk is the checkpoint store that all instances share. It keeps what was acknowledged.
// What was not is there or not after a crash, whole or not at all: that is what a store
// promises, and what a directory does with a temporary file, a sync, a link and another
// sync.
type disk struct {
	*checkpoint.Mem
	// archive has every manifest that was ever written.
	archive *checkpoint.Mem

	mu    sync.Mutex
	until time.Time // when the outage is over
	hangs bool      // nobody gets an answer until then; else an error
}

func newDisk() *disk { return &disk{Mem: checkpoint.NewMem(), archive: checkpoint.NewMem()} }

// outage begins one.
func (d *disk) outage(s step) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.until, d.hangs = time.Now().Add(s.dur), s.mode == "hang"
}

func (d *disk) heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.until = time.Time{}
}

// out tells how long the outage still lasts.
func (d *disk) out() (left time.Duration, hangs bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Until(d.until), d.hangs
}

var (
	errDead      = errors.New("the process is dead")
	errInjected  = errors.New("injected fault")
	errUncertain = errors.New("injected fault: the operation was done, the answer lost")
)

// handle is the store as one process sees it.
type handle struct {
	*disk
	latency time.Duration
	healed  <-chan struct{}

	mu     sync.Mutex
	rng    *rand.Rand
	dead   chan struct{} // closed when the process dies
	frozen gate          // of a process that is stopped
	rules  []*storeRule
	// flipped says that a bit of what the process read was not what was written.
	flipped bool
}

// storeRule is a fault that waits for an operation.
type storeRule struct {
	op   string // put, get, list, delete or any
	mode string
	skip int // how many pass before
	left int
	dur  time.Duration
	act  func() // for modes of other verbs
}

func newHandle(d *disk, healed <-chan struct{}, latency time.Duration, rng *rand.Rand) *handle {
	return &handle{disk: d, healed: healed, latency: latency, rng: rng, dead: make(chan struct{})}
}

func (h *handle) kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.isDead() {
		close(h.dead)
	}
	h.frozen.release()
}

func (h *handle) isDead() bool { return isClosed(h.dead) }

// freeze stops the process until thaw is called, or heal.
func (h *handle) freeze() (thaw func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isDead() {
		return func() {}
	}
	end := h.frozen.hold()
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		end()
	}
}

// running waits while the process is stopped.
func (h *handle) running() {
	for {
		h.mu.Lock()
		frozen := h.frozen.open
		h.mu.Unlock()
		if frozen == nil {
			return
		}
		<-frozen
	}
}

// heal ends all faults.
func (h *handle) heal() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rules = nil
	h.frozen.release()
}

func (h *handle) addRule(r *storeRule) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rules = append(h.rules, r)
}

func (h *handle) match(op, name string) *storeRule {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, r := range h.rules {
		if r.mode == "flip" && strings.HasPrefix(name, "owner/") {
			continue // there is more to damage, and each start reads them first
		}
		if r.op != op && (r.op != "any" || !slices.Contains(storeOps, op)) {
			continue
		}
		if r.skip > 0 {
			r.skip--
			continue
		}
		if r.left--; r.left <= 0 {
			h.rules = slices.Delete(slices.Clone(h.rules), i, i+1)
		}
		return r
	}
	return nil
}

// wait is the time that half an operation takes. Nothing gets past it in a process that
// is dead or stopped.
func (h *handle) wait(ctx context.Context, more time.Duration, deaf bool) error {
	h.mu.Lock()
	d := more + time.Duration(h.rng.Int64N(int64(h.latency)+1))
	h.mu.Unlock()
	var healed <-chan struct{}
	if more > 0 {
		healed = h.healed
	}
	done := ctx.Done()
	if deaf {
		done = nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-healed:
	case <-done:
		return ctx.Err()
	case <-h.dead:
		return errDead
	}
	h.running()
	if h.isDead() {
		return errDead
	}
	return nil
}

// around runs do as an operation of the process on the store. got is what it reads.
func (h *handle) around(ctx context.Context, op, name string, got *[]byte, do func() error) error {
	flip, err := h.operation(ctx, op, name, do)
	if err != nil {
		var se *checkpoint.StoreError
		if errors.As(err, &se) {
			return err
		}
		return &checkpoint.StoreError{Op: op, Object: name, Store: h.String(), Err: err}
	}
	if flip && got != nil && len(*got) > 0 {
		h.mu.Lock()
		*got = bytes.Clone(*got)
		h.damage(*got)
		h.flipped = true
		h.mu.Unlock()
	}
	return nil
}

// values are numbers in JSON text.
var values = regexp.MustCompile(`[:,\[]-?[0-9]+[],}]`)

// damage flips a bit: anywhere, or so that a digit becomes another one, of which nothing but
// a checksum tells; the last digit of a value, if there are any: most digits are those of
// hashes. It is called with h.mu held.
func (h *handle) damage(b []byte) {
	at := h.rng.IntN(len(b))
	if h.rng.IntN(2) == 0 {
		b[at] ^= 1 << h.rng.IntN(8)
		return
	}
	if vs := values.FindAllIndex(b, -1); len(vs) > 0 {
		at = vs[h.rng.IntN(len(vs))][1] - 2
	}
	for i := range b {
		if j := (at + i) % len(b); b[j] >= '0' && b[j] <= '9' {
			b[j] ^= 1
			return
		}
	}
	b[at] ^= 1 << h.rng.IntN(8)
}

// readOnly are operations of which it says nothing whether they were done.
var readOnly = []string{"get", "list", "delete", "leftovers"}

// operation runs do as an operation of the process, on the store or on something else that
// takes its time and may fail. flip says that what it read is to be damaged.
func (h *handle) operation(ctx context.Context, op, name string, do func() error) (flip bool, err error) {
	var before, after time.Duration
	deaf, unknown := false, false
	if left, hangs := h.out(); left > 0 && slices.Contains(storeOps, op) {
		if !hangs {
			// It takes a while to learn that.
			return false, cmp.Or(h.wait(ctx, 0, false), errInjected)
		}
		before = left
	}
	if r := h.match(op, name); r != nil {
		switch r.mode {
		case "fail":
			return false, errInjected
		case "unknown":
			unknown = true
		case "flip":
			flip = true
		case "hang":
			before = r.dur
		case "stall":
			before, deaf = r.dur, true
		case "slow":
			after = r.dur
		case "before":
			r.act()
		case "after":
			defer r.act()
		}
	}
	if err := h.wait(ctx, before, deaf); err != nil {
		// A process that dies in the midst may have done it.
		if errors.Is(err, errDead) {
			h.mu.Lock()
			done := h.rng.IntN(2) == 0
			h.mu.Unlock()
			if done && !slices.Contains(readOnly, op) {
				_ = do()
			}
		}
		return false, err
	}
	if err := do(); err != nil {
		return false, err
	}
	if err := h.wait(ctx, after, deaf); err != nil {
		return false, err
	}
	if unknown {
		return false, errUncertain
	}
	return flip, nil
}

// Put implements checkpoint.Store.
func (h *handle) Put(ctx context.Context, name string, data []byte) error {
	return h.around(ctx, "put", name, nil, func() error {
		err := h.Mem.Put(context.Background(), name, data)
		if err == nil && strings.HasSuffix(name, ".manifest") {
			_ = h.archive.Put(context.Background(), name, data)
		}
		return err
	})
}

// Get implements checkpoint.Store.
func (h *handle) Get(ctx context.Context, name string) (b []byte, err error) {
	err = h.around(ctx, "get", name, &b, func() error {
		b, err = h.Mem.Get(context.Background(), name)
		return err
	})
	return b, err
}

// GetRange implements checkpoint.Store.
func (h *handle) GetRange(ctx context.Context, name string, off, n int64) (b []byte, err error) {
	err = h.around(ctx, "get", name, &b, func() error {
		b, err = h.Mem.GetRange(context.Background(), name, off, n)
		return err
	})
	return b, err
}

// List implements checkpoint.Store.
func (h *handle) List(ctx context.Context, prefix string) iter.Seq2[checkpoint.Object, error] {
	return func(yield func(checkpoint.Object, error) bool) {
		if err := h.around(ctx, "list", prefix, nil, func() error { return nil }); err != nil {
			yield(checkpoint.Object{}, err)
			return
		}
		for o, err := range h.Mem.List(context.Background(), prefix) {
			if !yield(o, err) {
				return
			}
		}
	}
}

// Delete implements checkpoint.Store.
func (h *handle) Delete(ctx context.Context, name string) error {
	return h.around(ctx, "delete", name, nil, func() error { return h.Mem.Delete(context.Background(), name) })
}
