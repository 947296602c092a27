package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Options say where Redis is and who we are there. One of three:
//
//   - one server: Addrs has its address;
//   - Sentinel: Addrs has the sentinels' addresses, Master the name that they know the
//     primary by;
//   - Cluster: Cluster is true, Addrs has some of the nodes' addresses.
type Options struct {
	Addrs   []string // host:port
	Master  string
	Cluster bool

	Username string // ACL user; empty: the default user
	Password string
	// SentinelUsername and SentinelPassword are for the sentinels, which have users of their
	// own.
	SentinelUsername string
	SentinelPassword string

	DB  int         // database; 0 on a cluster
	TLS *tls.Config // nil: no TLS

	// Prefix goes in front of every key, also of those that the sinks keep for themselves.
	// If it has a hash tag, such as "{shop}:", all keys are in one slot.
	Prefix string

	// Timeout bounds dialing, a read and a write each. A command without an answer by then
	// has an unknown outcome, and is sent again; [Upsert] then sends fewer together. Raise it
	// if one command alone takes longer. Default 3 s.
	Timeout time.Duration
}

// defaultTimeout is that of Options.
const defaultTimeout = 3 * time.Second

// check reports everything that is wrong.
func (o Options) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("redis: "+format, args...)) }
	if len(o.Addrs) == 0 {
		bad("no address: set Options.Addrs")
	}
	for _, a := range o.Addrs {
		if !strings.Contains(a, ":") {
			bad("address %q has no port", a)
		}
	}
	if o.Cluster && o.Master != "" {
		bad("Options.Cluster and Options.Master: a cluster has no sentinels, choose one")
	}
	if o.Cluster && o.DB != 0 {
		bad("database %d: a cluster has database 0 only", o.DB)
	}
	if !o.Cluster && o.Master == "" && len(o.Addrs) > 1 {
		bad("%d addresses of one server: set Options.Cluster for a cluster, Options.Master for sentinels", len(o.Addrs))
	}
	if o.Username != "" && o.Password == "" {
		// The client would not name the user, and be whoever the default user is.
		bad("user %q without a password: set Options.Password; a user that needs none takes any", o.Username)
	}
	if o.DB < 0 {
		bad("database %d", o.DB)
	}
	if o.Timeout < 0 {
		bad("timeout %v", o.Timeout)
	}
	// A prefix with half a hash tag would end it somewhere in the user's keys.
	if _, ok := hashTag([]byte(o.Prefix)); !ok && strings.ContainsAny(o.Prefix, "{}") {
		bad("prefix %q has a brace that is no hash tag such as {shop}", o.Prefix)
	}
	return errors.Join(errs...)
}

func (o Options) layout() layout { return layout{o.Prefix, o.Cluster} }

// String names the server for messages. It has no secrets.
func (o Options) String() string {
	s := strings.Join(o.Addrs, ",")
	switch {
	case o.Cluster:
		return "redis cluster " + s
	case o.Master != "":
		return "redis " + o.Master + " by sentinel " + s
	}
	return "redis " + s
}

// client makes a client. It connects when it is used.
func (o Options) client() goredis.UniversalClient {
	timeout := o.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	return goredis.NewUniversalClient(&goredis.UniversalOptions{
		Addrs: o.Addrs, MasterName: o.Master, IsClusterMode: o.Cluster,
		Username: o.Username, Password: o.Password,
		SentinelUsername: o.SentinelUsername, SentinelPassword: o.SentinelPassword,
		DB: o.DB, TLSConfig: o.TLS,
		DialTimeout: timeout, ReadTimeout: timeout, WriteTimeout: timeout,
		ContextTimeoutEnabled: true,
		// What is tried again, and in which order, is the sinks' business.
		MaxRetries: -1, DialerRetries: 1,
		// No server that the sinks are tested with has it.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		DisableIdentity:          true,
	})
}

// eachServer calls f for every server that takes writes, one after another.
func eachServer(ctx context.Context, cl goredis.UniversalClient, f func(ctx context.Context, c *goredis.Client) error) error {
	switch cl := cl.(type) {
	case *goredis.ClusterClient:
		turn := make(chan struct{}, 1) // the client calls them at once
		return cl.ForEachMaster(ctx, func(ctx context.Context, c *goredis.Client) error {
			turn <- struct{}{}
			defer func() { <-turn }()
			return f(ctx, c)
		})
	case *goredis.Client:
		return f(ctx, cl)
	}
	return fmt.Errorf("redis: unknown client %T", cl)
}

// Option changes a default of [Upsert] or [WriteAhead].
type Option interface{ apply(*settings) }

type option func(*settings)

func (f option) apply(s *settings) { f(s) }

// settings are what options set.
type settings struct {
	batchOps, batchBytes int
	inFlight             int
	giveUp               time.Duration
	unreachable          time.Duration // 0: without a limit
	deadLetters          bool
	refused              func(error) error
	versionsFor          time.Duration
	pendingBytes         int64
	keep                 time.Duration
	keepBytes            int64
	lookEvery            time.Duration // how often an idle applier looks at its markers
	now                  func() time.Time
	errs                 []error
}

func newSettings(opts []Option) settings {
	s := settings{
		batchOps: 512, batchBytes: 256 << 10, inFlight: 4, giveUp: time.Minute,
		refused: func(err error) error { return err }, versionsFor: 7 * 24 * time.Hour,
		pendingBytes: 64 << 20, keep: 30 * time.Second, keepBytes: 64 << 20, lookEvery: 5 * time.Second, now: time.Now,
	}
	for _, o := range opts {
		o.apply(&s)
	}
	return s
}

func (s *settings) bad(format string, args ...any) {
	s.errs = append(s.errs, fmt.Errorf("redis: "+format, args...))
}

// BatchSize bounds what goes to Redis at once. For [Upsert] that is a pipeline; for
// [WriteAhead] it is what one script applies, while Redis does nothing else. Default 512
// commands, 256 KiB. A command or transaction that is larger is a batch by itself.
func BatchSize(commands, bytes int) Option {
	return option(func(s *settings) {
		if s.batchOps, s.batchBytes = commands, bytes; commands < 1 || bytes < 1 {
			s.bad("BatchSize(%d, %d): both are at least 1", commands, bytes)
		}
	})
}

// InFlight is how many batches may be on their way or wait for it, for each subtask of
// [Upsert]; a Write waits beyond that. For [WriteAhead] it is how many full batches go in
// one pipeline. Default 4.
func InFlight(batches int) Option {
	return option(func(s *settings) {
		if s.inFlight = batches; batches < 1 {
			s.bad("InFlight(%d): at least 1", batches)
		}
	})
}

// GiveUpAfter is how long a sink keeps trying while Redis answers that it can't write:
// out of memory, a read-only replica, not durable enough, or a certificate that one side
// does not accept. After that the app stops with [ErrMemory], [ErrReadOnly],
// [ErrPersistence] or [ErrTLS]. A Redis that can't be reached is waited
// for as long as [UnreachableFor] says. Default one minute.
func GiveUpAfter(d time.Duration) Option {
	return option(func(s *settings) {
		if s.giveUp = d; d < 0 {
			s.bad("GiveUpAfter(%v)", d)
		}
	})
}

// UnreachableFor is how long a sink waits for a Redis that can't be reached. After that the
// app stops with [ErrUnavailable]; nothing is lost, the next start goes on. Default 0:
// without a limit. [Upsert] waits at the barrier, so with it the app stops with a
// barrier.FailedError when more checkpoints in a row have timed out than
// weir.TolerableFailures, which is after four minutes by default: set less than that to
// have the error name Redis.
func UnreachableFor(d time.Duration) Option {
	return option(func(s *settings) {
		if s.unreachable = d; d < 0 {
			s.bad("UnreachableFor(%v)", d)
		}
	})
}

// DeadLetters puts a command aside that fails for a reason of its own, such as a wrong
// type at its key, and goes on with the next one; otherwise the app stops with a
// [*CommandError]. Such commands are appended to a list, on a cluster to one for each slot:
// weir:dead:SINK of [Upsert], where a replay may repeat them; weir:dead:APP:SINK of
// [WriteAhead], in the step that moves the marker, so each is there once. [ParseDeadLetter]
// reads the elements. The lists are not bounded.
func DeadLetters() Option { return option(func(s *settings) { s.deadLetters = true }) }

// OnRefused says what becomes of a record whose commands can't be written, which is found
// before anything is sent: an error such as [ErrCrossSlot] or one of a codec. f is
// weir.Skip, weir.DeadLetter or another function from that error to the one that counts;
// nil drops the record, and nobody is told.
// Default: the app stops and names the record.
func OnRefused(f func(error) error) Option {
	return option(func(s *settings) {
		if s.refused = f; f == nil {
			s.bad("OnRefused(nil)")
		}
	})
}

// VersionsFor is how long the version of a key is kept after it was written under
// [Upserts.Guard], for [Upsert]. Default seven days.
func VersionsFor(d time.Duration) Option {
	return option(func(s *settings) {
		if s.versionsFor = d; d < time.Millisecond {
			s.bad("VersionsFor(%v): at least a millisecond", d)
		}
	})
}

// MaxPending bounds what is committed and not applied yet, for [WriteAhead]: beyond it
// no more input is processed, but what was processed is still committed. Default 64 MiB.
func MaxPending(bytes int64) Option {
	return option(func(s *settings) {
		if s.pendingBytes = bytes; bytes < 1 {
			s.bad("MaxPending(%d): at least 1", bytes)
		}
	})
}

// Keep is how long logs are kept after they were applied, and how many bytes of them at
// most, for [WriteAhead]: what a Redis may lose, by a failover or a crash, and is brought
// back. A log is given up when another one was applied d after it, or the logs after
// it have that many bytes. Each manifest lists the logs that are kept. Default 30 s, 64 MiB.
func Keep(d time.Duration, bytes int64) Option {
	return option(func(s *settings) {
		if s.keep, s.keepBytes = d, bytes; d < 0 || bytes < 0 {
			s.bad("Keep(%v, %d)", d, bytes)
		}
	})
}
