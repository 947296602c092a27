package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/sink"
)

// Get looks up strings: GET of the key that key returns, decoded by a codec, such as
// codec.JSON[Profile](). A key that does not exist is not found.
//
// As with all look-ups, the commands of a batch go in one pipeline, to the primary; on a
// cluster in one for each node. The prefix of [Options] goes in front of the key.
func Get[K comparable, V any](o Options, key func(K) string, c codec.Codec[V]) lookup.Source[K, V] {
	return withCodec(newReads(o, "GET", key, decodeString(c)), c)
}

// HGet looks up fields of hashes: HGET of the key and the field that f returns, decoded by
// a codec.
func HGet[K comparable, V any](o Options, f func(K) (key, field string), c codec.Codec[V]) lookup.Source[K, V] {
	s := &reads[K, V]{opts: o, what: "HGET", decode: decodeString(c)}
	if f != nil {
		s.command = func(k K) ([]any, int, error) {
			key, field := f(k)
			return []any{"HGET", o.Prefix + key, field}, 1, nil
		}
	}
	return withCodec(s, c)
}

// HGetAll looks up hashes. One without fields does not exist, and is not found. To have
// them as another type see lookup.Decode.
func HGetAll[K comparable](o Options, key func(K) string) lookup.Source[K, map[string]string] {
	return newReads(o, "HGETALL", key, func(reply any) (map[string]string, bool, error) {
		m, err := stringMap(reply)
		return m, len(m) > 0, err
	})
}

// HMGet looks up some fields of hashes. Fields that a hash does not have are not in the
// map. If it has none of them it is not found.
func HMGet[K comparable](o Options, key func(K) string, fields ...string) lookup.Source[K, map[string]string] {
	s := newReads(o, "HMGET", key, func(reply any) (map[string]string, bool, error) {
		vs, ok := reply.([]any)
		if !ok || len(vs) != len(fields) {
			return nil, false, unexpected(reply)
		}
		m := make(map[string]string, len(fields))
		for i, v := range vs {
			if v, ok := v.(string); ok {
				m[fields[i]] = v
			}
		}
		return m, len(m) > 0, nil
	}, fields...)
	if len(fields) == 0 {
		s.errs = append(s.errs, errors.New("redis: HMGet of no field"))
	}
	return s
}

// Read looks up by any command that reads. command returns its name and arguments:
// strings, numbers and [Key]s, of which there is at least one; on a cluster all are in one
// slot. decode gets the reply as go-redis gives it: string, int64, float64, bool, []any,
// map[any]any; it is not called for a null, which is not found. It runs in several
// goroutines at once. A command that is known to write is the record's error.
func Read[K comparable, V any](o Options, command func(k K) []any, decode func(reply any) (v V, found bool, err error)) lookup.Source[K, V] {
	s := &reads[K, V]{opts: o, what: "reads", decode: decode}
	if command != nil {
		s.command = func(k K) ([]any, int, error) { return readArgs(o, command(k)) }
	}
	if decode == nil {
		s.errs = append(s.errs, errors.New("redis: the function that decodes replies is nil"))
	}
	return s
}

// ErrNotRead: a look-up was given a command that is none that reads, and names a key.
var ErrNotRead = errors.New("not a command that reads a key")

// reads is a source of look-ups by one command.
type reads[K comparable, V any] struct {
	opts Options
	what string
	// command returns the arguments as they are sent, and which is the first key.
	command func(K) (args []any, firstKey int, err error)
	decode  func(reply any) (V, bool, error)
	errs    []error
}

func newReads[K comparable, V any](o Options, name string, key func(K) string, decode func(any) (V, bool, error), rest ...string) *reads[K, V] {
	s := &reads[K, V]{opts: o, what: name, decode: decode}
	if key != nil {
		s.command = func(k K) ([]any, int, error) {
			args := make([]any, 2, 2+len(rest))
			args[0], args[1] = name, o.Prefix+key(k)
			for _, r := range rest {
				args = append(args, r)
			}
			return args, 1, nil
		}
	}
	return s
}

func withCodec[K comparable, V any](s *reads[K, V], c codec.Codec[V]) *reads[K, V] {
	if err := codec.Check(c); err != nil {
		s.errs = append(s.errs, fmt.Errorf("redis: %w", err))
	}
	return s
}

// Check implements [lookup.Source].
func (s *reads[K, V]) Check() error {
	errs := append([]error{s.opts.check()}, s.errs...)
	if s.command == nil {
		errs = append(errs, errors.New("redis: the function that makes a command or key of what is looked up is nil"))
	}
	return errors.Join(errs...)
}

func (s *reads[K, V]) String() string { return s.opts.String() + " by " + s.what }

// Open implements [lookup.Source].
func (s *reads[K, V]) Open(context.Context) (lookup.Client[K, V], error) {
	return &asker[K, V]{s, s.opts.client()}, nil
}

type asker[K comparable, V any] struct {
	from *reads[K, V]
	cl   goredis.UniversalClient
}

// Fetch implements [lookup.Client]: one pipeline.
func (r *asker[K, V]) Fetch(ctx context.Context, keys []K, answers []lookup.Answer[V]) error {
	cmds, at := make([]*goredis.Cmd, 0, len(keys)), make([]int, 0, len(keys))
	for i, k := range keys {
		c, err := r.build(ctx, k)
		if err != nil {
			answers[i].Err = err
			continue
		}
		cmds, at = append(cmds, c), append(at, i)
	}
	if len(cmds) == 0 {
		return nil
	}
	for n, err := range execute(ctx, r.cl, cmds) {
		a := &answers[at[n]]
		if err != nil {
			if err = classify(err); unavailable(err) {
				return &sink.Retriable{Err: err}
			} else if !blamed(err) {
				return err
			}
			a.Err = fmt.Errorf("%s: %w", describeArgs(cmds[n].Args()), err)
			continue
		}
		reply := cmds[n].Val()
		if reply == nil {
			continue
		}
		if a.Value, a.Found, err = r.from.decode(reply); err != nil {
			a.Err = fmt.Errorf("%s: decoding the reply: %w", describeArgs(cmds[n].Args()), err)
		}
	}
	return nil
}

// Close implements [lookup.Client].
func (r *asker[K, V]) Close() error { return r.cl.Close() }

// build makes the command of a key.
func (r *asker[K, V]) build(ctx context.Context, k K) (*goredis.Cmd, error) {
	args, first, err := r.from.command(k)
	if err != nil {
		return nil, err
	}
	c := goredis.NewCmd(ctx, args...)
	if first <= maxFirstKey {
		c.SetFirstKeyPos(int8(first))
	}
	return c, nil
}

// readArgs returns the arguments of a command that reads with their keys as they are in
// Redis, and which is the first key.
func readArgs(o Options, given []any) (args []any, firstKey int, err error) {
	if len(given) == 0 {
		return nil, 0, fmt.Errorf("%w: no arguments", ErrNotRead)
	}
	name, _ := given[0].(string)
	if name = strings.ToUpper(name); slices.Contains(repeats, name) || slices.Contains(writes, name) {
		return nil, 0, fmt.Errorf("%w: %s changes what it finds; look-ups are repeated after a failure", ErrNotRead, name)
	}
	args = slices.Clone(given) // they may be shared
	var slot uint16
	for i, a := range args {
		k, ok := a.(Key)
		if !ok {
			continue
		}
		key := o.Prefix + string(k)
		args[i] = key
		if s := slotOf([]byte(key)); firstKey == 0 {
			firstKey, slot = i, s
		} else if o.Cluster && s != slot {
			return nil, 0, fmt.Errorf("%w: the keys of a %s; give keys that belong together one hash tag: \"{user7}:name\" and \"{user7}:age\" share a slot", ErrCrossSlot, name)
		}
	}
	if firstKey == 0 {
		return nil, 0, fmt.Errorf("%w: %s names no key; say which arguments are keys: redis.Key(k)", ErrNotRead, name)
	}
	return args, firstKey, nil
}

// maxFirstKey is the last argument that can be told to the client as the first key.
const maxFirstKey = 1<<7 - 1

// writes are commands that change what is there, beside repeats. There are more; these are
// those that somebody may take for a look-up or pass by mistake.
var writes = strings.Fields(`
	COPY DEL EXPIRE EXPIREAT FLUSHALL FLUSHDB GETEX GETSET HDEL HGETDEL HGETEX HMSET HSET HSETEX HSETNX JSON.DEL JSON.SET
	LREM MSET MSETNX PERSIST PEXPIRE PEXPIREAT PFADD PFMERGE PSETEX RESTORE SADD SDIFFSTORE SET SETBIT SETEX SETNX SETRANGE
	SINTERSTORE SORT SREM SUNIONSTORE UNLINK ZADD ZDIFFSTORE ZINTERSTORE ZRANGESTORE ZREM ZREMRANGEBYLEX
	ZREMRANGEBYSCORE ZUNIONSTORE`)

// decodeString decodes replies that are strings. c may be nil, which Check reports.
func decodeString[V any](c codec.Codec[V]) func(any) (V, bool, error) {
	return func(reply any) (v V, found bool, err error) {
		s, ok := reply.(string)
		if !ok {
			return v, false, unexpected(reply)
		}
		v, err = c.Decode([]byte(s))
		return v, err == nil, err
	}
}

// stringMap is a reply of fields and values: a map, or a list in the older protocol.
func stringMap(reply any) (map[string]string, error) {
	switch reply := reply.(type) {
	case map[any]any:
		m := make(map[string]string, len(reply))
		for k, v := range reply {
			ks, ok1 := k.(string)
			vs, ok2 := v.(string)
			if !ok1 || !ok2 {
				return nil, unexpected(reply)
			}
			m[ks] = vs
		}
		return m, nil
	case []any:
		m := make(map[string]string, len(reply)/2)
		for i := 0; i+1 < len(reply); i += 2 {
			ks, ok1 := reply[i].(string)
			vs, ok2 := reply[i+1].(string)
			if !ok1 || !ok2 {
				return nil, unexpected(reply)
			}
			m[ks] = vs
		}
		return m, nil
	}
	return nil, unexpected(reply)
}

func unexpected(reply any) error { return fmt.Errorf("a reply of an unexpected type: %T", reply) }

// describeArgs is a command for messages: its name and first argument.
func describeArgs(args []any) string {
	const most = 100
	if len(args) < 2 {
		return fmt.Sprint(args...)
	}
	return fmt.Sprintf("%v %.*q", args[0], most, fmt.Sprint(args[1]))
}
