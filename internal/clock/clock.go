package clock

import (
	"sync"
	"time"
)

// Clock tells the time and wakes at one. Any goroutine may use it.
type Clock interface {
	Now() time.Time
	// At calls f from a goroutine of its own once it is at, or soon if that has passed.
	// The function that it returns calls it off; f may be running already.
	At(at time.Time, f func()) (cancel func())
}

// System is the clock of the machine.
var System Clock = system{}

type system struct{}

func (system) Now() time.Time { return time.Now() }

func (system) At(at time.Time, f func()) func() {
	t := time.AfterFunc(time.Until(at), f)
	return func() { t.Stop() }
}

// Manual is a clock that stands until it is set. Use [NewManual].
type Manual struct {
	mu     sync.Mutex
	now    time.Time
	alarms map[*alarm]bool
}

type alarm struct {
	at time.Time
	f  func()
}

// NewManual returns a clock that stands at now.
func NewManual(now time.Time) *Manual { return &Manual{now: now, alarms: map[*alarm]bool{}} }

// Now implements [Clock].
func (m *Manual) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// At implements [Clock].
func (m *Manual) At(at time.Time, f func()) func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !at.After(m.now) {
		go f()
		return func() {}
	}
	a := &alarm{at, f}
	m.alarms[a] = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.alarms, a)
	}
}

// Advance moves the clock on and wakes whoever waits for the time that it passes.
func (m *Manual) Advance(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.now.Add(d)
	for a := range m.alarms {
		if !a.at.After(m.now) {
			delete(m.alarms, a)
			go a.f()
		}
	}
}

// Next is the earliest time that somebody waits for; ok is false if nobody waits.
func (m *Manual) Next() (at time.Time, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for a := range m.alarms {
		if !ok || a.at.Before(at) {
			at, ok = a.at, true
		}
	}
	return at, ok
}

// Waiting is how many wait for a time.
func (m *Manual) Waiting() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.alarms)
}
