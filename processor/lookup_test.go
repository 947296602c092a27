package processor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/clock"
	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/offsets"
)

// story is what comes out of an asker, in order. It implements [outgoing] for what is
// behind it.
type story struct {
	told   []string
	room   int // values until the edge is crowded
	sub    *Subtask
	wanted int // refills until there is room
}

func (s *story) flush()           {}
func (s *story) barrier(id int64) { s.told = append(s.told, fmt.Sprint("barrier ", id)) }
func (s *story) time(m mark)      { s.told = append(s.told, fmt.Sprint("time ", m.watermark)) }

func (s *story) refill() bool {
	if s.wanted > 0 {
		s.wanted--
		return false
	}
	s.room = 10
	return true
}

// office is a source of look-ups whose calls wait until the test answers them.
type office struct {
	calls chan call
}

// call is one that waits. An answer is sent to done.
type call struct {
	keys []string
	done chan error
}

func (c office) fetch(ctx context.Context, keys []string, answers []lookup.Answer[int]) error {
	k := call{slices.Clone(keys), make(chan error)}
	c.calls <- k
	select {
	case err := <-k.done:
		for i, key := range keys {
			answers[i] = lookup.Answer[int]{Value: len(key), Found: key != "nobody"}
			if key == "bad" {
				answers[i] = lookup.Answer[int]{Err: errors.New("a bad key")}
			}
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// desk is an asker run by the test's goroutine, on a subtask that is not crowded by itself.
type desk struct {
	t      *testing.T
	sub    *Subtask
	take   func(string)
	story  *story
	office office
	clock  *clock.Manual
	offset int64
}

func newDesk(t *testing.T, opts ...lookup.Option) *desk {
	return newDeskWith(t, office{make(chan call, 1000)}, opts...)
}

func newDeskWith(t *testing.T, o office, opts ...lookup.Option) *desk {
	t.Helper()
	d := &desk{t: t, story: &story{room: math.MaxInt}, office: o, clock: clock.NewManual(time.Unix(1000, 0))}
	ctx, cancel := context.WithCancel(context.Background())
	inc := newIncarnation(ctx, &Config{App: "app", Parallelism: 1, KeyGroups: 16, Unaligned: true, Clock: d.clock, Skip: map[SkipRecord]bool{}}, &Plan{}, nil, nil)
	inc.gate = newGate(1, 0)
	d.sub = inc.newSubtask(SourcesID, 0)
	d.story.sub = d.sub
	t.Cleanup(func() {
		inc.cancel(errors.New("over"))
		cancel()
		inc.group.Wait()
	})
	l := Lookup[string, string, int]{ID: "ask", From: lookup.Batch("the office", o.fetch), Key: func(s string) string {
		k, _, _ := strings.Cut(s, ":")
		return k
	}, How: lookup.NewSettings(opts)}
	d.take = l.Build(d.sub, func(s *Subtask, op *Operator) func(string, int, bool) {
		s.outgoing = append(s.outgoing, d.story)
		return func(a string, v int, found bool) {
			outer := op.Enter()
			if strings.HasSuffix(a, "!") {
				panic(a)
			}
			op.Leave(outer)
			d.story.told = append(d.story.told, fmt.Sprintf("%s=%d,%v@%d", a, v, found, s.raw.Offset))
			if d.story.room--; d.story.room <= 0 && s.finishing == 0 {
				s.crowded = true
			}
		}
	})
	if d.sub.err != nil {
		t.Fatal(d.sub.err)
	}
	return d
}

// in hands values to the asker as records.
func (d *desk) in(values ...string) {
	for _, v := range values {
		d.sub.raw = &kgo.Record{Topic: "in", Offset: d.offset}
		d.offset++
		d.sub.guarded(func() { d.take(v) })
	}
}

// call is the next one that the office gets.
func (d *desk) call() call {
	d.t.Helper()
	select {
	case c := <-d.office.calls:
		return c
	case <-time.After(10 * time.Second):
		d.t.Fatal("nobody asks")
		return call{}
	}
}

// callsNow are the next n calls, by their first keys.
func (d *desk) callsNow(n int) []call {
	d.t.Helper()
	var cs []call
	for range n {
		cs = append(cs, d.call())
	}
	slices.SortFunc(cs, func(a, b call) int { return strings.Compare(a.keys[0], b.keys[0]) })
	return cs
}

// answer answers a call and waits until the subtask is told.
func (d *desk) answer(c call) {
	d.t.Helper()
	for len(d.sub.wake) > 0 {
		<-d.sub.wake
	}
	c.done <- nil
	select {
	case <-d.sub.wake:
	case <-time.After(10 * time.Second):
		d.t.Fatal("the subtask is not told")
	}
	d.sub.progress(false)
}

func (d *desk) wantTold(want ...string) {
	d.t.Helper()
	if d.sub.err != nil {
		d.t.Fatal(d.sub.err)
	}
	if !slices.Equal(d.story.told, want) {
		d.t.Fatalf("told %q, want %q", d.story.told, want)
	}
}

func TestAnswersThatComeOutOfOrderLeaveInOrder(t *testing.T) {
	d := newDesk(t, lookup.BatchSize(2), lookup.InFlight(2))
	d.in("a:0", "bb:1", "ccc:2", "a:3", "nobody:4")
	calls := d.callsNow(2)
	d.answer(calls[1])
	d.wantTold()
	d.answer(calls[0])
	d.wantTold("a:0=1,true@0", "bb:1=2,true@1", "ccc:2=3,true@2", "a:3=1,true@3")
	if len(d.office.calls) > 0 {
		t.Error("a batch was sent that is not full")
	}
	d.sub.progress(true)
	d.answer(d.call())
	d.wantTold("a:0=1,true@0", "bb:1=2,true@1", "ccc:2=3,true@2", "a:3=1,true@3", "nobody:4=6,false@4")
}

func TestNoMoreCallsAreUnderWayThanAllowed(t *testing.T) {
	d := newDesk(t, lookup.BatchSize(1), lookup.InFlight(3))
	d.in("a", "b", "c", "d", "e")
	calls := d.callsNow(3)
	d.sub.idle()
	if len(d.office.calls) > 0 {
		t.Fatal("a fourth call is under way")
	}
	d.answer(calls[1])
	d.wantTold()
	fourth := d.call() // in place of the one that was answered, although its record still waits
	if fourth.keys[0] != "d" {
		t.Errorf("got %q", fourth.keys)
	}
	d.answer(calls[0])
	d.wantTold("a=1,true@0", "b=1,true@1")
}

func TestASubtaskThatWouldWaitAsksWhatItHas(t *testing.T) {
	d := newDesk(t)
	d.in("a", "b")
	d.sub.progress(false)
	if len(d.office.calls) > 0 {
		t.Fatal("asked in the midst of a slice")
	}
	d.sub.idle()
	c := d.call()
	if !slices.Equal(c.keys, []string{"a", "b"}) {
		t.Errorf("got %q", c.keys)
	}
	// While something is under way, the end of a slice is no reason to ask; to wait is.
	d.in("c")
	d.sub.progress(true)
	if len(d.office.calls) > 0 {
		t.Error("a small batch is asked although a call is under way")
	}
	d.sub.idle()
	d.call()
}

func TestWatermarkStaysBehindWhatWaits(t *testing.T) {
	d := newDesk(t, lookup.BatchSize(2))
	d.sub.time(mark{watermark: 1})
	d.in("a", "bb")
	d.sub.time(mark{watermark: 2})
	d.sub.time(mark{watermark: 3})
	d.in("ccc")
	d.sub.time(mark{watermark: 4})
	d.wantTold("time 1")
	d.answer(d.call())
	d.wantTold("time 1", "a=1,true@0", "bb=2,true@1", "time 3")
	d.sub.idle()
	d.answer(d.call())
	d.wantTold("time 1", "a=1,true@0", "bb=2,true@1", "time 3", "ccc=3,true@2", "time 4")
}

func TestBarrierWaitsForWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, lookup.BatchSize(2), lookup.InFlight(1))
		d.in("a", "bb", "ccc", "dddd", "eeeee")
		d.sub.time(mark{watermark: 7})
		d.story.room = 1 // and for nothing else
		done := make(chan struct{})
		go func() {
			d.sub.barrier(1)
			close(done)
		}()
		for range 3 {
			c := <-d.office.calls
			synctest.Wait()
			select {
			case <-done:
				t.Fatal("the barrier did not wait")
			default:
			}
			c.done <- nil
		}
		<-done
		d.wantTold("a=1,true@0", "bb=2,true@1", "ccc=3,true@2", "dddd=4,true@3", "eeeee=5,true@4", "time 7", "barrier 1")
	})
}

func TestRecordsThatShareAKeyShareACall(t *testing.T) {
	for name, opts := range map[string][]lookup.Option{"without a cache": nil, "with a cache": {lookup.Cache(10, time.Minute)}} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, append(opts, lookup.BatchSize(3))...)
			d.in("a:0", "a:1", "b:2", "a:3", "c:4")
			c := d.call()
			if !slices.Equal(c.keys, []string{"a", "b", "c"}) {
				t.Fatalf("asked for %q", c.keys)
			}
			d.in("a:5")
			d.sub.idle()
			// One that came after the call began may have to see what changed since.
			if shared := len(opts) > 0; shared {
				if len(d.office.calls) > 0 {
					t.Error("a key is asked for twice at once")
				}
				d.answer(c)
			} else {
				second := d.call()
				if !slices.Equal(second.keys, []string{"a"}) {
					t.Errorf("asked for %q", second.keys)
				}
				d.answer(c)
				d.answer(second)
			}
			d.wantTold("a:0=1,true@0", "a:1=1,true@1", "b:2=1,true@2", "a:3=1,true@3", "c:4=1,true@4", "a:5=1,true@5")
		})
	}
}

func TestCachedAnswersAreUsedUntilTheyAreTooOld(t *testing.T) {
	d := newDesk(t, lookup.Cache(2, time.Minute))
	ask := func(values ...string) {
		d.in(values...)
		d.sub.idle()
		d.answer(d.call())
	}
	ask("a")
	d.clock.Advance(30 * time.Second)
	ask("nobody")
	d.in("a", "nobody")
	want := []string{"a=1,true@0", "nobody=6,false@1", "a=1,true@2", "nobody=6,false@3"}
	d.wantTold(want...)
	// The age counts from the call.
	d.clock.Advance(30 * time.Second)
	d.in("nobody")
	ask("a")
	want = append(want, "nobody=6,false@4", "a=1,true@5")
	d.wantTold(want...)
	// Two fit: the one that was not used for longest goes.
	d.in("nobody")
	ask("c")
	d.in("nobody")
	ask("a")
	d.wantTold(append(want, "nobody=6,false@6", "c=1,true@7", "nobody=6,false@8", "a=1,true@9")...)
	if len(d.office.calls) > 0 {
		t.Error("somebody asked again")
	}
}

// An answer is as old as its call, not as the moment at which it came.
func TestAgeOfAnAnswerCountsFromItsCall(t *testing.T) {
	d := newDesk(t, lookup.Cache(2, time.Minute))
	d.in("a")
	d.sub.idle()
	c := d.call()
	d.clock.Advance(time.Minute)
	d.answer(c)
	d.in("a")
	d.sub.idle()
	d.call()
}

func TestCachedAnswerDoesNotOvertake(t *testing.T) {
	d := newDesk(t, lookup.Cache(10, time.Minute))
	d.in("a")
	d.sub.idle()
	d.answer(d.call())
	d.in("b", "a")
	d.wantTold("a=1,true@0")
	d.sub.idle()
	d.answer(d.call())
	d.wantTold("a=1,true@0", "b=1,true@1", "a=1,true@2")
}

func TestTooManyThatWaitHoldTheNextRecord(t *testing.T) {
	d := newDesk(t, lookup.BatchSize(2), lookup.Waiting(3))
	d.in("a", "b")
	if d.sub.crowded {
		t.Fatal("crowded too early")
	}
	d.in("c")
	if !d.sub.crowded || !d.sub.attend.Load() {
		t.Fatal("not crowded")
	}
	go d.answerAll()
	for d.sub.crowded && d.sub.err == nil { // as a subtask settles
		d.sub.refill()
	}
	if len(d.story.told) == 0 {
		t.Error("nothing has left")
	}
}

func TestRequestsThatCannotBeSentHoldTheNextRecord(t *testing.T) {
	d := newDesk(t, lookup.BatchSize(2), lookup.InFlight(2))
	for i := range 9 {
		d.in(fmt.Sprint("k", i))
		if d.sub.crowded {
			t.Fatalf("crowded by %d", i+1)
		}
	}
	d.in("k9") // two requests are under way, and a third one waits
	if !d.sub.crowded {
		t.Fatal("not crowded")
	}
	calls := d.callsNow(2)
	d.answer(calls[1])
	if d.sub.refill(); d.sub.crowded {
		t.Error("crowded, although another request is under way")
	}
}

// answerAll answers every call.
func (d *desk) answerAll() {
	for {
		select {
		case c := <-d.office.calls:
			c.done <- nil
		case <-d.sub.inc.ctx.Done():
			return
		}
	}
}

func TestOneRecordThatMakesTooManyWaitsInItsMidst(t *testing.T) {
	d := newDesk(t, lookup.BatchSize(4), lookup.Waiting(5))
	go d.answerAll()
	d.sub.raw = &kgo.Record{Topic: "in", Offset: 9}
	raw := d.sub.raw
	var want []string
	d.sub.guarded(func() {
		for i := range 100 {
			v := fmt.Sprintf("%s:%d", strings.Repeat("x", i%7), i)
			d.take(v)
			want = append(want, fmt.Sprintf("%s=%d,true@9", v, i%7))
			if waiting := len(want) - len(d.story.told); waiting >= 10 {
				t.Fatalf("%d wait", waiting)
			}
		}
	})
	if d.sub.raw != raw {
		t.Error("the current record is another one")
	}
	d.sub.barrier(1)
	d.wantTold(append(want, "barrier 1")...)
}

func TestWhatLeavesStopsWhereAnEdgeIsCrowded(t *testing.T) {
	d := newDesk(t, lookup.BatchSize(5))
	d.story.room, d.story.wanted = 2, 1
	d.in("a", "b", "c", "d", "e")
	d.answer(d.call())
	d.wantTold("a=1,true@0", "b=1,true@1")
	if d.sub.refill(); !d.sub.crowded {
		t.Fatal("not crowded, although the edge has no room")
	}
	d.wantTold("a=1,true@0", "b=1,true@1")
	if d.sub.refill(); d.sub.crowded {
		t.Fatal("crowded, although the edge has room")
	}
	d.wantTold("a=1,true@0", "b=1,true@1", "c=1,true@2", "d=1,true@3", "e=1,true@4")
}

func TestErrorOfAWaitingRecordNamesThatRecord(t *testing.T) {
	for name, c := range map[string]struct {
		value, want string
	}{
		"key":   {"bad", `operator "ask" failed on in/0 at offset 1: looking up in the office: a bad key`},
		"panic": {"b!", `operator "ask" panicked on in/0 at offset 1: b!`},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.in("a", c.value, "c")
			d.sub.idle()
			d.answer(d.call())
			if d.sub.err == nil || !strings.Contains(d.sub.err.Error(), c.want) || !isFatal(d.sub.err) {
				t.Fatalf("got %v", d.sub.err)
			}
			if !slices.Equal(d.story.told, []string{"a=1,true@0"}) {
				t.Errorf("told %q", d.story.told)
			}
		})
		// What is skipped leaves the others, also the one that is being processed.
		t.Run(name+" skipped", func(t *testing.T) {
			d := newDesk(t)
			skipped := 0
			d.sub.inc.cfg.Listener = event.Listener{Skipped: func(event.Skipped) { skipped++ }}
			d.sub.inc.cfg.Skip[SkipRecord{offsets.Partition{Topic: "in"}, 1}] = true
			d.in("a", c.value, "c")
			d.sub.idle()
			d.answer(d.call())
			d.wantTold("a=1,true@0", "c=1,true@2")
			if skipped != 1 {
				t.Errorf("%d skipped", skipped)
			}
		})
	}
}

// In virtual time: calls fail, and their repetitions wait.
func TestFailedCallsAreRepeatedForABoundedTime(t *testing.T) {
	unreachable := &Retriable{Err: errors.New("unreachable")}
	for name, c := range map[string]struct {
		err   error
		times int // it fails; 0: always
		want  string
		fatal bool
	}{
		"passes":        {err: unreachable, times: 4},
		"hangs once":    {err: nil, times: 1},
		"never passes":  {err: unreachable, want: `operator "ask": looking up in the office failed: given up after`},
		"hangs":         {want: "deadline"},
		"does not pass": {err: errors.New("who are you?"), want: "who are you?", fatal: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(t, lookup.Timeout(time.Second), lookup.GiveUpAfter(20*time.Second))
				began := time.Now()
				go func() {
					for i := 0; ; i++ {
						var k call
						select {
						case k = <-d.office.calls:
						case <-d.sub.inc.ctx.Done():
							return
						}
						switch {
						case c.times > 0 && i >= c.times:
							k.done <- nil
						case c.err != nil:
							k.done <- c.err
						}
					}
				}()
				d.in("a")
				d.sub.barrier(1)
				if c.want == "" {
					d.wantTold("a=1,true@0", "barrier 1")
					return
				}
				if d.sub.err == nil || !strings.Contains(d.sub.err.Error(), c.want) || isFatal(d.sub.err) != c.fatal {
					t.Fatalf("got %v", d.sub.err)
				}
				if slices.Contains(d.story.told, "barrier 1") {
					t.Error("the barrier went on without the record")
				}
				var le *LookupError
				if !errors.As(d.sub.err, &le) || le.Operator != "ask" {
					t.Errorf("got %#v", d.sub.err)
				}
				took := time.Since(began)
				if !c.fatal && (took < 15*time.Second || took > 21*time.Second) {
					t.Errorf("given up after %v", took)
				}
			})
		})
	}
}

// A client need not say that it gave up because the time was over. What it says of a key
// then is no reason to take the key for bad.
func TestErrorOfAKeyAfterTheTimeIsOverIsOfTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeskWith(t, office{})
		calls := 0
		l := Lookup[string, string, int]{ID: "again", From: lookup.Each("a map", func(ctx context.Context, _ string) (int, bool, error) {
			if calls++; calls == 1 {
				<-ctx.Done()
				return 0, false, errors.New("the connection is closed")
			}
			return 7, true, nil
		}), Key: func(s string) string { return s }, How: lookup.NewSettings([]lookup.Option{lookup.Timeout(time.Second)})}
		var told []int
		take := l.Build(d.sub, func(s *Subtask, _ *Operator) func(string, int, bool) {
			s.outgoing = append(s.outgoing, d.story)
			return func(_ string, v int, _ bool) { told = append(told, v) }
		})
		d.sub.raw = &kgo.Record{Topic: "in"}
		take("a")
		d.sub.barrier(1)
		if d.sub.err != nil || !slices.Equal(told, []int{7}) || calls != 2 {
			t.Fatalf("told %v after %d calls: %v", told, calls, d.sub.err)
		}
	})
}

func TestPanicOfACallStopsTheApp(t *testing.T) {
	d := newDeskWith(t, office{})
	l := Lookup[string, string, int]{ID: "again", From: lookup.Each("a map", func(context.Context, string) (int, bool, error) { panic("no map") }),
		Key: func(s string) string { return s }, How: lookup.NewSettings(nil)}
	take := l.Build(d.sub, func(*Subtask, *Operator) func(string, int, bool) { return func(string, int, bool) {} })
	d.sub.raw = &kgo.Record{Topic: "in"}
	take("a")
	d.sub.barrier(1)
	var le *LookupError
	if !errors.As(d.sub.err, &le) || !le.Panic || !isFatal(d.sub.err) || !strings.Contains(d.sub.err.Error(), "looking up in a map panicked: no map") || !strings.Contains(le.Stack, "lookup_test.go") {
		t.Fatalf("got %v", d.sub.err)
	}
}

// TestAskerAgreesWithAModel compares with a loop, for random values, answers, watermarks
// and barriers, with edges that are crowded at times.
func TestAskerAgreesWithAModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		opts := []lookup.Option{lookup.BatchSize(rapid.IntRange(1, 5).Draw(rt, "batch")), lookup.InFlight(rapid.IntRange(1, 4).Draw(rt, "in flight")), lookup.Waiting(rapid.IntRange(1, 8).Draw(rt, "waiting"))}
		if n := rapid.IntRange(0, 4).Draw(rt, "cache"); n > 0 {
			opts = append(opts, lookup.Cache(n, time.Hour))
		}
		seed, steps := rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(0, 60).Draw(rt, "steps")
		var err error
		synctest.Test(t, func(t *testing.T) { err = askAtRandom(newDesk(t, opts...), seed, steps) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

func askAtRandom(d *desk, seed uint64, steps int) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	go func() { // answers at random times
		rng := rand.New(rand.NewPCG(seed, 2))
		for {
			select {
			case c := <-d.office.calls:
				wait := time.Duration(rng.IntN(50)) * time.Millisecond
				go func() {
					time.Sleep(wait)
					select {
					case c.done <- nil:
					case <-d.sub.inc.ctx.Done():
					}
				}()
			case <-d.sub.inc.ctx.Done():
				return
			}
		}
	}()
	var want []string
	barrier := func(id int64) error {
		d.sub.barrier(id)
		want = append(want, fmt.Sprint("barrier ", id))
		if d.sub.err != nil {
			return d.sub.err
		}
		if !slices.Equal(withoutTime(d.story.told), withoutTime(want)) {
			return fmt.Errorf("told %q, want %q", d.story.told, want)
		}
		return nil
	}
	now := int64(0)
	for i := range steps {
		switch rng.IntN(10) {
		case 0:
			now++
			d.sub.time(mark{watermark: now})
			want = append(want, fmt.Sprint("time ", now))
		case 1:
			if err := barrier(int64(i + 1)); err != nil {
				return err
			}
		case 2:
			d.sub.idle()
		case 3:
			d.sub.progress(true)
		case 4:
			time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
		case 5:
			d.story.room, d.story.wanted = rng.IntN(3), rng.IntN(3)
		default:
			for d.sub.crowded && d.sub.err == nil {
				d.sub.refill()
			}
			d.sub.raw = &kgo.Record{Topic: "in", Offset: d.offset}
			for range 1 + rng.IntN(20) {
				k := strings.Repeat("k", rng.IntN(6))
				d.take(k)
				want = append(want, fmt.Sprintf("%s=%d,true@%d", k, len(k), d.offset))
			}
			d.offset++
		}
	}
	if err := barrier(1000); err != nil {
		return err
	}
	// Watermarks that follow each other may become one. None is early.
	at, seen := map[string]int{}, 0
	for _, s := range want {
		if strings.HasPrefix(s, "time") {
			at[s] = seen
		} else {
			seen++
		}
	}
	seen = 0
	for _, s := range d.story.told {
		if !strings.HasPrefix(s, "time") {
			seen++
		} else if at[s] != seen {
			return fmt.Errorf("%q comes behind %d, want %d", s, seen, at[s])
		}
	}
	return nil
}

func withoutTime(told []string) []string {
	return slices.DeleteFunc(slices.Clone(told), func(s string) bool { return strings.HasPrefix(s, "time") })
}

// TestAnswerCacheAgreesWithAModel compares with a list in order of use.
func TestAnswerCacheAgreesWithAModel(t *testing.T) {
	type entry struct {
		k     int
		v     int
		until int64
	}
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 5).Draw(t, "most")
		c := newAnswerCache[int, int](most)
		var model []entry // newest last
		now := int64(0)
		use := func(e entry) {
			model = slices.DeleteFunc(model, func(o entry) bool { return o.k == e.k })
			model = append(model, e)
			if len(model) > most {
				model = model[1:]
			}
		}
		for range rapid.IntRange(0, 100).Draw(t, "steps") {
			k := rapid.IntRange(0, 7).Draw(t, "key")
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				e := entry{k, rapid.Int().Draw(t, "value"), now + int64(rapid.IntRange(1, 10).Draw(t, "ttl"))}
				c.put(k, e.v, e.v%2 == 0, e.until)
				use(e)
			case 1:
				now += int64(rapid.IntRange(0, 3).Draw(t, "pass"))
			case 2:
				v, found, known := c.get(k, now)
				i := slices.IndexFunc(model, func(e entry) bool { return e.k == k && e.until > now })
				if known != (i >= 0) {
					t.Fatalf("key %d is known: %v", k, known)
				}
				if known {
					if e := model[i]; v != e.v || found != (e.v%2 == 0) {
						t.Fatalf("key %d is %d, %v", k, v, found)
					}
					use(model[i])
				}
			}
			if len(c.index) != len(model) || len(c.slots) > most {
				t.Fatalf("%d entries in %d slots, want %d", len(c.index), len(c.slots), len(model))
			}
		}
	})
}

func TestAnswerThatIsKeptForEverIsKept(t *testing.T) {
	d := newDesk(t, lookup.Cache(10, math.MaxInt64))
	d.in("a")
	d.sub.idle()
	d.answer(d.call())
	d.in("a")
	d.wantTold("a=1,true@0", "a=1,true@1")
}

func TestKeysThatEqualNothingDoNotPileUp(t *testing.T) {
	c := newAnswerCache[float64, int](2)
	for range 10 {
		c.put(math.NaN(), 1, true, 1)
	}
	if len(c.index)+len(c.slots) > 0 {
		t.Errorf("%d entries", len(c.index))
	}
	o := &asker[float64, float64, int]{sub: &Subtask{inc: newIncarnation(t.Context(), &Config{}, &Plan{}, nil, nil)}, spec: Lookup[float64, float64, int]{How: lookup.NewSettings(nil)},
		cache: c, flying: map[float64]place[float64, int]{}, batch: 10, most: 1, done: make(chan *request[float64, int], 1),
		client: nanClient{}}
	o.sub.wake = make(chan struct{}, 1)
	for range 3 {
		o.ask(math.NaN())
	}
	if len(o.flying) > 0 {
		t.Errorf("%d keys are under way that nobody finds", len(o.flying))
	}
	o.send(true)
	o.await(nil)
	if len(o.flying) > 0 {
		t.Errorf("%d keys are under way", len(o.flying))
	}
}

type nanClient struct{}

func (nanClient) Fetch(context.Context, []float64, []lookup.Answer[int]) error { return nil }
func (nanClient) Close() error                                                 { return nil }

func TestNothingLeavesWhenTheIncarnationEnds(t *testing.T) {
	d := newDesk(t, lookup.BatchSize(1))
	d.in("a")
	d.call().done <- nil
	<-d.sub.wake // it is answered
	failed := errors.New("something else failed")
	d.sub.inc.cancel(failed)
	d.sub.inc.over.Store(true)
	d.sub.barrier(1)
	if !errors.Is(d.sub.err, failed) || len(d.story.told) > 0 {
		t.Errorf("told %q, error %v", d.story.told, d.sub.err)
	}
}

// A key may be a piece of a fetched batch, which the cache must not hold in memory.
func TestCachedKeyIsNoPieceOfARecord(t *testing.T) {
	type name string
	var asked []name
	d := newDeskWith(t, office{})
	l := Lookup[string, name, int]{ID: "again", From: lookup.Each("a function", func(_ context.Context, k name) (int, bool, error) {
		asked = append(asked, k)
		return 1, true, nil
	}), Key: func(s string) name { return name(s[:3]) }, How: lookup.NewSettings([]lookup.Option{lookup.Cache(10, time.Hour)})}
	take := l.Build(d.sub, func(*Subtask, *Operator) func(string, int, bool) { return func(string, int, bool) {} })
	record := strings.Repeat("record", 10)
	d.sub.raw = &kgo.Record{Topic: "in"}
	take(record)
	d.sub.barrier(1)
	if len(asked) != 1 || asked[0] != "rec" {
		t.Fatalf("asked for %q", asked)
	}
	if unsafe.StringData(string(asked[0])) == unsafe.StringData(record) {
		t.Error("the key shares the memory of the record")
	}
}

func TestRingIsAQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q ring[int]
		var model []int
		for i := range rapid.IntRange(0, 200).Draw(t, "steps") {
			if rapid.IntRange(0, 2).Draw(t, "step") > 0 {
				q.push(i)
				model = append(model, i)
			} else if len(model) > 0 {
				q.pop()
				model = model[1:]
			}
			if q.len() != len(model) {
				t.Fatalf("%d items, want %d", q.len(), len(model))
			}
			if len(model) > 0 && (*q.front() != model[0] || *q.back() != model[len(model)-1]) {
				t.Fatalf("from %d to %d, want %v", *q.front(), *q.back(), model)
			}
		}
	})
}
