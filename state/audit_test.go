package state

import (
	"errors"
	"fmt"
	"slices"
)

// Audit counts what is in memory and compares it with what the columns say of it.
func (ks *Keyspace[K]) Audit() error {
	var errs []error
	for _, c := range ks.columns {
		if a, ok := c.(interface{ audit() error }); ok {
			if err := a.audit(); err != nil {
				errs = append(errs, fmt.Errorf("state %q: %w", c.describe().Name, err))
			}
		}
	}
	for slot := uint32(0); slot < ks.next && ks.cfg.Backing == nil; slot++ {
		if k := ks.at(slot); ks.find(hashOf(ks.seed, k.key), k.key) == slot && !slices.Contains(ks.maybeEmpty, slot) &&
			!slices.ContainsFunc(ks.columns, func(c column) bool { return c.used(slot) }) {
			errs = append(errs, fmt.Errorf("slot %d of key %v holds nothing", slot, k.key))
		}
	}
	return errors.Join(errs...)
}

func (h *entryTable[V]) audit() error {
	seen := map[*entry[V]]bool{}
	busy := map[uint32]int{}
	groups := 0
	for c, chunk := range h.chunks {
		for i, g := range chunk {
			if g == nil {
				continue
			}
			groups++
			slot := uint32(c)<<chunkBits | uint32(i)
			for _, s := range []*sorted[V]{&g.live, &g.masks} {
				n, last := 0, ""
				for e := range s.all {
					if n > 0 && e.key <= last {
						return fmt.Errorf("slot %d: %x stands behind %x", slot, e.key, last)
					}
					if e.slot != slot || seen[e] || e.flags&cellSet != 0 != (s == &g.live) {
						return fmt.Errorf("slot %d: entry %x is not where it belongs", slot, e.key)
					}
					seen[e] = true
					n, last = n+1, e.key
				}
				if n != s.n {
					return fmt.Errorf("slot %d: %d entries, counted as %d", slot, n, s.n)
				}
			}
		}
	}
	for _, list := range h.changed {
		for _, e := range list {
			if e != nil && e.flags&cellBusy != 0 {
				seen[e] = true // or it is here only, removed and not encoded
			}
		}
	}
	keyBytes := 0
	for e := range seen {
		if e.flags&cellBusy != 0 {
			busy[e.slot]++
		}
		if len(e.key) > shortKey {
			keyBytes += len(e.key)
		}
	}
	for slot, n := range busy {
		if g := h.at(slot); g == nil || g.busy != n {
			return fmt.Errorf("slot %d has %d entries to be encoded, counted otherwise", slot, n)
		}
	}
	if len(seen) != h.entries || keyBytes != h.keyBytes || groups != h.groups {
		return fmt.Errorf("%d entries, %d bytes of long keys and %d groups, counted as %d, %d and %d", len(seen), keyBytes, groups, h.entries, h.keyBytes, h.groups)
	}
	return nil
}
