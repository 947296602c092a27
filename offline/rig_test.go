package offline

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
)

const (
	testGroups = 16
	watermark  = 5_000
)

// wallClock is what time it is for entries that expire in processing time.
var wallClock = time.UnixMilli(100_000)

var testStates = []checkpoint.StateInfo{
	{ID: 1, Operator: "balance", Name: "total", Kind: "value", KeyCodec: "string", ValueCodec: "int64", ValueVersion: 1},
	{ID: 2, Operator: "balance", Name: "by-currency", Kind: "map", KeyCodec: "string", SubCodec: "int32", ValueCodec: "json", ValueVersion: 1},
	{ID: 3, Operator: "balance", Name: "history", Kind: "list", KeyCodec: "string", ValueCodec: "bytes", ValueVersion: 1},
	{ID: 4, Operator: "balance", Name: "event-timers", Kind: "timers", KeyCodec: "string"},
	{ID: 5, Operator: "rules", Name: "rates", Kind: "broadcast", SubCodec: "string", ValueCodec: "float64", ValueVersion: 1},
	{ID: 6, Operator: "gone", Name: "old", Kind: "dropped", KeyCodec: "string", ValueCodec: "string", ValueVersion: 1},
	{ID: 7, Operator: "custom", Name: "blob", Kind: "value", KeyCodec: "string", ValueCodec: "mine", ValueVersion: 3},
}

var testEventTime = checkpoint.EventTime{
	Partitions: map[offsets.Partition]checkpoint.PartitionTime{{Topic: "payments"}: {Watermark: watermark + 1, Idle: true}},
	Stages:     map[string]int64{"balance": watermark, "by-user": watermark + 1},
	KeyGroups:  []checkpoint.KeyGroupTime{{Stage: "by-user", MinKG: 1, MaxKG: 2, Watermark: watermark + 5}},
	Firing:     map[string]int64{"balance": watermark - 1, "by-user": watermark + 2},
}

// app writes checkpoints as a running app does.
type app struct {
	t     *testing.T
	store checkpoint.Store
	w     *checkpoint.Writer
	b     segment.Builder
	id    int64
	// inFlight is what the next checkpoint holds in flight.
	inFlight []checkpoint.InFlightData
}

func newApp(t *testing.T, store checkpoint.Store, keyGroups int) *app {
	t.Helper()
	a := &app{t: t, store: store}
	var err error
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	a.w, err = checkpoint.NewWriter(checkpoint.Config{
		Store: store, App: "payments", Instance: "a", KeyGroups: keyGroups, Incarnation: 0xa1b2c3d4, InlineLimit: -1, Retain: 10,
		TopicIDs: map[string]checkpoint.TopicID{"payments": {1}},
		Now:      func() time.Time { now = now.Add(time.Second); return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.w.Close(context.Background()) })
	return a
}

func (a *app) put(state uint16, kg int, userKey []byte, h segment.Header, value []byte) {
	dst := append(a.b.BeginPut(uint16(kg), state), userKey...)
	a.b.ValueDone(append(segment.AppendHeader(a.b.KeyDone(dst), h), value...))
}

func group(key string) int { return keygroup.Of([]byte(key), testGroups) }

var forever = segment.Header{Version: 1}

func (a *app) total(key string, v int64) { a.totalUntil(key, v, forever) }

func (a *app) totalUntil(key string, v int64, h segment.Header) {
	a.put(1, group(key), []byte(key), h, binary.BigEndian.AppendUint64(nil, uint64(v)))
}

func (a *app) noTotal(key string) {
	a.b.DeleteDone(append(a.b.BeginDelete(uint16(group(key)), 1), key...))
}

func (a *app) currency(key string, currency int32, json string) {
	sub, err := appendOrdered(codec.Int32, nil, currency)
	if err != nil {
		a.t.Fatal(err)
	}
	a.put(2, group(key), append(segment.AppendEscaped(nil, []byte(key)), sub...), forever, []byte(json))
}

func (a *app) history(key string, index uint64, v string) {
	a.put(3, group(key), appendElement(nil, []byte(key), index), forever, []byte(v))
}

func (a *app) timer(key string, at int64) {
	a.put(4, group(key), appendTimer(nil, at, []byte(key)), forever, nil)
}

func (a *app) rate(key string, v float64) {
	b, _ := codec.Float64.Append(nil, v)
	a.put(5, 0, []byte(key), forever, b)
}

// checkpoint persists and commits.
func (a *app) checkpoint() {
	a.t.Helper()
	a.id++
	ref, _, err := a.w.Persist(a.t.Context(), checkpoint.Snapshot{
		Checkpoint: a.id, Watermark: watermark, EventTime: testEventTime, States: testStates, Runs: []segment.Run{a.b.Finish()},
		Positions: map[offsets.Partition]offsets.Position{{Topic: "payments", Partition: 0}: {Offset: 100 * a.id, LeaderEpoch: 1}},
		Logs:      []checkpoint.LogPart{{Operator: "out", Bytes: fmt.Appendf(nil, "log %d", a.id)}},
		InFlight:  a.inFlight,
	})
	if err != nil {
		a.t.Fatal(err)
	}
	a.inFlight = nil
	a.w.Committed(ref.Checkpoint)
}

// sample fills a store with three checkpoints of every kind of state.
func sample(t *testing.T) (checkpoint.Store, *app) {
	t.Helper()
	store := checkpoint.NewMem()
	a := newApp(t, store, testGroups)
	for n := range 50 {
		a.total(fmt.Sprintf("user-%02d", n), int64(n))
	}
	a.total("alice", 100)
	a.total("bob", 50)
	a.currency("alice", 10, `{"amount":1}`)
	a.currency("alice", -3, `{"amount":2}`)
	a.currency("ali", 7, `{"amount":3}`)
	a.history("alice", 0, "a")
	a.rate("EUR", 1.5)
	a.checkpoint()
	a.total("alice", 300)
	a.noTotal("bob")
	a.history("alice", 1, "b\x00")
	a.timer("alice", -5)
	a.timer("alice", 1000)
	a.totalUntil("short", 1, segment.Header{Version: 1, Domain: segment.ProcessingTime, Expires: wallClock.UnixMilli()})
	a.totalUntil("long", 2, segment.Header{Version: 1, Domain: segment.ProcessingTime, Expires: wallClock.UnixMilli() + 1})
	a.totalUntil("early", 3, segment.Header{Version: 1, Domain: segment.EventTime, Expires: watermark})
	a.checkpoint()
	a.put(6, 3, []byte("x"), forever, []byte("y"))
	a.put(7, group("k"), []byte("k"), segment.Header{Version: 3}, []byte{1, 2})
	a.total("carol", -7)
	a.checkpoint()
	return store, a
}

func openLatest(t *testing.T, store checkpoint.Store) *Snapshot {
	t.Helper()
	s, err := Open(t.Context(), store, Latest)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openRef(t *testing.T, store checkpoint.Store, which string) offsets.ManifestRef {
	t.Helper()
	s, err := Open(t.Context(), store, which)
	if err != nil {
		t.Fatal(err)
	}
	_, ref := s.Manifest()
	return ref
}

// counting counts the bytes that are read, and the objects written.
type counting struct {
	checkpoint.Store
	mu    sync.Mutex
	bytes int64
	puts  int
}

func (c *counting) Put(ctx context.Context, name string, data []byte) error {
	c.puts++
	return c.Store.Put(ctx, name, data)
}

func (c *counting) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes += int64(n)
}

func (c *counting) Get(ctx context.Context, name string) ([]byte, error) {
	b, err := c.Store.Get(ctx, name)
	c.add(len(b))
	return b, err
}

func (c *counting) GetRange(ctx context.Context, name string, off, n int64) ([]byte, error) {
	b, err := c.Store.GetRange(ctx, name, off, n)
	c.add(len(b))
	return b, err
}
