package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/tidwall/btree"

	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/state/segment"
)

// Names of the timer states. An operator has one of each at most.
const (
	EventTimersName      = "event-timers"
	ProcessingTimersName = "processing-timers"
)

// Timers is a handle to the timers of one operator that follow one clock. Like any
// handle it belongs to the current key: each key has its own timers. Timers are state:
// they are part of checkpoints and move with their keys.
type Timers struct {
	operator string
	domain   segment.Domain
	id       uint16
	keys     slots // nil while declarations are only collected

	// live are the timers that are set; gone are those that are not, of which a segment
	// may hold that they are. With a backing, live has every timer before the horizon,
	// and of those behind it what is not committed yet.
	live, gone *btree.BTreeG[timer]
	count      [][]uint32 // by slot: its timers in live and gone

	changed [2][]timer // by generation; only time and slot count
	gen     uint8      // to which changes go; the other one is frozen
	walked  int        // how many of the frozen ones are encoded

	first int64 // the earliest in live, if known
	known bool

	due   []dueTimer // of one time, in order
	dueAt int64      // that time
	fired int        // how many of them were looked at
	arena []byte     // their keys
	last  bool       // the last firing is under way: what is set now stays

	// passed are timers that were not after the floor of their key when they were set or
	// found: they are due, unless they are not in live any more.
	passed *btree.BTreeG[timer] // nil: there was none
	sought bool                 // the backing was asked for them

	// With a backing only. All timers of a key-group before its cursor are in memory;
	// horizon is the least cursor.
	cursors []int64
	horizon int64
	written []writtenTimers // on their way to the backing, oldest first
	window  int             // timers of the backing to have in memory, about
}

// timer is one timer of a key.
type timer struct {
	ms    int64 // milliseconds since 1970
	slot  uint32
	flags uint8
	cut   uint16 // low bits of the last checkpoint that it was encoded for
}

// Flags of a timer. One that was changed in generation g has timerDirty<<g until it is
// encoded.
const (
	timerStored uint8 = 1 << iota // a segment may hold it, so deleting needs a tombstone
	timerPinned                   // encoded for a checkpoint that is not in the backing
	timerHeld                     // set in the last firing
	timerDirty
	_
	timerUnread // set although a segment that was not read may hold it

	timerBusy = timerDirty | timerDirty<<1 | timerPinned
)

// dueTimer is a timer with the place of its encoded key in the arena.
type dueTimer struct {
	slot       uint32
	begin, end int
}

// writtenTimers are the timers that were encoded for a checkpoint.
type writtenTimers struct {
	checkpoint int64
	timers     []timer
}

// How much of a backing's timers is in memory.
const (
	windowTimers   = 1 << 14 // of one state on one subtask, about
	minGroupTimers = 16      // read of a key-group at once, at least
	bytesPerTimer  = 16 * 3 / 2
	noTime         = math.MaxInt64
	timeBytes      = 8
	timerVersion   = 0 // a timer has no value
)

// Timer is a timer that fires.
type Timer struct {
	// At is the time for which it was set, to the millisecond.
	At time.Time
	// EventTime tells that it was set with [EventTimers], not with [ProcessingTimers].
	EventTime bool
}

// EventTimers declares timers that fire when the watermark has reached their time: when
// no record up to then is expected any more.
func EventTimers(s Setup) *Timers { return newTimers(s.StateScope(), segment.EventTime) }

// ProcessingTimers declares timers that fire when the wall clock has reached their time.
func ProcessingTimers(s Setup) *Timers { return newTimers(s.StateScope(), segment.ProcessingTime) }

func newTimers(scope *Scope, d segment.Domain) *Timers {
	t := &Timers{operator: scope.operator, domain: d, live: newTimerTree(), gone: newTimerTree(), horizon: noTime, window: windowTimers}
	scope.add(t)
	return t
}

func newTimerTree() *btree.BTreeG[timer] {
	return btree.NewBTreeGOptions(func(a, b timer) bool {
		return a.ms < b.ms || a.ms == b.ms && a.slot < b.slot
	}, btree.Options{NoLocks: true})
}

// Timers lists the timers that were declared, in the order of their declaration.
func (s *Scope) Timers() []*Timers {
	var ts []*Timers
	for _, c := range s.columns {
		if t, ok := c.(*Timers); ok {
			ts = append(ts, t)
		}
	}
	return ts
}

// Set sets a timer of the current key. A time that has passed fires at once after the
// handler; by the wall clock, one that had when the batch of records at hand was begun. A
// key has one timer for each time: to set it again changes nothing. Times count to the
// millisecond and are rounded up, so that no timer fires early.
func (t *Timers) Set(at time.Time) {
	slot, _ := t.keys.slot(true)
	it := timer{ms: millis(at), slot: slot}
	if _, ok := t.live.Get(it); ok {
		return
	}
	if was, ok := t.gone.Delete(it); ok {
		it = was
		t.writeFrozen(&it, false)
	} else {
		*t.countOf(slot)++
		if t.beyond(it) {
			it.flags = timerStored | timerUnread // perhaps
		}
	}
	if t.last {
		it.flags |= timerHeld
	}
	t.mark(&it)
	t.live.Set(it)
	t.first = min(t.first, it.ms)
	if due := t.pass(it) || it.ms <= t.keys.time(t.domain); due && !t.last {
		t.keys.passing()
	}
}

// pass notes that a timer is due by the floor of its key, if it is.
func (t *Timers) pass(it timer) (due bool) {
	if t.domain != segment.EventTime || it.ms > t.keys.floorOf(it.slot) {
		return false
	}
	if t.passed == nil {
		t.passed = newTimerTree()
	}
	t.passed.Set(timer{ms: it.ms, slot: it.slot})
	return true
}

// Delete removes a timer of the current key, if it is set.
func (t *Timers) Delete(at time.Time) {
	slot, ok := t.keys.slot(false)
	if !ok {
		return
	}
	it := timer{ms: millis(at), slot: slot}
	if was, ok := t.live.Get(it); ok {
		t.remove(was)
		return
	}
	if !t.beyond(it) {
		return
	}
	if _, ok := t.gone.Get(it); ok {
		return
	}
	it.flags = timerStored // perhaps
	*t.countOf(slot)++
	t.mark(&it)
	t.gone.Set(it)
}

// millis rounds up to a millisecond since 1970.
func millis(at time.Time) int64 {
	ms := at.UnixMilli()
	if at.Nanosecond()%int(time.Millisecond) != 0 {
		ms++
	}
	return min(ms, NoTimer-1)
}

// remove takes a timer out of live.
func (t *Timers) remove(it timer) {
	t.writeFrozen(&it, true)
	t.live.Delete(it)
	if it.ms == t.first {
		t.known = false
	}
	if it.flags&(timerStored|timerPinned) == 0 {
		t.forget(it.slot) // no segment ever heard of it
		return
	}
	it.flags &^= timerHeld | timerUnread
	t.mark(&it)
	t.gone.Set(it)
}

// forget is called when a timer left live or gone for good.
func (t *Timers) forget(slot uint32) {
	if n := t.countOf(slot); *n > 1 {
		*n--
		return
	}
	*t.countOf(slot) = 0
	t.keys.emptied(slot)
}

// mark notes that a timer changed.
func (t *Timers) mark(it *timer) {
	if d := timerDirty << t.gen; it.flags&d == 0 {
		it.flags |= d
		t.changed[t.gen] = append(t.changed[t.gen], timer{ms: it.ms, slot: it.slot})
	}
}

// writeFrozen encodes a timer, which is set or not, if it is frozen and not encoded.
func (t *Timers) writeFrozen(it *timer, set bool) {
	frozen := timerDirty << (t.gen ^ 1)
	if it.flags&frozen == 0 {
		return
	}
	it.flags &^= frozen
	if !set && it.flags&timerStored == 0 {
		return
	}
	if err := t.write(*it, set); err != nil {
		t.keys.fail(err)
		return
	}
	if it.flags &^= timerStored; set {
		it.flags |= timerStored
	}
	if t.keys.backing() != nil {
		w := &t.written[len(t.written)-1]
		it.flags, it.cut = it.flags|timerPinned, uint16(w.checkpoint)
		w.timers = append(w.timers, timer{ms: it.ms, slot: it.slot})
	}
}

func (t *Timers) write(it timer, set bool) error {
	b, kg := t.keys.builder(), t.keys.keyGroup(it.slot)
	var dst []byte
	if set {
		dst = b.BeginPut(kg, t.id)
	} else {
		dst = b.BeginDelete(kg, t.id)
	}
	dst, err := t.keys.appendKey(appendTime(dst, it.ms), it.slot)
	if err != nil {
		return t.errorf("key: %w", err)
	}
	if set {
		b.ValueDone(segment.AppendHeader(b.KeyDone(dst), segment.Header{Version: timerVersion}))
	} else {
		b.DeleteDone(dst)
	}
	t.keys.frozen(it.slot)
	return nil
}

// appendTime appends a time so that earlier ones sort before later ones.
func appendTime(dst []byte, ms int64) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(ms)^1<<63)
}

func cutTime(b []byte) int64 { return int64(binary.BigEndian.Uint64(b) ^ 1<<63) }

func (t *Timers) errorf(format string, args ...any) error {
	return fmt.Errorf("operator %q: state %q: %w", t.operator, t.describe().Name, fmt.Errorf(format, args...))
}

// EventTime tells which of the two clocks the timers follow.
func (t *Timers) EventTime() bool { return t.domain == segment.EventTime }

// NoTimer is the earliest timer where there is none.
const NoTimer = noTime

// Earliest returns the time of the earliest timer, in milliseconds since 1970, or
// [NoTimer].
func (t *Timers) Earliest() int64 {
	if !t.known {
		t.first, t.known = t.next(math.MinInt64, noTime), true
	}
	return t.first
}

// Fire takes out the timers of all keys up to and including the time now, in
// milliseconds since 1970, and calls f for each while its key is the current one: in
// the order of their times, and at one time in that of the encoded keys. What f sets in
// the past fires as well. It ends early when f returns false. It returns how many timers
// fired.
func (t *Timers) Fire(now int64, f func(Timer) bool) (fired int) {
	if t.Earliest() > now {
		return 0
	}
	return t.fire(now, f)
}

// FireLast fires every timer that is set, as Fire does, because time has come to its
// end. What f sets is not fired but stays: handlers that set a timer whenever one fires
// would never be done.
func (t *Timers) FireLast(f func(Timer) bool) (fired int) {
	t.last = true
	defer func() { t.last = false }()
	return t.fire(noTime-1, f)
}

func (t *Timers) fire(upTo int64, f func(Timer) bool) (fired int) {
	for from := int64(math.MinInt64); ; {
		ms := t.next(from, upTo)
		if ms > upTo {
			return fired
		}
		if t.dueAt != ms || t.fired == len(t.due) {
			t.collect(t.live, ms)
		}
		t.first = ms
		for t.fired < len(t.due) {
			if t.first < ms && !t.last {
				break // something earlier was set
			}
			d := t.due[t.fired]
			t.fired++
			it, ok := t.live.Get(timer{ms: ms, slot: d.slot})
			if !ok {
				continue
			}
			t.remove(it)
			t.keys.use(d.slot)
			fired++
			if !f(Timer{At: time.UnixMilli(ms), EventTime: t.EventTime()}) {
				return fired
			}
		}
		if t.last {
			from = ms + 1
		}
	}
}

// FirePassed is Fire for timers that are due by the floor of their key, see
// [Keyspace.SetFloors].
func (t *Timers) FirePassed(f func(Timer) bool) (fired int) {
	if t.keys.backing() != nil && !t.sought {
		t.sought = true
		if err := t.seekPassed(); err != nil {
			t.keys.fail(err)
			return 0
		}
	}
	for t.passed != nil && t.passed.Len() > 0 {
		first, _ := t.passed.Min()
		ms := first.ms
		t.collect(t.passed, ms)
		t.fired = len(t.due) // Fire collects its own
		for _, d := range t.due {
			if first, _ := t.passed.Min(); first.ms < ms {
				break // something earlier was set
			}
			t.passed.Delete(timer{ms: ms, slot: d.slot})
			it, ok := t.live.Get(timer{ms: ms, slot: d.slot})
			if !ok || ms > t.keys.floorOf(d.slot) {
				continue
			}
			t.remove(it)
			t.keys.use(d.slot)
			fired++
			if !f(Timer{At: time.UnixMilli(ms), EventTime: true}) {
				return fired
			}
		}
	}
	return fired
}

// seekPassed finds those that only the backing has. They are few: as a rule a timer fired
// when event time came to it.
func (t *Timers) seekPassed() error {
	lo, hi := t.keys.keyGroups()
	iter, err := t.keys.backing().Iter(segment.AppendKey(nil, uint16(lo), 0, nil), segment.AppendKey(nil, uint16(hi), 0, nil))
	if err != nil {
		return t.unreadable(err)
	}
	defer iter.Close()
	var prefix []byte
	for kg := lo; kg < hi; kg++ {
		prefix = segment.AppendKey(prefix[:0], uint16(kg), t.id, nil)
		for ok := iter.SeekGE(prefix); ok && bytes.HasPrefix(iter.Key(), prefix); ok = iter.Next() {
			userKey := iter.Key()[len(prefix):]
			ms, err := t.timeOf(userKey)
			if err != nil {
				return err
			}
			if ms > t.keys.floor(uint16(kg)) {
				break
			}
			slot, err := t.keys.slotOf(userKey[timeBytes:], uint16(kg))
			if err != nil {
				return err
			}
			t.found(timer{ms: ms, slot: slot})
		}
		if err := iter.Err(); err != nil {
			return t.unreadable(err)
		}
	}
	t.known = false
	return nil
}

// next returns the earliest time, not before from, for which a timer is set, or
// something above upTo.
func (t *Timers) next(from, upTo int64) int64 {
	for {
		ms := int64(noTime)
		t.live.Ascend(timer{ms: from}, func(it timer) bool {
			if t.last && it.flags&timerHeld != 0 {
				return true
			}
			ms = it.ms
			return false
		})
		if ms < t.horizon || t.horizon > upTo || t.horizon == noTime {
			return ms
		}
		if !t.refill() {
			return noTime
		}
	}
}

// collect lists the timers of one time, among those of a tree, in the order of their keys.
func (t *Timers) collect(among *btree.BTreeG[timer], ms int64) {
	t.due, t.arena, t.dueAt, t.fired = t.due[:0], t.arena[:0], ms, 0
	among.Ascend(timer{ms: ms}, func(it timer) bool {
		if it.ms != ms {
			return false
		}
		if !t.last || it.flags&timerHeld == 0 {
			t.due = append(t.due, dueTimer{slot: it.slot})
		}
		return true
	})
	if len(t.due) == 1 {
		return
	}
	for i := range t.due {
		d := &t.due[i]
		d.begin = len(t.arena)
		b, err := t.keys.appendKey(t.arena, d.slot)
		if err != nil {
			t.keys.fail(t.errorf("key: %w", err))
			return
		}
		t.arena, d.end = b, len(b)
	}
	slices.SortFunc(t.due, func(a, b dueTimer) int {
		return bytes.Compare(t.arena[a.begin:a.end], t.arena[b.begin:b.end])
	})
}

// beyond tells whether the backing may hold a timer that is not in memory.
func (t *Timers) beyond(it timer) bool {
	if t.keys.backing() == nil {
		return false
	}
	lo, _ := t.keys.keyGroups()
	return t.cursors == nil || it.ms >= t.cursors[int(t.keys.keyGroup(it.slot))-lo]
}

// refill reads the next timers of those key-groups whose cursor is the horizon. It
// returns false if the backing can't be read.
func (t *Timers) refill() bool {
	lo, hi := t.keys.keyGroups()
	if t.cursors == nil {
		t.cursors = make([]int64, hi-lo)
		for i := range t.cursors {
			t.cursors[i] = math.MinInt64
		}
		t.horizon = math.MinInt64
	}
	if err := t.read(lo, hi); err != nil {
		t.keys.fail(err)
		return false
	}
	t.horizon = slices.Min(t.cursors)
	return true
}

func (t *Timers) read(lo, hi int) error {
	iter, err := t.keys.backing().Iter(segment.AppendKey(nil, uint16(lo), 0, nil), segment.AppendKey(nil, uint16(hi), 0, nil))
	if err != nil {
		return t.unreadable(err)
	}
	defer iter.Close()
	want := max(minGroupTimers, t.window/(hi-lo))
	var prefix, seek []byte
	for i := range t.cursors {
		if t.cursors[i] != t.horizon {
			continue
		}
		kg := uint16(lo + i)
		prefix = segment.AppendKey(prefix[:0], kg, t.id, nil)
		if seek = append(seek[:0], prefix...); t.cursors[i] != math.MinInt64 { // else from what is too short for a time
			seek = appendTime(seek, t.cursors[i])
		}
		cursor, last, n := int64(noTime), int64(0), 0
		for ok := iter.SeekGE(seek); ok && bytes.HasPrefix(iter.Key(), prefix); ok = iter.Next() {
			userKey := iter.Key()[len(prefix):]
			ms, err := t.timeOf(userKey)
			if err != nil {
				return err
			}
			// A time is read to its end, so that its timers can be put in order.
			if n >= want && ms > last {
				cursor = ms
				break
			}
			slot, err := t.keys.slotOf(userKey[timeBytes:], kg)
			if err != nil {
				return err
			}
			t.found(timer{ms: ms, slot: slot})
			last = ms
			n++
		}
		if err := iter.Err(); err != nil {
			return t.unreadable(err)
		}
		t.cursors[i] = cursor
	}
	return nil
}

func (t *Timers) unreadable(err error) error {
	return &ReadError{Operator: t.operator, State: t.describe().Name, Err: err}
}

// timeOf returns the time in the key under which a timer is stored.
func (t *Timers) timeOf(userKey []byte) (ms int64, err error) {
	if len(userKey) >= timeBytes {
		ms = cutTime(userKey)
	}
	if len(userKey) < timeBytes || ms == NoTimer {
		return 0, t.errorf("%x is not the key of a timer", userKey)
	}
	return ms, nil
}

// found adds a timer that a segment holds, unless something newer is known about it.
func (t *Timers) found(it timer) {
	if was, ok := t.live.Get(it); ok {
		flags := was.flags
		if was.flags |= timerStored; flags&timerUnread != 0 {
			was.flags &^= timerHeld | timerUnread // it was set before, and setting it again changed nothing
		}
		if was.flags != flags {
			t.live.Set(was)
		}
		return
	}
	if _, ok := t.gone.Get(it); ok {
		return
	}
	it.flags = timerStored
	*t.countOf(it.slot)++
	t.live.Set(it)
	t.pass(it)
}

// settle forgets what had to be remembered until a checkpoint was in the backing.
func (t *Timers) settle() {
	committed, unsettled := t.keys.committed(), len(t.changed[0])+len(t.changed[1])
	for len(t.written) > 0 && t.written[0].checkpoint <= committed {
		w := t.written[0]
		t.written = slices.Delete(t.written, 0, 1)
		for _, k := range w.timers {
			if it, ok := t.gone.Get(k); ok {
				if it.unpin(w.checkpoint); it.flags&timerBusy == 0 {
					t.gone.Delete(it)
					t.forget(it.slot)
				} else {
					t.gone.Set(it)
				}
			} else if it, ok := t.live.Get(k); ok {
				it.unpin(w.checkpoint)
				t.live.Set(it)
			}
		}
	}
	for _, w := range t.written {
		unsettled += len(w.timers)
	}
	if t.live.Len() > 2*t.window+unsettled {
		t.shrink()
	}
}

func (it *timer) unpin(checkpoint int64) {
	if it.cut == uint16(checkpoint) {
		it.flags &^= timerPinned
	}
}

// shrink drops the later timers that the backing has.
func (t *Timers) shrink() {
	it, _ := t.live.GetAt(t.window)
	end := it.ms + 1
	var drop []timer
	t.live.Ascend(timer{ms: end}, func(it timer) bool {
		if it.flags&timerBusy == 0 {
			drop = append(drop, it)
		}
		return true
	})
	for _, it := range drop {
		t.live.Delete(it)
		t.forget(it.slot)
	}
	if t.passed != nil && t.passed.Len() > 0 {
		t.sought = false // some of them may have been dropped
	}
	for i := range t.cursors {
		t.cursors[i] = min(t.cursors[i], end)
	}
	t.horizon = min(t.horizon, end)
}

func (t *Timers) describe() Descriptor {
	name := EventTimersName
	if t.domain == segment.ProcessingTime {
		name = ProcessingTimersName
	}
	return Descriptor{Operator: t.operator, Name: name, Kind: KindTimers}
}

func (t *Timers) attach(ks slots, id uint16) {
	t.keys, t.id = ks, id
	if ks.backing() != nil {
		t.horizon = math.MinInt64
	}
}

func (t *Timers) grow(n uint32) {
	for uint32(len(t.count))<<chunkBits < n {
		t.count = append(t.count, make([]uint32, chunkSize))
	}
}

func (t *Timers) countOf(slot uint32) *uint32 { return &t.count[slot>>chunkBits][slot&chunkMask] }

func (t *Timers) unknown(uint32)          {}
func (t *Timers) used(slot uint32) bool   { return *t.countOf(slot) > 0 }
func (t *Timers) busy(slot uint32) bool   { return *t.countOf(slot) > 0 }
func (t *Timers) drop(uint32)             {}
func (t *Timers) touch(slot uint32) uint8 { return uint8(*t.countOf(slot)) }
func (t *Timers) sweep()                  {}
func (t *Timers) cost() int               { return 4 }

func (t *Timers) split(userKey []byte) (key, rest []byte, ok bool) {
	if len(userKey) < timeBytes {
		return nil, nil, false
	}
	return userKey[timeBytes:], userKey[:timeBytes], true
}

func (t *Timers) restore(slot uint32, at, value []byte) error {
	if _, _, err := segment.CutHeader(value); err != nil {
		return t.errorf("%w", err)
	}
	ms := cutTime(at)
	if ms == NoTimer {
		return t.errorf("%x is not the time of a timer", at)
	}
	if guard.Broken(guard.Timers) {
		return nil
	}
	t.found(timer{ms: ms, slot: slot})
	t.known = false
	return nil
}

func (t *Timers) pending() bool { return len(t.changed[t.gen]) > 0 }

func (t *Timers) cut() {
	t.gen ^= 1
	if t.keys.backing() != nil {
		t.settle()
		t.written = append(t.written, writtenTimers{checkpoint: t.keys.checkpoint()})
	}
}

func (t *Timers) encode(n int) (int, error) {
	list := t.changed[t.gen^1]
	for done := range n {
		if t.walked == len(list) {
			if t.walked = 0; cap(list) > 4*len(list)+chunkSize {
				list = nil // a burst is over
			}
			t.changed[t.gen^1] = list[:0]
			return done, t.keys.failed()
		}
		k := list[t.walked]
		t.walked++
		if it, ok := t.gone.Get(k); ok {
			if t.writeFrozen(&it, false); it.flags&timerBusy == 0 {
				t.gone.Delete(it)
				t.forget(it.slot)
			} else {
				t.gone.Set(it)
			}
		} else if it, ok := t.live.Get(k); ok && it.flags&(timerDirty<<(t.gen^1)) != 0 {
			t.writeFrozen(&it, true)
			t.live.Set(it)
		}
	}
	return n, t.keys.failed()
}

func (t *Timers) extra() int64 {
	n := t.live.Len() + t.gone.Len() + cap(t.changed[0]) + cap(t.changed[1])
	for _, w := range t.written {
		n += len(w.timers)
	}
	return int64(n) * bytesPerTimer
}
