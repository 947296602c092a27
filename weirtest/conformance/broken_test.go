package conformance

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/sink/kafka"
)

// recorder is a test of which it is asked whether it failed.
type recorder struct {
	testing.TB
	ctx      context.Context
	mu       sync.Mutex
	failed   []string
	cleanups []func()
}

func (r *recorder) Helper()                      {}
func (r *recorder) Failed() bool                 { r.mu.Lock(); defer r.mu.Unlock(); return len(r.failed) > 0 }
func (r *recorder) Context() context.Context     { return r.ctx }
func (r *recorder) Log(...any)                   {}
func (r *recorder) Logf(string, ...any)          {}
func (r *recorder) Error(args ...any)            { r.note(fmt.Sprint(args...)) }
func (r *recorder) Errorf(f string, args ...any) { r.note(fmt.Sprintf(f, args...)) }
func (r *recorder) Fatal(args ...any)            { r.note(fmt.Sprint(args...)); runtime.Goexit() }
func (r *recorder) Fatalf(f string, args ...any) { r.note(fmt.Sprintf(f, args...)); runtime.Goexit() }
func (r *recorder) Cleanup(f func())             { r.cleanups = append(r.cleanups, f) }
func (r *recorder) note(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = append(r.failed, text)
}

// failures runs the rules and returns what those said that failed, by name.
func failures(t *testing.T, rules []rule) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, r := range rules {
		ctx, cancel := context.WithCancel(t.Context())
		rec := &recorder{ctx: ctx}
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() {
				if p := recover(); p != nil {
					rec.note(fmt.Sprintf("panic: %v", p))
				}
			}()
			r.check(rec)
		}()
		<-done
		cancel()
		done = make(chan struct{})
		go func() {
			defer close(done)
			for _, f := range slices.Backward(rec.cleanups) {
				f()
			}
		}()
		<-done
		if len(rec.failed) > 0 {
			found[r.name] = rec.failed[0]
		}
	}
	return found
}

// control is an implementation that breaks the rule of that name.
type control struct {
	rule  string
	rules []rule
}

// every checks that each control is found by its rule, that each rule has a control, and
// that what is right passes all of them.
func every(t *testing.T, right []rule, controls []control) {
	t.Helper()
	for name, text := range failures(t, right) {
		t.Errorf("rule %s finds in what is right: %s", name, text)
	}
	was := patience
	patience = time.Second // some of what is broken never returns
	defer func() { patience = was }()
	broken := map[string]bool{}
	for _, c := range controls {
		broken[c.rule] = true
		found := failures(t, slices.DeleteFunc(c.rules, func(r rule) bool { return r.name != c.rule }))
		if found[c.rule] == "" {
			t.Errorf("rule %s does not find what breaks it", c.rule)
		} else if testing.Verbose() {
			t.Logf("%s: %.200s", c.rule, found[c.rule])
		}
	}
	for _, r := range right {
		if !broken[r.name] {
			t.Errorf("rule %s has nothing that breaks it", r.name)
		}
	}
}

// text is a right codec of strings, or one with a mistake.
type text struct{ broken string }

func (c text) Name() string {
	if c.broken == "NameAndVersionAreFit" {
		return ""
	}
	return "text"
}
func (text) Version() int { return 3 }

var (
	cache     = struct{ last []byte }{}
	flip      int
	undefined = struct {
		sync.Mutex
		buf []byte
	}{}
)

func (c text) Append(dst []byte, v string) ([]byte, error) {
	switch c.broken {
	case "AppendKeepsWhatIsInFront":
		return append([]byte(nil), v...), nil
	case "AppendKeepsNoReference":
		if cache.last != nil {
			return append(dst, cache.last[:min(len(cache.last), len(v))]...), nil
		}
		at := len(dst)
		dst = append(dst, v...)
		cache.last = dst[at:]
		return dst, nil
	case "EqualKeysHaveEqualBytes":
		flip++
		return append(append(dst, v...), " "[:flip%2]...), nil
	case "DifferentKeysHaveDifferentBytes":
		v = strings.ToLower(v)
	case "EncodingsSortAsValuesDo":
		return append(append(dst, byte(255-len(v))), v...), nil
	case "SeveralGoroutinesMayUseIt":
		undefined.Lock()
		undefined.buf = append(undefined.buf[:0], v...)
		undefined.Unlock()
		runtime.Gosched()
		undefined.Lock()
		defer undefined.Unlock()
		return append(dst, undefined.buf...), nil
	}
	return append(dst, v...), nil
}

func (c text) Decode(b []byte) (string, error) {
	switch c.broken {
	case "DecodeReturnsWhatWasAppended":
		return strings.TrimRight(string(b), "!"), nil
	case "DecodeChangesNothing":
		s := string(b)
		clear(b)
		return s, nil
	case "ValuesAliasBytesOnlyOfACloner":
		return unsafe.String(unsafe.SliceData(b), len(b)), nil
	case "GarbageGivesAValueOrAnError":
		if len(b) > 0 && b[0] > 0xf0 {
			panic("no such text")
		}
	case "EqualKeysHaveEqualBytes":
		return strings.TrimSuffix(string(b), " "), nil
	case "EncodingsSortAsValuesDo":
		if len(b) == 0 {
			return "", errors.New("too short")
		}
		return string(b[1:]), nil
	}
	return string(b), nil
}

func (c text) DecodeVersion(version int, b []byte) (string, error) {
	switch {
	case c.broken == "AnUnknownVersionIsRefused":
		return string(b), nil
	case version == 2 && c.broken == "OldVersionsAreRead":
		return string(b), nil
	case version == 2 && c.broken == "old values alias": // those that are in upper case already
		return strings.ToUpper(unsafe.String(unsafe.SliceData(b), len(b))), nil
	case version == 2 && c.broken == "old bytes change":
		copy(b, bytes.ToUpper(b))
		return string(b), nil
	case version == 2:
		return strings.ToUpper(string(b)), nil
	}
	return "", errors.New("unknown")
}

// ordered is a codec that has another encoding for maps.
type ordered struct {
	text
	broken string
}

func (c ordered) AppendOrdered(dst []byte, v string) ([]byte, error) {
	switch c.broken {
	case "AppendOrderedKeepsWhatIsInFront":
		return append([]byte(nil), v...), nil
	case "AppendOrderedKeepsNoReference":
		return text{"AppendKeepsNoReference"}.Append(dst, v)
	case "SeveralGoroutinesMayUseTheOrderedEncoding":
		return text{"SeveralGoroutinesMayUseIt"}.Append(dst, v)
	case "EqualKeysHaveEqualOrderedBytes":
		return text{"EqualKeysHaveEqualBytes"}.Append(dst, v)
	}
	return append(dst, v...), nil
}

func (c ordered) DecodeOrdered(b []byte) (string, error) {
	switch c.broken {
	case "DecodeOrderedReturnsWhatWasAppended":
		return strings.TrimRight(string(b), "!"), nil
	case "DecodeOrderedChangesNothing":
		return text{"DecodeChangesNothing"}.Decode(b)
	case "EqualKeysHaveEqualOrderedBytes":
		return strings.TrimSuffix(string(b), " "), nil
	case "OrderedValuesAliasBytesOnlyOfACloner":
		return unsafe.String(unsafe.SliceData(b), len(b)), nil
	case "OrderedGarbageGivesAValueOrAnError":
		return string(b[:max(1, len(b))]), nil
	}
	return string(b), nil
}

func TestEachRuleForCodecsFindsWhatBreaksIt(t *testing.T) {
	suite := func(c codec.Codec[string]) []rule {
		cache.last, flip = nil, 0
		return Codec[string]{
			Codec: c, Values: []string{"", "a", "A", "many!", "ö", "zz"}, Key: true, Compare: cmp.Compare[string],
			Old: []Encoded[string]{{2, []byte("old"), "OLD"}, {2, []byte("LOUD"), "LOUD"}},
		}.rules()
	}
	right := suite(ordered{})
	var controls []control
	for _, broken := range []string{"old values alias", "old bytes change"} {
		controls = append(controls, control{"OldVersionsAreRead", suite(text{broken})})
	}
	for _, r := range right {
		if strings.Contains(r.name, "Ordered") {
			controls = append(controls, control{r.name, suite(ordered{broken: r.name})})
		} else {
			controls = append(controls, control{r.name, suite(text{r.name})})
		}
	}
	every(t, right, controls)
	if found := failures(t, suite(text{})); len(found) > 0 {
		t.Errorf("a codec that is right: %q", found)
	}
	a, b := "a", "b"
	found := failures(t, slices.DeleteFunc(Codec[*string]{Codec: &one{}, Values: []*string{&a, &b}}.rules(), func(r rule) bool { return r.name != "DecodeReturnsWhatWasAppended" }))
	if !strings.Contains(found["DecodeReturnsWhatWasAppended"], "share no memory") {
		t.Errorf("a codec that always decodes into the same value: %q", found)
	}
	if found := failures(t, Codec[string]{Values: samples}.rules()); !strings.Contains(found["NameAndVersionAreFit"], "codec for string is nil") {
		t.Errorf("no codec: %q", found)
	}
}

// one is a codec that always decodes into the same value.
type one struct{ last string }

func (*one) Name() string { return "one" }
func (*one) Version() int { return 1 }

func (*one) Append(dst []byte, v *string) ([]byte, error) { return append(dst, *v...), nil }

func (c *one) Decode(b []byte) (*string, error) {
	c.last = string(b)
	return &c.last, nil
}

// store is a store with a mistake.
type store struct {
	checkpoint.Store
	broken string
	mu     sync.Mutex
	shared map[string][]byte
	taken  map[string]bool
}

// half puts a part of an object, and the rest of it later.
func (s *store) half(ctx context.Context, name string, data []byte) error {
	if err := s.Store.Put(ctx, name, data[:len(data)/2]); err != nil {
		return err
	}
	time.Sleep(50 * time.Millisecond) // who looks gets the processor meanwhile
	if s.broken == "a part stays" && ctx.Err() != nil {
		return &checkpoint.StoreError{Op: "put", Object: name, Store: s.String(), Err: ctx.Err()}
	}
	ctx = context.WithoutCancel(ctx)
	_ = s.Store.Delete(ctx, name)
	return s.Store.Put(ctx, name, data)
}

func (s *store) Put(ctx context.Context, name string, data []byte) error {
	switch s.broken {
	case "AnObjectIsReadAsItWasPut":
		return s.Store.Put(ctx, name, bytes.TrimRight(data, "\xff"))
	case "AnObjectIsNeverOverwritten", "OnePutOfANameWins", "PutsOfDifferentNamesAtOnce":
		if s.broken == "PutsOfDifferentNamesAtOnce" {
			if !s.mu.TryLock() {
				return errors.New("busy")
			}
			time.Sleep(time.Millisecond)
			defer s.mu.Unlock()
			return s.Store.Put(ctx, name, data)
		}
		err := s.Store.Put(ctx, name, data)
		if errors.Is(err, checkpoint.ErrExists) {
			_ = s.Store.Delete(ctx, name)
			return s.Store.Put(ctx, name, data)
		}
		return err
	case "APartOfAnObjectIsNeverSeen", "a part stays":
		if len(data) > 1000 {
			return s.half(ctx, name, data)
		}
	case "NamesAreTakenAsTheyAre":
		if at, err := url.PathUnescape(name); err == nil {
			name = at
		}
	case "lower case":
		name = strings.ToLower(name)
	case "OnePutOfANameWinsAmongProcesses":
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.taken[name] {
			s.taken[name] = true
			_ = s.Store.Delete(ctx, name)
		}
	case "looks and puts":
		if _, err := s.Get(ctx, name); errors.Is(err, checkpoint.ErrNotFound) {
			runtime.Gosched()
			_ = s.Store.Delete(ctx, name)
		}
	case "DataIsNotShared":
		s.shared[name] = data
	case "NamesOutsideTheStoreAreRefused":
		name = strings.Trim(strings.ReplaceAll(name, "..", "up"), "/.")
	case "NothingHappensOnceTheContextIsDone":
		return s.Store.Put(context.WithoutCancel(ctx), name, data)
	case "ErrorsNameTheOperationObjectAndTheStore":
		if err := s.Store.Put(ctx, name, data); errors.Is(err, checkpoint.ErrExists) {
			return checkpoint.ErrExists
		} else if err != nil {
			return errors.New("failed")
		}
		return nil
	}
	return s.Store.Put(ctx, name, data)
}

func (s *store) Get(ctx context.Context, name string) ([]byte, error) {
	if b, ok := s.shared[name]; ok {
		return b, nil
	}
	b, err := s.Store.Get(ctx, name)
	if s.broken == "WhatIsMissingIsNotFound" && errors.Is(err, checkpoint.ErrNotFound) {
		return nil, nil
	}
	return b, err
}

func (s *store) GetRange(ctx context.Context, name string, off, n int64) ([]byte, error) {
	if s.broken == "one reader" {
		if !s.mu.TryLock() {
			return nil, errors.New("busy")
		}
		defer s.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	b, err := s.Store.GetRange(ctx, name, off, n)
	if s.broken == "RangesAreOfTheObject" && errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, nil
	}
	return b, err
}

func (s *store) List(ctx context.Context, prefix string) iter.Seq2[checkpoint.Object, error] {
	if s.broken == "ListIsByNameAndByPrefix" {
		return s.Store.List(ctx, "")
	}
	return func(yield func(checkpoint.Object, error) bool) {
		n := 0
		for o, err := range s.Store.List(ctx, prefix) {
			switch s.broken {
			case "AListOfManyObjectsIsComplete": // it is the first page
				if n++; n > 1000 {
					return
				}
			case "AllOperationsAtOnce": // it lags behind
				if time.Since(o.Modified) < time.Second {
					return
				}
			case "modified now":
				o.Modified = time.Now()
			case "never modified":
				if prefix == "" {
					o.Modified = time.Time{}
				}
			case "a bare error":
				if err != nil {
					err = ctx.Err()
				}
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

func (s *store) Delete(ctx context.Context, name string) error {
	switch s.broken {
	case "DeleteTakesWhatIsThereAndWhatIsNot":
		if _, err := s.Store.Get(ctx, name); err != nil {
			return err
		}
	case "ProbeAndClaimWork":
		return nil // the probe's object stays
	}
	return s.Store.Delete(ctx, name)
}

func TestEachRuleForStoresFindsWhatBreaksIt(t *testing.T) {
	suite := func(broken string) []rule {
		return Store{
			Open: func(testing.TB) checkpoint.Store {
				return &store{Store: checkpoint.NewMem(), broken: broken, shared: map[string][]byte{}, taken: map[string]bool{}}
			},
			Reopen: func(_ testing.TB, s checkpoint.Store) checkpoint.Store {
				again := &store{Store: s.(*store).Store, broken: broken, taken: map[string]bool{}}
				if broken == "AnotherProcessFindsWhatIsThere" {
					again.Store = checkpoint.NewMem()
				}
				return again
			},
		}.rules()
	}
	var controls []control
	for _, r := range suite("") {
		controls = append(controls, control{r.name, suite(r.name)})
	}
	for broken, rule := range map[string]string{
		"a part stays":   "APartOfAnObjectIsNeverSeen",
		"looks and puts": "OnePutOfANameWins",
		"lower case":     "NamesAreTakenAsTheyAre",
		"one reader":     "AllOperationsAtOnce",
		"modified now":   "ListIsByNameAndByPrefix",
		"never modified": "ListIsByNameAndByPrefix",
		"a bare error":   "ErrorsNameTheOperationObjectAndTheStore",
	} {
		controls = append(controls, control{rule, suite(broken)})
	}
	every(t, suite(""), controls)
}

// table is a receiver in memory: values by name, so a replay changes nothing.
type table struct {
	mu     sync.Mutex
	flush  sync.Mutex
	values map[string]int
}

// upsert is a sink that writes to a table, right or with a mistake.
type upsert struct {
	to     *table
	broken string
}

func (s upsert) Check() error {
	if s.broken == "NothingIsWrittenByItself" {
		s.to.put("check")
	}
	return nil
}

func (s upsert) String() string {
	if s.broken == "TheDescriptionIsFit" {
		return " "
	}
	return "a table"
}

func (t *table) put(v string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.values[v] = 1
}

func (s upsert) Open(env sink.Env) (sink.Writer[string], error) {
	return &upsertWriter{upsert: s, env: env}, nil
}

type upsertWriter struct {
	upsert
	env  sink.Env
	open []string
}

func (w *upsertWriter) Write(v string) error {
	w.open = append(w.open, v)
	return nil
}

func (w *upsertWriter) Flush(ctx context.Context) error {
	switch {
	case w.broken == "WhatIsFlushedIsThere" && len(w.open) > 0:
		w.open = w.open[1:]
	case w.broken == "AnEmptyFlushDoesNothing" && len(w.open) == 0:
		w.to.put("empty")
	case w.broken == "WritersOfSeveralSubtasks" && w.env.Subtask() > 0:
		w.open = nil
	case w.broken == "AFlushEndsWithTheIncarnation" && ctx.Err() != nil:
		select {}
	case w.broken == "no error when the context has ended" && ctx.Err() != nil:
		return nil
	case w.broken == "WritersOfSeveralSubtasksAtOnce":
		if !w.to.flush.TryLock() {
			return errors.New("busy")
		}
		defer w.to.flush.Unlock()
		time.Sleep(time.Millisecond)
	}
	for _, v := range w.open {
		if w.broken == "AReplayEndsInTheSame" {
			w.to.mu.Lock()
			w.to.values[v]++
			w.to.mu.Unlock()
			continue
		}
		w.to.put(v)
	}
	w.open = nil
	return nil
}

// records is a sink that writes to a topic, with a mistake.
type records struct{ broken string }

func (records) Check() error     { return nil }
func (records) String() string   { return "a topic" }
func (records) Topics() []string { return []string{"out"} }

func (s records) Open(env sink.Env) (sink.Writer[string], error) {
	return &recordWriter{records: s, env: env}, nil
}

type recordWriter struct {
	records
	env  sink.Env
	used kgo.Record
	kept string
}

func (w *recordWriter) Write(v string) error {
	r := &kgo.Record{Topic: "out", Value: []byte(v)}
	switch w.broken {
	case "TopicsAreNamed":
		r.Topic = "elsewhere"
	case "RecordsAreNotTouchedAfterwards":
		w.used = *r
		r = &w.used
	case "RecordsKeepTheirOrder":
		if w.kept == "" {
			w.kept = v
			return nil
		}
		w.env.Output().Produce(r)
		r = &kgo.Record{Topic: "out", Value: []byte(w.kept)}
		w.kept = ""
	}
	w.env.Output().Produce(r)
	return nil
}

var samples = []string{"a", "b", "c", "d", "e", "f"}

func TestEachRuleForSinksFindsWhatBreaksIt(t *testing.T) {
	suite := func(broken string) []rule {
		return Sink[string]{Values: samples, New: func(testing.TB) Receiver[string] {
			to := &table{values: map[string]int{}}
			want := func(vs []string) any {
				m := map[string]int{}
				for _, v := range vs {
					m[v] = 1
				}
				return m
			}
			contents := func() any {
				to.mu.Lock()
				defer to.mu.Unlock()
				m := map[string]int{}
				for k, v := range to.values {
					m[k] = v
				}
				return m
			}
			return Receiver[string]{Sink: func() sink.Sink[string] { return upsert{to, broken} }, Contents: contents, Want: want}
		}}.rules()
	}
	topic := func(s sink.Sink[string]) []rule {
		return Sink[string]{Values: samples, New: func(testing.TB) Receiver[string] {
			return Receiver[string]{Sink: func() sink.Sink[string] { return s }}
		}}.rules()
	}
	var controls []control
	for _, r := range suite("") {
		switch r.name {
		case "TopicsAreNamed", "RecordsAreNotTouchedAfterwards", "RecordsKeepTheirOrder":
			controls = append(controls, control{r.name, topic(records{r.name})})
		default:
			controls = append(controls, control{r.name, suite(r.name)})
		}
	}
	controls = append(controls, control{"AFlushEndsWithTheIncarnation", suite("no error when the context has ended")},
		control{"TheDescriptionIsFit", topic(upsert{to: &table{values: map[string]int{}}})}) // nothing of it would be checked
	every(t, suite(""), controls)
	for name, text := range failures(t, topic(records{})) {
		t.Errorf("rule %s finds in a right sink of a topic: %s", name, text)
	}
	for name, text := range failures(t, topic(kafka.Values("out", kafka.NoKey, codec.String))) {
		t.Errorf("rule %s finds in kafka.Values: %s", name, text)
	}
}
