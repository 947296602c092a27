package faultstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"sync"

	"github.com/weirstream/weir/checkpoint"
)

// Op is an operation of a store.
type Op string

// The operations.
const (
	Put      Op = "put"
	Get      Op = "get"
	GetRange Op = "get-range"
	List     Op = "list"
	Delete   Op = "delete"
)

// Hook is asked about an operation on an object; for List, name is the prefix. What
// it returns is what the caller gets. It may block; ctx is the operation's.
type Hook func(ctx context.Context, op Op, name string) error

// Store passes operations on to another store. Hooks may be set at any time.
type Store struct {
	checkpoint.Store

	mu     sync.Mutex
	before Hook
	after  Hook
}

// Wrap returns a store that works as inner does until hooks are set.
func Wrap(inner checkpoint.Store) *Store { return &Store{Store: inner} }

// Before sets the hook that is asked before each operation: if it gives an error
// nothing happens. Nil removes it.
func (s *Store) Before(h Hook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = h
}

// After sets the hook that is asked after each operation that went well: if it gives
// an error the operation has happened and the caller doesn't know. Nil removes it.
func (s *Store) After(h Hook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.after = h
}

func (s *Store) ask(ctx context.Context, op Op, name string, after bool) error {
	s.mu.Lock()
	h := s.before
	if after {
		h = s.after
	}
	s.mu.Unlock()
	if h == nil {
		return nil
	}
	err := h(ctx, op, name)
	if err == nil {
		return nil
	}
	return &checkpoint.StoreError{Op: string(op), Object: name, Store: s.String(), Err: err}
}

// around runs do between the hooks.
func (s *Store) around(ctx context.Context, op Op, name string, do func() error) error {
	if err := s.ask(ctx, op, name, false); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return s.ask(ctx, op, name, true)
}

// Put implements checkpoint.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	return s.around(ctx, Put, name, func() error { return s.Store.Put(ctx, name, data) })
}

// Get implements checkpoint.Store.
func (s *Store) Get(ctx context.Context, name string) (b []byte, err error) {
	err = s.around(ctx, Get, name, func() (err error) {
		b, err = s.Store.Get(ctx, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// GetRange implements checkpoint.Store.
func (s *Store) GetRange(ctx context.Context, name string, off, n int64) (b []byte, err error) {
	err = s.around(ctx, GetRange, name, func() (err error) {
		b, err = s.Store.GetRange(ctx, name, off, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// List implements checkpoint.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[checkpoint.Object, error] {
	return func(yield func(checkpoint.Object, error) bool) {
		if err := s.ask(ctx, List, prefix, false); err != nil {
			yield(checkpoint.Object{}, err)
			return
		}
		for o, err := range s.Store.List(ctx, prefix) {
			if !yield(o, err) {
				return
			}
		}
		if err := s.ask(ctx, List, prefix, true); err != nil {
			yield(checkpoint.Object{}, err)
		}
	}
}

// Delete implements checkpoint.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	return s.around(ctx, Delete, name, func() error { return s.Store.Delete(ctx, name) })
}

// ErrDead is what a store says after the process that used it is meant to have died.
var ErrDead = errors.New("the process is dead")

// Kill arms s so that the process dies at the k-th operation: without its effect, or
// with it but without the response.
func (s *Store) Kill(k int, effect bool) {
	var mu sync.Mutex
	started, dead := 0, false
	s.Before(func(context.Context, Op, string) error {
		mu.Lock()
		defer mu.Unlock()
		if started++; dead || started > k || started == k && !effect {
			dead = true
			return ErrDead
		}
		return nil
	})
	s.After(func(context.Context, Op, string) error {
		mu.Lock()
		defer mu.Unlock()
		if dead || started >= k {
			dead = true
			return ErrDead
		}
		return nil
	})
}

// Hang returns a hook that blocks operations for which match is true until their
// context is done or release is closed.
func Hang(match func(op Op, name string) bool, release <-chan struct{}) Hook {
	return func(ctx context.Context, op Op, name string) error {
		if !match(op, name) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-release:
			return nil
		}
	}
}

// Stall is as Hang, but deaf to the context, as a system call on a dead disk is.
func Stall(match func(op Op, name string) bool, release <-chan struct{}) Hook {
	return func(_ context.Context, op Op, name string) error {
		if match(op, name) {
			<-release
		}
		return nil
	}
}

// Truncate cuts an object to n bytes.
func Truncate(store checkpoint.Store, name string, n int) error {
	return tamper(store, name, func(b []byte) []byte { return b[:min(n, len(b))] })
}

// FlipBit flips one bit of an object, counted from its beginning.
func FlipBit(store checkpoint.Store, name string, bit int) error {
	return tamper(store, name, func(b []byte) []byte {
		b[bit/8] ^= 1 << (bit % 8)
		return b
	})
}

// Remove deletes an object and fails if there is none.
func Remove(store checkpoint.Store, name string) error {
	if _, err := store.Get(context.Background(), name); err != nil {
		return err
	}
	return store.Delete(context.Background(), name)
}

func tamper(store checkpoint.Store, name string, change func([]byte) []byte) error {
	switch s := store.(type) {
	case *Store:
		return tamper(s.Store, name, change)
	case *checkpoint.Mem:
		if !s.Tamper(name, change) {
			return fmt.Errorf("damage %s: %w", name, checkpoint.ErrNotFound)
		}
		return nil
	case *checkpoint.Dir:
		file := filepath.Join(s.Path(), filepath.FromSlash(name))
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return os.WriteFile(file, change(bytes.Clone(b)), 0o644)
	default:
		return fmt.Errorf("damage %s: no way into a %T", name, store)
	}
}
