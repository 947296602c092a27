package statetest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
)

// upgrade is an app that ran and is about to be started again as another program.
type upgrade struct {
	brokers []string
	next    next
	last    *offline.Snapshot // where its state is
	forgot  bool              // Kafka knows nothing of it any more
}

// next is how the app starts next.
type next struct {
	store   checkpoint.Store
	backend pebble.Backend
	opts    []weir.Option
}

// startFrom makes the next start be that of an app that has committed nothing, from a
// savepoint that write writes.
func (u *upgrade) startFrom(t *testing.T, write func(to checkpoint.Store, name string) error) {
	t.Helper()
	dir, store := newDir(t)
	if err := write(store, "moved"); err != nil {
		t.Fatal(err)
	}
	if !u.forgot {
		forget(t, u.brokers)
		u.forgot = true
	}
	u.next.store = checkpoint.NewMem()
	u.next.opts = []weir.Option{weir.FromSavepoint(dir, "moved")}
	u.last = open(t, store, "moved")
}

// start starts the app as that topology over input that came meanwhile, and returns what
// it ended with. It may be called again after an error.
func (u *upgrade) start(t *testing.T, topology func(*weir.App), opts ...weir.Option) error {
	t.Helper()
	l := &life{brokers: u.brokers, topology: topology, store: u.next.store, backend: u.next.backend, opts: slices.Concat(u.next.opts, opts)}
	return l.drain(t)
}

func (u *upgrade) mustStart(t *testing.T, topology func(*weir.App), opts ...weir.Option) {
	t.Helper()
	if err := u.start(t, topology, opts...); err != nil {
		t.Fatal(err)
	}
}

func (u *upgrade) wantOut(t *testing.T, want map[string][]string) {
	t.Helper()
	if got := committed(t, u.brokers, "out"); !maps.EqualFunc(got, want, func(a, b []string) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
		t.Errorf("topic out holds %v, want %v", got, want)
	}
}

// evolve runs before over input, and calls then for what comes after it: with each
// backend, and through a checkpoint as well as through a savepoint.
func evolve(t *testing.T, before func(*weir.App), input, more []string, then func(t *testing.T, u *upgrade)) {
	t.Helper()
	for _, backend := range []string{"memory", "pebble"} {
		for _, through := range []string{"checkpoint", "savepoint"} {
			t.Run(backend+"/"+through, func(t *testing.T) {
				t.Parallel()
				brokers := broker(t, 2, "in", "out", "counts")
				var b pebble.Backend
				if backend == "pebble" {
					b = pebble.Dir(t.TempDir())
				}
				produce(t, brokers, pairs("in", input...)...)
				first := &life{brokers: brokers, topology: before, store: checkpoint.NewMem(), backend: b}
				first.mustDrain(t)
				u := &upgrade{brokers: brokers, next: next{store: first.store, backend: b}, last: open(t, first.store, offline.Latest)}
				if through == "savepoint" {
					u.startFrom(t, func(to checkpoint.Store, name string) error {
						_, err := u.last.Save(t.Context(), to, name, nil)
						return err
					})
				}
				produce(t, brokers, pairs("in", more...)...)
				then(t, u)
			})
		}
	}
}

// input is a key with a value, as all topologies here read it.
type input = weir.KV[string, string]

func read(app *weir.App) weir.Stream[input] {
	return weir.From(app, "in", source.KeyValues("in", codec.String, codec.String))
}

// keyedAs keeps one V for each key in state "v" of operator "op", and writes what step
// makes of it.
func keyedAs[K comparable, V any](key func(string) K, keys codec.Codec[K], values codec.Codec[V], step func(old V, in string) (V, string)) func(*weir.App) {
	return func(app *weir.App) {
		byKey := weir.KeyBy(read(app), "by-key", func(i input) K { return key(i.Key) }, keys)
		out := weir.Process(byKey, "op", func(s *weir.Setup) weir.Handler[K, input, input] {
			v := state.Value(s, "v", values)
			return weir.OnRecord(func(c *weir.Context[K, input], i input) error {
				now, result := step(v.Get(), i.Value)
				v.Set(now)
				c.Emit(input{Key: i.Key, Value: result})
				return nil
			})
		})
		weir.To(out, "out", kafka.Sink("out", codec.String, codec.String))
	}
}

func keyed[V any](values codec.Codec[V], step func(old V, in string) (V, string)) func(*weir.App) {
	return keyedAs(func(k string) string { return k }, codec.String, values, step)
}

// total adds up the input.
func total(old int64, in string) (int64, string) {
	n, _ := strconv.ParseInt(in, 10, 64)
	return old + n, strconv.FormatInt(old+n, 10)
}

type (
	accountV1 struct{ Balance, Limit int64 }
	accountV2 struct {
		Balance, Limit int64
		Owner          string
	}
	accountV3 struct{ Balance int64 }
)

func TestS31_FieldAddedInJSON(t *testing.T) {
	before := keyed(codec.JSON[accountV1](), func(a accountV1, in string) (accountV1, string) {
		a.Balance, _ = total(a.Balance, in)
		a.Limit = 7
		return a, fmt.Sprint(a)
	})
	after := keyed(codec.JSON[accountV2](), func(a accountV2, in string) (accountV2, string) {
		a.Balance, _ = total(a.Balance, in)
		a.Owner += "o"
		return a, fmt.Sprint(a)
	})
	evolve(t, before, []string{"a:1", "b:2"}, []string{"a:10", "c:3", "a:1"}, func(t *testing.T, u *upgrade) {
		u.mustStart(t, after)
		u.wantOut(t, map[string][]string{"a": {"{1 7}", "{11 7 o}", "{12 7 oo}"}, "b": {"{2 7}"}, "c": {"{3 0 o}"}})
	})
}

func TestS31_FieldRemovedInJSON(t *testing.T) {
	before := keyed(codec.JSON[accountV1](), func(a accountV1, in string) (accountV1, string) {
		a.Balance, _ = total(a.Balance, in)
		a.Limit = 7
		return a, fmt.Sprint(a)
	})
	after := keyed(codec.JSON[accountV3](), func(a accountV3, in string) (accountV3, string) {
		a.Balance, _ = total(a.Balance, in)
		return a, fmt.Sprint(a)
	})
	evolve(t, before, []string{"a:1", "b:2"}, []string{"a:10"}, func(t *testing.T, u *upgrade) {
		u.mustStart(t, after)
		u.wantOut(t, map[string][]string{"a": {"{1 7}", "{11}"}, "b": {"{2 7}"}})
		// What JSON does not know is gone as soon as the value is written again, and
		// still there where it was not.
		for key, want := range map[string]accountV1{"a": {11, 0}, "b": {2, 7}} {
			e, ok, err := offline.Get(t.Context(), open(t, u.next.store, offline.Latest), "op", "v", codec.String, codec.JSON[accountV1](), key)
			if err != nil || !ok || e.Value != want {
				t.Errorf("key %s: %+v, %v, %v; want %v", key, e.Value, ok, err, want)
			}
		}
	})
}

// messageType makes a message type statetest.Account as protoc would of these fields,
// all of them int64, by number.
func messageType(fields map[string]int32) protoreflect.MessageType {
	m := &descriptorpb.DescriptorProto{Name: proto.String("Account")}
	for name, number := range fields {
		m.Field = append(m.Field, &descriptorpb.FieldDescriptorProto{Name: proto.String(name), Number: proto.Int32(number),
			Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(), Type: descriptorpb.FieldDescriptorProto_TYPE_INT64.Enum()})
	}
	f, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{Name: proto.String("account.proto"), Package: proto.String("statetest"),
		Syntax: proto.String("proto3"), MessageType: []*descriptorpb.DescriptorProto{m}}, nil)
	if err != nil {
		panic(err)
	}
	return dynamicpb.NewMessageType(f.Messages().Get(0))
}

// Two releases of one message. A release is a Go type, as generated ones are, because a
// codec asks the type for its descriptor.
var (
	oldMessage = messageType(map[string]int32{"balance": 1, "credit": 2})
	newMessage = messageType(map[string]int32{"balance": 1, "owner": 3})
)

type oldAccount struct{ protoreflect.Message }
type newAccount struct{ protoreflect.Message }

func (m *oldAccount) ProtoReflect() protoreflect.Message {
	if m == nil || m.Message == nil {
		return oldReflected{oldMessage.Zero()}
	}
	return oldReflected{m.Message}
}

func (m *newAccount) ProtoReflect() protoreflect.Message {
	if m == nil || m.Message == nil {
		return newReflected{newMessage.Zero()}
	}
	return newReflected{m.Message}
}

type oldReflected struct{ protoreflect.Message }
type newReflected struct{ protoreflect.Message }

func (r oldReflected) Interface() protoreflect.ProtoMessage { return &oldAccount{r.Message} }
func (r newReflected) Interface() protoreflect.ProtoMessage { return &newAccount{r.Message} }
func (r oldReflected) New() protoreflect.Message            { return oldReflected{oldMessage.New()} }
func (r newReflected) New() protoreflect.Message            { return newReflected{newMessage.New()} }
func (r oldReflected) Type() protoreflect.MessageType       { return oldType{oldMessage} }
func (r newReflected) Type() protoreflect.MessageType       { return newType{newMessage} }

type oldType struct{ protoreflect.MessageType }
type newType struct{ protoreflect.MessageType }

func (oldType) New() protoreflect.Message { return oldReflected{oldMessage.New()} }
func (newType) New() protoreflect.Message { return newReflected{newMessage.New()} }

// add adds to a field of a message and returns what it has then.
func add(m protoreflect.Message, field protoreflect.Name, n int64) int64 {
	f := m.Descriptor().Fields().ByName(field)
	n += m.Get(f).Int()
	m.Set(f, protoreflect.ValueOfInt64(n))
	return n
}

func TestS31_FieldAddedAndRemovedInProtobuf(t *testing.T) {
	before := keyed(codec.Proto[*oldAccount](), func(old *oldAccount, in string) (*oldAccount, string) {
		m := &oldAccount{oldMessage.New()}
		proto.Merge(m, old)
		n, _ := strconv.ParseInt(in, 10, 64)
		return m, fmt.Sprint(add(m.Message, "balance", n), add(m.Message, "credit", 100))
	})
	after := keyed(codec.Proto[*newAccount](), func(old *newAccount, in string) (*newAccount, string) {
		m := &newAccount{newMessage.New()}
		proto.Merge(m, old)
		n, _ := strconv.ParseInt(in, 10, 64)
		return m, fmt.Sprint(add(m.Message, "balance", n), add(m.Message, "owner", 1))
	})
	evolve(t, before, []string{"a:1", "b:2"}, []string{"a:10", "c:5"}, func(t *testing.T, u *upgrade) {
		u.mustStart(t, after)
		u.wantOut(t, map[string][]string{"a": {"1 100", "11 1"}, "b": {"2 100"}, "c": {"5 1"}})
		// By protobuf's rules a field that a program does not know is kept by it.
		e, _, err := offline.Get(t.Context(), open(t, u.next.store, offline.Latest), "op", "v", codec.String, codec.Proto[*oldAccount](), "a")
		if err != nil {
			t.Fatal(err)
		}
		fields := oldMessage.Descriptor().Fields()
		if b, c := e.Value.Get(fields.ByName("balance")).Int(), e.Value.Get(fields.ByName("credit")).Int(); b != 11 || c != 100 {
			t.Errorf("to the old program the account is %d, %d; want 11, 100", b, c)
		}
		if _, _, n := protowire.ConsumeField(e.Value.GetUnknown()); n <= 0 {
			t.Error("to the old program no field of the account is unknown; the new one has set one")
		}
	})
}

// int64At is a codec of an int64 that has been through versions: 1 is text, 2 is JSON.
func int64At(version int) codec.Codec[int64] {
	return codec.Func("counter", version,
		func(dst []byte, v int64) ([]byte, error) {
			if version == 1 {
				return strconv.AppendInt(dst, v, 10), nil
			}
			return append(dst, fmt.Sprintf(`{"n":%d}`, v)...), nil
		},
		func(b []byte) (v int64, err error) {
			if version == 1 {
				return strconv.ParseInt(string(b), 10, 64)
			}
			var j struct{ N int64 }
			err = json.Unmarshal(b, &j)
			return j.N, err
		})
}

// migrating also reads version 1.
type migrating struct{ codec.Codec[int64] }

func (migrating) DecodeVersion(version int, b []byte) (int64, error) {
	if version != 1 {
		return 0, errors.New("unknown version")
	}
	return int64At(1).Decode(b)
}

func TestS31_ValueCodecVersionUpIsMigrated(t *testing.T) {
	evolve(t, keyed(int64At(1), total), []string{"a:1", "b:2"}, []string{"a:10"}, func(t *testing.T, u *upgrade) {
		u.mustStart(t, keyed[int64](migrating{int64At(2)}, total))
		// Values of both versions are side by side now.
		versions := map[string]int{}
		for e, err := range offline.Values(t.Context(), open(t, u.next.store, offline.Latest), "op", "v", codec.String, codec.Codec[int64](migrating{int64At(2)})) {
			if err != nil {
				t.Fatal(err)
			}
			versions[e.Key] = e.Version
		}
		if !maps.Equal(versions, map[string]int{"a": 2, "b": 1}) {
			t.Errorf("the values are of versions %v", versions)
		}
		produce(t, u.brokers, pairs("in", "a:100", "b:100")...)
		u.mustStart(t, keyed[int64](migrating{int64At(2)}, total))
		u.wantOut(t, map[string][]string{"a": {"1", "11", "111"}, "b": {"2", "102"}})
	})
}

func TestS31_ValueCodecVersionUpWithoutMigratorIsRefused(t *testing.T) {
	evolve(t, keyed(int64At(1), total), []string{"a:1", "b:2"}, []string{"a:10"}, func(t *testing.T, u *upgrade) {
		wantError(t, u.start(t, keyed(int64At(2), total)), "counter", "version 1", "op")
		u.mustStart(t, keyed[int64](migrating{int64At(2)}, total)) // nothing was spoilt
		u.wantOut(t, map[string][]string{"a": {"1", "11"}, "b": {"2"}})
	})
}

func TestS31_ValueCodecVersionDownIsRefused(t *testing.T) {
	evolve(t, keyed[int64](migrating{int64At(2)}, total), []string{"a:1"}, []string{"a:10"}, func(t *testing.T, u *upgrade) {
		wantError(t, u.start(t, keyed(int64At(1), total)), `operator "op", state "v"`, `version 2 of codec "counter"`, "knows version 1", "run the newer program")
		u.mustStart(t, keyed[int64](migrating{int64At(2)}, total))
		u.wantOut(t, map[string][]string{"a": {"1", "11"}})
	})
}

func TestS31_ValueCodecChangedIsRefused(t *testing.T) {
	evolve(t, keyed(codec.Int64, total), []string{"a:1"}, []string{"a:10"}, func(t *testing.T, u *upgrade) {
		wantError(t, u.start(t, keyed(codec.JSON[int64](), total)), `operator "op", state "v"`, `"int64"`, `"json"`)
		u.mustStart(t, keyed(codec.Int64, total))
		u.wantOut(t, map[string][]string{"a": {"1", "11"}})
	})
}

func TestS31_KeyCodecChangedIsRefused(t *testing.T) {
	evolve(t, keyed(codec.Int64, total), []string{"a:1"}, []string{"a:10"}, func(t *testing.T, u *upgrade) {
		bytesOf := func(k string) int64 { return int64(k[0]) }
		wantError(t, u.start(t, keyedAs(bytesOf, codec.Int64, codec.Int64, total)), `operator "op", state "v"`, `"string"`, `"int64"`, "keys never change type")
		u.mustStart(t, keyed(codec.Int64, total))
		u.wantOut(t, map[string][]string{"a": {"1", "11"}})
	})
}

// entries keeps a map for each key, of the input's length to how often it came.
func entries[M comparable](mapKeys codec.Codec[M], of func(int) M) func(*weir.App) {
	return func(app *weir.App) {
		byKey := weir.KeyBy(read(app), "by-key", func(i input) string { return i.Key }, codec.String)
		out := weir.Process(byKey, "op", func(s *weir.Setup) weir.Handler[string, input, input] {
			m := state.Map(s, "m", mapKeys, codec.Int64)
			return weir.OnRecord(func(c *weir.Context[string, input], i input) error {
				k := of(len(i.Value))
				m.Put(k, m.Get(k)+1)
				c.Emit(input{Key: i.Key, Value: strconv.FormatInt(m.Get(k), 10)})
				return nil
			})
		})
		weir.To(out, "out", kafka.Sink("out", codec.String, codec.String))
	}
}

func TestS31_MapKeyCodecChangedIsRefused(t *testing.T) {
	before := entries(codec.Int64, func(n int) int64 { return int64(n) })
	evolve(t, before, []string{"a:1", "a:22", "a:3"}, []string{"a:44"}, func(t *testing.T, u *upgrade) {
		wantError(t, u.start(t, entries(codec.String, strconv.Itoa)), `operator "op", state "m"`, "map keys", `"int64"`, `"string"`)
		u.mustStart(t, before)
		u.wantOut(t, map[string][]string{"a": {"1", "1", "2", "2"}})
	})
}

func TestS31_KindOfStateChangedIsRefused(t *testing.T) {
	asList := func(app *weir.App) {
		byKey := weir.KeyBy(read(app), "by-key", func(i input) string { return i.Key }, codec.String)
		out := weir.Process(byKey, "op", func(s *weir.Setup) weir.Handler[string, input, input] {
			state.List(s, "v", codec.Int64)
			return weir.OnRecord(func(*weir.Context[string, input], input) error { return nil })
		})
		weir.To(out, "out", kafka.Sink("out", codec.String, codec.String))
	}
	evolve(t, keyed(codec.Int64, total), []string{"a:1"}, []string{"a:10"}, func(t *testing.T, u *upgrade) {
		wantError(t, u.start(t, asList), `operator "op", state "v"`, "value state", "list state", "new name")
		u.mustStart(t, keyed(codec.Int64, total))
		u.wantOut(t, map[string][]string{"a": {"1", "11"}})
	})
}

func TestS31_KeyGroupCountChangedIsRefusedAndAllowedThroughARewrite(t *testing.T) {
	rewrites := map[string]func(t *testing.T, s *offline.Snapshot, to checkpoint.Store, name string) error{
		"offline": func(t *testing.T, s *offline.Snapshot, to checkpoint.Store, name string) error {
			b := offline.Edit(s, offline.BuildOptions{Dir: t.TempDir()})
			defer b.Close()
			if err := b.SetKeyGroups(50); err != nil {
				return err
			}
			_, err := b.Write(t.Context(), to, name)
			return err
		},
		"rewrite": func(t *testing.T, s *offline.Snapshot, to checkpoint.Store, name string) error {
			plain := checkpoint.NewMem()
			if _, err := s.Save(t.Context(), plain, "plain", nil); err != nil {
				return err
			}
			m, view, err := checkpoint.OpenSavepoint(t.Context(), plain, "plain")
			if err != nil {
				return err
			}
			_, err = checkpoint.RewriteSavepoint(t.Context(), view, m, to, name, checkpoint.RewriteOptions{KeyGroups: 50, TempDir: t.TempDir()})
			return err
		},
	}
	var in, more []string
	want := map[string][]string{}
	for i := range 100 {
		k := fmt.Sprintf("k%d", i)
		in, more = append(in, k+":1"), append(more, k+":10")
		want[k] = []string{"1", "11"}
	}
	for how, rewrite := range rewrites {
		t.Run(how, func(t *testing.T) {
			evolve(t, keyed(codec.Int64, total), in, more, func(t *testing.T, u *upgrade) {
				err := u.start(t, keyed(codec.Int64, total), weir.KeyGroups(50))
				wantError(t, err, "128", "50")
				var kg *checkpoint.KeyGroupsError
				if !errors.As(err, &kg) {
					t.Errorf("the error is no KeyGroupsError: %v", err)
				}
				u.startFrom(t, func(to checkpoint.Store, name string) error { return rewrite(t, u.last, to, name) })
				u.mustStart(t, keyed(codec.Int64, total), weir.KeyGroups(50))
				u.wantOut(t, want)
			})
		})
	}
}

// counting counts the input of each key in operator id.
func counting(id string) func(*weir.App) {
	return func(app *weir.App) {
		byKey := weir.KeyBy(read(app), "by-key", func(i input) string { return i.Key }, codec.String)
		counts := weir.Aggregate(byKey, id, weir.Count[input]())
		text := weir.Map(counts, "text", func(c weir.KV[string, int64]) (input, error) {
			return input{Key: c.Key, Value: id + strconv.FormatInt(c.Value, 10)}, nil
		})
		weir.To(text, "out", kafka.Sink("out", codec.String, codec.String))
	}
}

func TestS31_OperatorRemovedIsRefusedThenAllowedByFlag(t *testing.T) {
	evolve(t, keyed(codec.Int64, total), []string{"a:1", "b:1"}, []string{"a:10"}, func(t *testing.T, u *upgrade) {
		wantError(t, u.start(t, counting("n")), `state "v" of operator "op"`, `weir.AllowDroppedState("op")`)
		u.mustStart(t, counting("n"), weir.AllowDroppedState("op"))
		// What was dropped does not come back with the operator.
		produce(t, u.brokers, pairs("in", "a:100")...)
		u.mustStart(t, keyed(codec.Int64, total), weir.AllowDroppedState("n"))
		u.wantOut(t, map[string][]string{"a": {"1", "n1", "100"}, "b": {"1"}})
	})
}

func TestS31_OperatorAddedBeginsEmptyBesideStateThatIsKept(t *testing.T) {
	both := func(app *weir.App) {
		byKey := weir.KeyBy(read(app), "by-key", func(i input) string { return i.Key }, codec.String)
		weir.To(weir.Aggregate(byKey, "n", weir.Count[input]()), "counts", kafka.Sink("counts", codec.String, codec.Int64))
		// A process on the same keyed stream, as in keyed.
		out := weir.Process(byKey, "op", func(s *weir.Setup) weir.Handler[string, input, input] {
			v := state.Value(s, "v", codec.Int64)
			added := state.Value(s, "seen", codec.Int64) // a state added to an operator that was there
			return weir.OnRecord(func(c *weir.Context[string, input], i input) error {
				now, text := total(v.Get(), i.Value)
				v.Set(now)
				added.Set(added.Get() + 1)
				c.Emit(input{Key: i.Key, Value: text + "/" + strconv.FormatInt(added.Get(), 10)})
				return nil
			})
		})
		weir.To(out, "out", kafka.Sink("out", codec.String, codec.String))
	}
	evolve(t, keyed(codec.Int64, total), []string{"a:1", "b:1"}, []string{"a:10", "a:10"}, func(t *testing.T, u *upgrade) {
		u.mustStart(t, both)
		u.wantOut(t, map[string][]string{"a": {"1", "11/1", "21/2"}, "b": {"1"}})
		if e, _, err := offline.Get(t.Context(), open(t, u.next.store, offline.Latest), "n", "acc", codec.String, codec.Int64, "a"); err != nil || e.Value != 2 {
			t.Errorf("the new operator counted %d, %v", e.Value, err)
		}
	})
}

func TestS31_OperatorRenamedOfflineKeepsItsState(t *testing.T) {
	evolve(t, counting("n"), []string{"a:1", "a:1", "b:1"}, []string{"a:1", "b:1"}, func(t *testing.T, u *upgrade) {
		wantError(t, u.start(t, counting("m")), `state "acc" of operator "n"`)
		u.startFrom(t, func(to checkpoint.Store, name string) error {
			b := offline.Edit(u.last, offline.BuildOptions{Dir: t.TempDir()})
			defer b.Close()
			if err := b.RenameOperator("n", "m"); err != nil {
				return err
			}
			_, err := b.Write(t.Context(), to, name)
			return err
		})
		u.mustStart(t, counting("m"))
		u.wantOut(t, map[string][]string{"a": {"n1", "n2", "m3"}, "b": {"n1", "m2"}})
	})
}
