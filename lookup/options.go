package lookup

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// The defaults of the options.
const (
	DefaultBatchSize      = 128
	DefaultInFlight       = 4
	DefaultSingleInFlight = 64 // where each key is a call of its own
	DefaultWaiting        = 4096
	DefaultTimeout        = 5 * time.Second
	DefaultGiveUpAfter    = 30 * time.Second
)

// What the options allow at most.
const (
	mostInFlight = 1 << 20
	mostWaiting  = 1 << 30
	mostCached   = math.MaxInt32
)

// Option changes how weir.Lookup looks up.
type Option interface{ apply(*Settings) }

type option func(*Settings)

func (f option) apply(s *Settings) { f(s) }

// Settings are what options set, for the runtime.
type Settings struct {
	BatchSize    int
	InFlight     int // 0: the default, which depends on the source
	Waiting      int
	Timeout      time.Duration
	GiveUpAfter  time.Duration
	CacheEntries int // 0: no cache
	CacheTTL     time.Duration
	OnError      func(error) error

	errs []error
}

// NewSettings applies options to the defaults.
func NewSettings(opts []Option) Settings {
	s := Settings{
		BatchSize: DefaultBatchSize, Waiting: DefaultWaiting, Timeout: DefaultTimeout, GiveUpAfter: DefaultGiveUpAfter,
		OnError: func(err error) error { return err },
	}
	for i, o := range opts {
		if o == nil {
			s.bad("lookup: option %d is nil", i+1)
			continue
		}
		o.apply(&s)
	}
	return s
}

// Check reports every mistake of the options.
func (s Settings) Check() error { return errors.Join(s.errs...) }

// String lists what differs from the defaults, but for OnError.
func (s Settings) String() string {
	var parts []string
	if s.CacheEntries > 0 {
		parts = append(parts, fmt.Sprintf("%d cached for %v", s.CacheEntries, s.CacheTTL))
	}
	if s.BatchSize != DefaultBatchSize {
		parts = append(parts, fmt.Sprintf("batches of %d", s.BatchSize))
	}
	if s.InFlight != 0 {
		parts = append(parts, fmt.Sprintf("%d in flight", s.InFlight))
	}
	if s.Waiting != DefaultWaiting {
		parts = append(parts, fmt.Sprintf("%d waiting", s.Waiting))
	}
	if s.Timeout != DefaultTimeout {
		parts = append(parts, fmt.Sprintf("timeout %v", s.Timeout))
	}
	if s.GiveUpAfter != DefaultGiveUpAfter {
		parts = append(parts, fmt.Sprintf("given up after %v", s.GiveUpAfter))
	}
	return strings.Join(parts, ", ")
}

func (s *Settings) bad(format string, args ...any) {
	s.errs = append(s.errs, fmt.Errorf(format, args...))
}

// BatchSize is how many keys are looked up in one call at most: for Redis, in one
// pipeline. Default 128. It means nothing for [Each].
func BatchSize(keys int) Option {
	return option(func(s *Settings) {
		if s.BatchSize = keys; keys < 1 {
			s.bad("lookup.BatchSize(%d): want at least 1", keys)
		}
	})
}

// InFlight is how many calls each subtask has under way at most. As many batches again may
// be ready to go; beyond that the subtask takes no more input. A barrier waits for them.
// Default 4, and 64 for [Each].
func InFlight(calls int) Option {
	return option(func(s *Settings) {
		if s.InFlight = calls; calls < 1 || calls > mostInFlight {
			s.bad("lookup.InFlight(%d): want at least 1, and at most %d", calls, mostInFlight)
		}
	})
}

// Waiting is how many records may wait on each subtask, for their own answer or for that
// of one before them. Beyond that the subtask takes no more input. Default 4096.
func Waiting(records int) Option {
	return option(func(s *Settings) {
		if s.Waiting = records; records < 1 || records > mostWaiting {
			s.bad("lookup.Waiting(%d): want at least 1, and at most %d", records, mostWaiting)
		}
	})
}

// Timeout bounds one call. One that takes longer is repeated. Default 5 s.
func Timeout(d time.Duration) Option {
	return option(func(s *Settings) {
		if s.Timeout = d; d <= 0 {
			s.bad("lookup.Timeout(%v): want more than 0", d)
		}
	})
}

// GiveUpAfter is how long a call is repeated whose errors are [Passing], counted from its
// first try; then the app restarts from its last checkpoint. A barrier waits as long, and
// for a last call: together with [Timeout] it has to be less than weir.CheckpointTimeout. It
// may wait twice as long, for what was ready to go when it came.
// Default 30 s.
func GiveUpAfter(d time.Duration) Option {
	return option(func(s *Settings) {
		if s.GiveUpAfter = d; d < 0 {
			s.bad("lookup.GiveUpAfter(%v): want 0 or more", d)
		}
	})
}

// Cache keeps answers: at most that many on each subtask, those that were used last, and
// no longer than ttl after they were asked for. That nothing was found is an answer as
// well; an error is none. A record also shares a call that is under way for its key.
// Nothing of it survives a restart. A key that is a string is copied; one that only holds
// strings keeps in memory what they are pieces of. Default: no cache; every record is answered by a call
// that begins after it came, which it shares with the other records of the batch.
func Cache(entries int, ttl time.Duration) Option {
	return option(func(s *Settings) {
		if s.CacheEntries, s.CacheTTL = entries, ttl; entries < 1 || entries > mostCached || ttl <= 0 {
			s.bad("lookup.Cache(%d, %v): want from 1 to %d entries, and a time of more than 0", entries, ttl, mostCached)
		}
	})
}

// OnError sets what happens to a record whose key can't be looked up: weir.Skip,
// weir.DeadLetter, or any function that turns the error into the one that counts; nil skips
// the record. Errors of the source as a whole don't come here. Default: the app stops and
// names the record.
func OnError(f func(error) error) Option {
	return option(func(s *Settings) {
		if s.OnError = f; f == nil {
			s.bad("lookup.OnError(nil)")
		}
	})
}
