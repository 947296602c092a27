package redis

import (
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weirstream/weir/codec"
)

// Key is an argument of a command that is a key: it gets the prefix of [Options], and on a
// cluster it decides where the command goes.
type Key string

// commands collects the commands of the records of one subtask. The methods note a mistake
// instead of returning it: the first one of a record is the error of that record, and
// nothing of the record is written.
type commands struct {
	prefix  string
	cluster bool
	direct  bool // commands are sent as they are: the client looks at the first key where to

	buf   []byte // operations
	count int
	last  int // where the last operation begins in buf

	// Of the record.
	err    error
	joined bool // in a transaction
	first  int  // index of the first operation of the transaction
	txSlot uint16
	guard  *int64

	// Of the operation that is being built.
	args    []byte
	nargs   int
	keys    []int
	slot    uint16
	crossed bool
	unnamed bool // the first key is empty
	idx     int
}

func (c *commands) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

// begin begins a command.
func (c *commands) begin(name string) {
	c.args, c.nargs, c.keys, c.crossed = c.args[:0], 0, c.keys[:0], false
	c.arg(name)
}

func (c *commands) arg(s string) {
	c.args = append(appendStringHeader(c.args, len(s)), s...)
	c.nargs++
}

func (c *commands) bytes(b []byte) {
	c.args = append(appendStringHeader(c.args, len(b)), b...)
	c.nargs++
}

func (c *commands) int(n int64) {
	var text [20]byte
	c.bytes(strconv.AppendInt(text[:0], n, 10))
}

func (c *commands) float(f float64) {
	var text [32]byte
	c.bytes(strconv.AppendFloat(text[:0], f, 'g', -1, 64))
}

func (c *commands) key(s string) {
	c.args = append(append(appendStringHeader(c.args, len(c.prefix)+len(s)), c.prefix...), s...)
	slot := slotOf(c.args[len(c.args)-len(c.prefix)-len(s):])
	if len(c.keys) == 0 {
		c.slot, c.unnamed = slot, len(c.prefix)+len(s) == 0
	} else if slot != c.slot {
		c.crossed = true
	}
	c.keys = append(c.keys, c.nargs)
	c.nargs++
}

// end adds the command that was built.
func (c *commands) end() {
	switch {
	case c.err != nil:
		return
	case c.nargs > maxArgs:
		c.fail(fmt.Errorf("%w: %s has %d arguments; at most %d fit into one command: spread them over several", ErrCommand, c.name(), c.nargs, maxArgs))
		return
	case len(c.args) > maxCommandBytes:
		c.fail(fmt.Errorf("%w: %s has %d bytes; at most %d fit into one command", ErrCommand, c.name(), len(c.args), maxCommandBytes))
		return
	case len(c.keys) == 0:
		c.fail(fmt.Errorf("%w: %s names no key; say which arguments are keys: b.Do(name, redis.Key(k), ...)", ErrCommand, c.name()))
		return
	case c.cluster && c.crossed:
		c.fail(fmt.Errorf("%w: the keys of a %s; give keys that belong together one hash tag: \"{user7}:name\" and \"{user7}:age\" share a slot", ErrCrossSlot, c.name()))
		return
	}
	if c.cluster && c.direct && c.guard == nil {
		const why = "on a cluster the client sends such commands to any node, and they would overtake each other"
		if c.unnamed {
			c.fail(fmt.Errorf("%w: the first key of %s is empty; %s: give the key a name, or set Options.Prefix", ErrCommand, c.name(), why))
			return
		}
		if k := c.keys[0]; k > maxFirstKey {
			c.fail(fmt.Errorf("%w: the first key of %s is argument %d; behind argument %d %s", ErrCommand, c.name(), k, maxFirstKey, why))
			return
		}
	}
	var flags byte
	if c.joined {
		if c.idx == c.first {
			c.txSlot = c.slot
		} else if c.cluster && c.slot != c.txSlot {
			c.fail(fmt.Errorf("%w: the commands of a transaction; give keys that belong together one hash tag: \"{user7}:name\" and \"{user7}:age\" share a slot", ErrCrossSlot))
			return
		}
		flags = flagJoined
	}
	if c.guard != nil {
		flags |= flagGuarded
	}
	c.last = len(c.buf)
	c.buf = append(c.buf, flags)
	c.buf = binary.LittleEndian.AppendUint16(c.buf, c.slot)
	if c.guard != nil {
		c.buf = binary.LittleEndian.AppendUint64(c.buf, uint64(*c.guard))
	}
	c.buf = binary.AppendUvarint(c.buf, uint64(len(c.keys)))
	for _, k := range c.keys {
		c.buf = binary.AppendUvarint(c.buf, uint64(k))
	}
	header := 1
	if c.nargs >= 16 {
		header = 3
	}
	c.buf = binary.AppendUvarint(c.buf, uint64(header+len(c.args)))
	c.buf = appendArrayHeader(c.buf, c.nargs)
	c.buf = append(c.buf, c.args...)
	c.count++
	c.idx++
}

// name is that of the command being built.
func (c *commands) name() string {
	s, _, err := readString(c.args)
	if err != nil {
		return "a command"
	}
	return string(s)
}

// record collects the commands that f adds for one record, all or none of them.
func (c *commands) record(f func()) error {
	size, count, last := len(c.buf), c.count, c.last
	c.err, c.joined, c.idx, c.guard = nil, false, 0, nil
	returned := false
	defer func() { // also if f panics: the record may be skipped then
		if !returned || c.err != nil {
			c.buf, c.count, c.last = c.buf[:size], count, last
		}
	}()
	f()
	returned = true
	return c.err
}

// reset forgets what was collected. The memory is used again.
func (c *commands) reset() { c.buf, c.count, c.last = c.buf[:0], 0, 0 }

// strings builds a command of a key and strings.
func (c *commands) strings(name, key string, rest []string) {
	c.begin(name)
	c.key(key)
	for _, s := range rest {
		c.arg(s)
	}
	c.end()
}

// pairs builds a command of a key and field-value pairs.
func (c *commands) pairs(name, key string, rest []string) {
	if len(rest) == 0 || len(rest)%2 != 0 {
		c.fail(fmt.Errorf("%w: %s of key %q with %d strings; give a value for each field", ErrCommand, name, key, len(rest)))
		return
	}
	c.strings(name, key, rest)
}

// Fail makes err the error of the record: nothing of the record is written. With
// weir.Skip and weir.DeadLetter it decides what becomes of it.
func (c *commands) Fail(err error) {
	if err != nil {
		c.fail(err)
	}
}

// Set sets a string.
func (c *commands) Set(key, value string) {
	c.begin("SET")
	c.key(key)
	c.arg(value)
	c.end()
}

// SetFor sets a string that expires, with a precision of milliseconds.
func (c *commands) SetFor(key, value string, ttl time.Duration) {
	c.begin("SET")
	c.key(key)
	c.arg(value)
	c.arg("PX")
	c.int(max(1, ttl.Milliseconds()))
	c.end()
}

// HSet sets fields of a hash: field, value, field, value.
func (c *commands) HSet(key string, fieldValues ...string) { c.pairs("HSET", key, fieldValues) }

// HDel removes fields of a hash.
func (c *commands) HDel(key string, fields ...string) { c.strings("HDEL", key, fields) }

// SAdd adds members to a set.
func (c *commands) SAdd(key string, members ...string) { c.strings("SADD", key, members) }

// SRem removes members of a set.
func (c *commands) SRem(key string, members ...string) { c.strings("SREM", key, members) }

// ZAdd sets the score of a member of a sorted set.
func (c *commands) ZAdd(key string, score float64, member string) {
	c.begin("ZADD")
	c.key(key)
	c.float(score)
	c.arg(member)
	c.end()
}

// ZRem removes members of a sorted set.
func (c *commands) ZRem(key string, members ...string) { c.strings("ZREM", key, members) }

// PFAdd adds elements to a HyperLogLog.
func (c *commands) PFAdd(key string, elements ...string) { c.strings("PFADD", key, elements) }

// Del deletes keys.
func (c *commands) Del(keys ...string) {
	c.begin("DEL")
	for _, k := range keys {
		c.key(k)
	}
	c.end()
}

// Expire makes a key expire, with a precision of milliseconds.
func (c *commands) Expire(key string, ttl time.Duration) {
	c.begin("PEXPIRE")
	c.key(key)
	c.int(ttl.Milliseconds())
	c.end()
}

// ExpireAt makes a key expire at a time, with a precision of milliseconds.
func (c *commands) ExpireAt(key string, at time.Time) {
	c.begin("PEXPIREAT")
	c.key(key)
	c.int(at.UnixMilli())
	c.end()
}

// do adds any command.
func (c *commands) do(name string, args []any) {
	c.begin(strings.ToUpper(name))
	for _, a := range args {
		switch a := a.(type) {
		case Key:
			c.key(string(a))
		case string:
			c.arg(a)
		case []byte:
			c.bytes(a)
		case int:
			c.int(int64(a))
		case int64:
			c.int(a)
		case float64:
			c.float(a)
		default:
			c.fail(fmt.Errorf("%w: an argument of %s is a %T; use redis.Key, string, []byte, int, int64 or float64", ErrCommand, name, a))
			return
		}
	}
	c.end()
}

// set is what [Put] needs.
func (c *commands) set(key string, value []byte, err error) {
	if err != nil {
		c.fail(fmt.Errorf("encoding the value of key %q: %w", key, err))
		return
	}
	c.begin("SET")
	c.key(key)
	c.bytes(value)
	c.end()
}

// Target is what a command can be added to: [Upserts] or [Batch].
type Target interface {
	set(key string, value []byte, err error)
}

// Put sets a string to the encoding of v, such as redis.Put(b, key, codec.JSON[User](), u).
func Put[V any](to Target, key string, c codec.Codec[V], v V) {
	b, err := c.Append(nil, v)
	to.set(key, b, err)
}

// Upserts collects the commands of a record for [Upsert]: those that may be repeated
// without harm, because their effect doesn't depend on what is there.
type Upserts struct{ commands }

// Guard puts the commands of this record that follow under a version guard: a command is
// done only if no command on its first key was done under a higher version. So neither a
// replay nor a process that was replaced shows an older value over a newer one. The
// version is a number that grows with the values of a key, such as a revision or a time.
// On a key that several entities share, such as a ranking, versions that each entity counts
// for itself would leave out whoever has the lower ones: add such commands before Guard.
// The version is kept in a key beside the guarded one; see [VersionsFor].
func (u *Upserts) Guard(v int64) { u.guard = &v }

// Do adds any command that may be repeated without harm. One that is known not to be, such
// as INCR, is the record's error. Which arguments are keys is said by [Key].
func (u *Upserts) Do(name string, args ...any) {
	if addsUp(strings.ToUpper(name), args) {
		u.fail(fmt.Errorf("%w: an idempotent sink cannot run %s, which a replay would repeat; use redis.WriteAhead", ErrNotIdempotent, strings.ToUpper(name)))
		return
	}
	if u.guard != nil && u.refuseUnscripted(name) {
		return
	}
	u.do(name, args)
}

// unscripted are the commands that some version of Redis or Valkey refuses to run in a
// script. Those that block, later ones run without blocking; there is one for that.
var unscripted = strings.Fields(`
	BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN WAIT WAITAOF
	AUTH BGREWRITEAOF BGSAVE DEBUG DISCARD EVAL EVALSHA EVALSHA_RO EVAL_RO EXEC FAILOVER FCALL FCALL_RO HELLO MONITOR MULTI PSUBSCRIBE
	PSYNC PUNSUBSCRIBE QUIT REPLCONF REPLICAOF RESET ROLE SAVE SHUTDOWN SLAVEOF SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE SYNC UNSUBSCRIBE
	UNWATCH WATCH`)

// refuseUnscripted refuses a command that can't be in a script.
func (c *commands) refuseUnscripted(name string) bool {
	if !slices.Contains(unscripted, strings.ToUpper(name)) {
		return false
	}
	c.fail(fmt.Errorf("%w: %s", ErrNotInScript, strings.ToUpper(name)))
	return true
}

// repeats are commands whose effect adds up if they are repeated.
var repeats = strings.Fields(`
	APPEND ARINSERT ARRING BITFIELD BLMOVE BLMOVEM BLMPOP BLPOP BRPOP BRPOPLPUSH BZMOVE BZMPOP BZPOPMAX BZPOPMIN CF.ADD CF.DEL CF.INSERT
	CMS.INCRBY DECR DECRBY EVAL EVALSHA FCALL GETDEL HINCRBY HINCRBYFLOAT INCR INCRBY INCRBYFLOAT INCREX JSON.ARRAPPEND JSON.ARRINSERT
	JSON.ARRPOP JSON.ARRTRIM JSON.NUMINCRBY JSON.NUMMULTBY JSON.NUMPOWBY JSON.STRAPPEND JSON.TOGGLE LINSERT LMOVE LMOVEM LMPOP LPOP LPUSH
	LPUSHX LTRIM MIGRATE MOVE PUBLISH RENAME RENAMENX RPOP RPOPLPUSH RPUSH RPUSHX SMOVE SPOP SPUBLISH SWAPDB TDIGEST.ADD TDIGEST.MERGE
	TOPK.ADD TOPK.INCRBY TS.DECRBY TS.INCRBY XADD XAUTOCLAIM XCLAIM XREADGROUP ZINCRBY ZMOVE ZMOVEMEMBER ZMPOP ZPOPMAX ZPOPMIN
	ZREMRANGEBYRANK`)

// combines are commands whose effect adds up if what they make is also what they make it of.
var combines = strings.Fields(`BITOP CMS.MERGE GEORADIUS GEORADIUSBYMEMBER GEOSEARCHSTORE SORT ZINTERSTORE ZRANGESTORE ZUNIONSTORE`)

// subtracts are those for which it may be the first one: what was taken away once is away.
var subtracts = strings.Fields(`SDIFFSTORE ZDIFFSTORE`)

// addsUp tells whether a command is known to have another effect if it is repeated.
func addsUp(name string, args []any) bool {
	switch name {
	case "FT.SUGADD":
		return sugIncrements(args)
	case "JSON.DEL", "JSON.FORGET": // what comes behind an element moves up
		return len(args) > 1 && byIndex.MatchString(text(args[1]))
	case "LREM": // removes all of an element if the count is 0
		return len(args) < 2 || text(args[1]) != "0"
	case "TS.ADD":
		return timedByRedis(args[:min(3, len(args))]) || sums(args)
	case "TS.MADD":
		return timedByRedis(args)
	case "ZADD":
		return increments(args)
	}
	switch {
	case slices.Contains(combines, name):
		return makesOfItself(args, 1)
	case slices.Contains(subtracts, name):
		return makesOfItself(args, 2)
	}
	return slices.Contains(repeats, name)
}

// makesOfItself tells whether the first key is again among the keys from the one at from on.
func makesOfItself(args []any, from int) bool {
	var keys []Key
	for _, a := range args {
		if k, ok := a.(Key); ok {
			keys = append(keys, k)
		}
	}
	return len(keys) > from && slices.Contains(keys[from:], keys[0])
}

// text is an argument as Redis gets it; a key is none, for it is no option of a command.
func text(a any) string {
	switch a := a.(type) {
	case Key:
		return ""
	case []byte:
		return string(a)
	default:
		return fmt.Sprint(a)
	}
}

// keyword is what an argument says if it is an option.
func keyword(a any) string { return strings.ToUpper(text(a)) }

// byIndex finds elements of an array in a path of JSON that are named by where they stand.
var byIndex = regexp.MustCompile(`\[\s*[-:\d]`)

// increments tells whether a ZADD has the option INCR. Options stand between the key and
// the first score.
func increments(args []any) bool {
	for _, a := range args[min(1, len(args)):] {
		switch keyword(a) {
		case "INCR":
			return true
		case "NX", "XX", "GT", "LT", "CH":
		default:
			return false
		}
	}
	return false
}

// sugIncrements tells whether an FT.SUGADD adds to the score: behind key, string and score
// stand INCR and PAYLOAD, which has a value.
func sugIncrements(args []any) bool {
	for i := 3; i < len(args); i++ {
		switch keyword(args[i]) {
		case "INCR":
			return true
		case "PAYLOAD":
			i++
		}
	}
	return false
}

// timedByRedis tells whether one of the samples of a time series has the time at which Redis
// gets it: repeated it is another sample. Each is a key, a time and a value.
func timedByRedis(args []any) bool {
	for i := 1; i < len(args); i += 3 {
		if text(args[i]) == "*" {
			return true
		}
	}
	return false
}

// sums tells whether a TS.ADD adds to the sample that has the same time.
func sums(args []any) bool {
	for _, policy := range []string{"ON_DUPLICATE", "DUPLICATE_POLICY"} { // the first overrides the second
		i := slices.IndexFunc(args, func(a any) bool { return keyword(a) == policy })
		if i >= 0 && i+1 < len(args) {
			return keyword(args[i+1]) == "SUM"
		}
	}
	return false
}

// Errors of commands that can't be written, found when the record is processed. Match
// them with errors.Is.
var (
	// ErrCommand: the command can't be right, whatever Redis has.
	ErrCommand = errors.New("malformed Redis command")
	// ErrCrossSlot: keys that must be in one hash slot are not.
	ErrCrossSlot = errors.New("keys in different hash slots")
	// ErrNotIdempotent: an idempotent sink was given a command that a replay repeats.
	ErrNotIdempotent = errors.New("command is not idempotent")
)
