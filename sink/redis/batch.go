package redis

import "fmt"

// Batch collects the commands of a record for [WriteAhead]: any command, since each is
// applied once.
type Batch struct{ commands }

// IncrBy adds to a number.
func (b *Batch) IncrBy(key string, n int64) {
	b.begin("INCRBY")
	b.key(key)
	b.int(n)
	b.end()
}

// HIncrBy adds to a number in a hash.
func (b *Batch) HIncrBy(key, field string, n int64) {
	b.begin("HINCRBY")
	b.key(key)
	b.arg(field)
	b.int(n)
	b.end()
}

// ZIncrBy adds to the score of a member of a sorted set.
func (b *Batch) ZIncrBy(key string, delta float64, member string) {
	b.begin("ZINCRBY")
	b.key(key)
	b.float(delta)
	b.arg(member)
	b.end()
}

// LPush puts values in front of a list, one after another.
func (b *Batch) LPush(key string, values ...string) { b.strings("LPUSH", key, values) }

// RPush appends values to a list.
func (b *Batch) RPush(key string, values ...string) { b.strings("RPUSH", key, values) }

// LTrim keeps the elements from start to stop of a list.
func (b *Batch) LTrim(key string, start, stop int64) {
	b.begin("LTRIM")
	b.key(key)
	b.int(start)
	b.int(stop)
	b.end()
}

// XAdd appends an entry to a stream, under an ID that Redis gives it: field, value, field,
// value.
func (b *Batch) XAdd(key string, fieldValues ...string) {
	if len(fieldValues) == 0 || len(fieldValues)%2 != 0 {
		b.fail(fmt.Errorf("%w: XADD to key %q with %d strings; give a value for each field", ErrCommand, key, len(fieldValues)))
		return
	}
	b.begin("XADD")
	b.key(key)
	b.arg("*")
	for _, s := range fieldValues {
		b.arg(s)
	}
	b.end()
}

// Do adds any command that Redis runs in a script. Which arguments are keys is said by
// [Key]; there must be one.
func (b *Batch) Do(name string, args ...any) {
	if !b.refuseUnscripted(name) {
		b.do(name, args)
	}
}

// Transaction applies the commands that f adds in one step: nobody sees some of them
// without the others. On a cluster their keys must be in one slot. As with MULTI, a
// command that fails does not undo those before it. If f panics, nothing that it added is
// applied.
func (b *Batch) Transaction(f func()) {
	if b.joined {
		b.fail(fmt.Errorf("%w: a transaction in a transaction", ErrCommand))
		return
	}
	size, count, last := len(b.buf), b.count, b.last
	b.joined, b.first = true, b.idx
	returned := false
	defer func() { // also if f panics: who calls Transaction may recover
		b.joined = false
		switch {
		case !returned:
			b.buf, b.count, b.last, b.idx = b.buf[:size], count, last, b.first
		case b.err == nil && b.count > count:
			b.buf[b.last] &^= flagJoined // the last one ends it
		}
	}()
	f()
	returned = true
}
