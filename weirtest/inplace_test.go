package weirtest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/weirtest"
)

// onWords is a topology whose handler sees words, under the key "k".
func onWords(setup func(s *weir.Setup) func(word string) error) func(*weir.App) {
	return func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		out := weir.Process(weir.KeyBy(in, "by", func(string) string { return "k" }, codec.String), "op", func(s *weir.Setup) weir.Handler[string, string, string] {
			handle := setup(s)
			return weir.OnRecord(func(_ *weir.Context[string, string], w string) error { return handle(w) })
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
}

type tally = map[string]int

// A value that a handler changes in place and does not set is in a checkpoint or is not, as
// it happens. The kit says so after the record.
func TestWhatIsChangedInPlaceAndNotSetEndsTheApp(t *testing.T) {
	words := codec.JSON[[]string]()
	for name, c := range map[string]struct {
		topology func(*weir.App)
		want     []string
	}{
		"value": {onWords(func(s *weir.Setup) func(string) error {
			h := state.Value(s, "tally", codec.JSON[tally]())
			return func(w string) error {
				m := h.Get()
				if m == nil {
					h.Set(tally{w: 1})
					return nil
				}
				m[w]++
				return nil
			}
		}), []string{`state "tally" of key k`, `it was {"a":1} and is {"a":2}`}},
		"value whose reading moves its expiry": {onWords(func(s *weir.Setup) func(string) error {
			h := state.Value(s, "words", words, state.TTL(10*time.Minute, state.OnRead))
			return func(w string) error {
				if ws := h.Get(); ws != nil {
					ws[0] = "changed"
				} else {
					h.Set([]string{w})
				}
				return nil
			}
		}), []string{`state "words" of key k`, `it was ["a"] and is ["changed"]`}},
		"behind a pointer": {onWords(func(s *weir.Setup) func(string) error {
			h := state.Value(s, "boxed", codec.JSON[struct{ N *int }]())
			return func(string) error {
				v := h.Get()
				if v.N == nil {
					v.N = new(int)
					h.Set(v)
				} else {
					*v.N++
				}
				return nil
			}
		}), []string{`state "boxed" of key k`, `it was {"N":0} and is {"N":1}`}},
		"value after it was set": {onWords(func(s *weir.Setup) func(string) error {
			h := state.Value(s, "tally", codec.JSON[tally]())
			m := tally{}
			return func(w string) error {
				h.Set(m)
				if m[w]++; m[w] == 1 {
					h.Set(m)
				}
				return nil
			}
		}), []string{`state "tally" of key k`}},
		"value that is skipped": {onWords(func(s *weir.Setup) func(string) error {
			h := state.Value(s, "words", words)
			return func(w string) error {
				ws := h.Get()
				if ws == nil {
					h.Set([]string{w})
					return nil
				}
				ws[0] = "changed"
				return weir.Skip(errors.New("no"))
			}
		}), []string{`state "words" of key k`, `it was ["a"] and is ["changed"]`}},
		"map": {onWords(func(s *weir.Setup) func(string) error {
			h := state.Map(s, "by-word", codec.String, words)
			return func(w string) error {
				if ws := h.Get(w); ws != nil {
					ws[0] = "changed"
				} else {
					h.Put(w, []string{w})
				}
				return nil
			}
		}), []string{`state "by-word" of key k`}},
		"map in a loop": {onWords(func(s *weir.Setup) func(string) error {
			h := state.Map(s, "by-word", codec.String, words)
			return func(w string) error {
				for _, ws := range h.All() {
					ws[0] = "changed"
				}
				h.Put("other", nil)
				h.Put(w, []string{w})
				h.Delete("other")
				return nil
			}
		}), nil}, // it is put afterwards
		"another entry of a map": {onWords(func(s *weir.Setup) func(string) error {
			h := state.Map(s, "by-word", codec.String, words)
			n := 0
			return func(w string) error {
				for _, ws := range h.Backward() {
					ws[0] = "changed"
				}
				n++
				h.Put(fmt.Sprint(n), []string{w})
				return nil
			}
		}), []string{`state "by-word" of key k`, `it was ["a"] and is ["changed"]`}},
		"list": {onWords(func(s *weir.Setup) func(string) error {
			h := state.List(s, "lists", words)
			return func(w string) error {
				h.Append([]string{w})
				if h.Len() == 2 {
					ws, _ := h.At(0)
					ws[0] = "changed"
				}
				return nil
			}
		}), []string{`state "lists" of key k`, `it was ["a"] and is ["changed"]`}},
		"list in a loop": {onWords(func(s *weir.Setup) func(string) error {
			h := state.List(s, "lists", words)
			return func(w string) error {
				for _, ws := range h.All() {
					ws[0] = "changed"
				}
				h.Append([]string{w})
				return nil
			}
		}), []string{`state "lists" of key k`, `it was ["a"] and is ["changed"]`}},
		"argument of Append": {onWords(func(s *weir.Setup) func(string) error {
			h := state.List(s, "lists", words)
			return func(w string) error {
				ws := []string{w}
				h.Append(ws)
				if h.Len() == 2 {
					ws[0] = "changed"
				}
				return nil
			}
		}), []string{`state "lists" of key k`, `it was ["a"] and is ["changed"]`}},
		"accumulator": {onWords(func(s *weir.Setup) func(string) error {
			h := state.Aggregating(s, "acc", state.Aggregator[string, []string, []string]{
				Zero:   func() []string { return nil },
				Add:    func(acc []string, w string) []string { return append(acc, w+fmt.Sprint(9-len(acc))) },
				Result: func(acc []string) []string { slices.Sort(acc); return acc },
				Codec:  words,
			})
			return func(w string) error {
				h.Add(w)
				h.Get()
				return nil
			}
		}), []string{`state "acc" of key k`, `it was ["a9","a8"] and is ["a8","a9"]`}},
		"reduced": {onWords(func(s *weir.Setup) func(string) error {
			h := state.Reducing(s, "reduced", func(acc, v []string) []string { return append(acc, v...) }, words)
			return func(w string) error {
				h.Add([]string{w})
				if ws := h.Get(); len(ws) == 2 {
					ws[0] = "changed"
				}
				return nil
			}
		}), []string{`state "reduced" of key k`}},
		"weir.Aggregate": {func(app *weir.App) {
			in := weir.From(app, "in", source.Values("in", codec.String))
			out := weir.Aggregate(weir.KeyBy(in, "by", func(string) string { return "k" }, codec.String), "op", weir.Aggregator[string, []string, []string]{
				Zero:   func() []string { return nil },
				Add:    func(acc []string, w string) ([]string, error) { return append(acc, w+fmt.Sprint(9-len(acc))), nil },
				Result: func(acc []string) []string { slices.Sort(acc); return acc },
				Codec:  words,
			})
			weir.To(out, "out", kafka.Sink("out", codec.String, words))
		}, []string{`state "acc" of key k`, `it was ["a9","a8"] and is ["a8","a9"]`}},
		"broadcast": {func(app *weir.App) {
			in := weir.From(app, "in", source.Values("in", codec.String))
			rules := weir.Broadcast(weir.From(app, "rules", source.Values("rules", codec.String)))
			out := weir.Process(weir.KeyBy(in, "by", func(string) string { return "k" }, codec.String), "op", func(s *weir.Setup) weir.Handler[string, string, string] {
				h := state.Broadcast(s, "table", codec.Unit, words)
				rules.On(s, func(r string) error {
					h.Put(codec.Nothing, []string{r})
					return nil
				})
				return weir.OnRecord(func(_ *weir.Context[string, string], w string) error {
					if ws := h.Get(codec.Nothing); ws != nil {
						ws[0] = "changed"
					}
					return nil
				})
			})
			weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
		}, []string{`state "table":`, `it was ["rule"] and is ["changed"]`}},
	} {
		t.Run(name, func(t *testing.T) {
			h := weirtest.New(t, c.topology)
			in := weirtest.In[string](h, "in")
			if name == "broadcast" {
				weirtest.In[string](h, "rules").Send("rule")
			} else {
				in.Send("a")
				h.Checkpoint()
				h.Advance(time.Minute)
			}
			if c.want == nil {
				in.Send("a")
				return
			}
			err := h.Fails(func() { in.Send("a") })
			var changed *state.ChangedError
			if !errors.As(err, &changed) || changed.Operator != "op" {
				t.Fatalf("the app ended with %v", err)
			}
			for _, w := range append(c.want, `operator "op"`, "Set or Put what you change") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error lacks %q: %v", w, err)
				}
			}
		})
	}
}

// What the rules allow is no failure: to change what was read and set it, to change a copy,
// to remove what was changed, and a codec that encodes equal values in several ways.
func TestWhatIsChangedInPlaceAndSetIsRight(t *testing.T) {
	shuffled := codec.Func("shuffled", 1, func(dst []byte, m tally) ([]byte, error) {
		words := make([]string, 0, len(m))
		for w, n := range m {
			words = append(words, fmt.Sprintf("%s=%d", w, n))
		}
		rand.Shuffle(len(words), func(i, j int) { words[i], words[j] = words[j], words[i] })
		b, err := json.Marshal(words)
		return append(dst, b...), err
	}, func(b []byte) (tally, error) {
		m := tally{}
		var words []string
		err := json.NewDecoder(bytes.NewReader(b)).Decode(&words)
		for _, w := range words {
			var n int
			word, count, _ := strings.Cut(w, "=")
			if _, err := fmt.Sscan(count, &n); err != nil {
				return nil, err
			}
			m[word] = n
		}
		return m, err
	})
	h := weirtest.New(t, onWords(func(s *weir.Setup) func(string) error {
		value := state.Value(s, "value", shuffled)
		brief := state.Value(s, "brief", shuffled, state.TTL(time.Minute))
		byWord := state.Map(s, "map", codec.String, shuffled)
		list := state.List(s, "list", shuffled)
		return func(w string) error {
			m := value.Get()
			if m == nil {
				m = tally{"x": 1, "y": 2, "z": 3}
			}
			m[w]++
			value.Set(m)
			value.Get()

			c := byWord.Get(w)
			if c == nil {
				c = tally{}
			}
			c[w]++
			byWord.Put(w, c)
			for k, c := range byWord.All() {
				c["loop"]++
				byWord.Put(k, c)
			}

			brief.Set(tally{w: 1})
			gone := brief.Get()
			gone[w]++
			brief.Clear()

			list.Append(tally{w: 1})
			first, _ := list.At(0)
			first[w]++
			if list.Len() > 2 {
				list.RemoveFirst(1)
			} else {
				list.Set(0, first)
			}
			return nil
		}
	}), weir.Parallelism(2))
	in := weirtest.In[string](h, "in")
	for range 20 {
		in.Send("a", "b")
		h.Checkpoint()
	}
	h.Crash()
	if m, _ := weirtest.Value[tally](h, "op", "value", "k"); m["a"] != 20 || m["z"] != 3 {
		t.Errorf("state holds %v", m)
	}
}
