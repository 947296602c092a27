package sim

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// script is all that is decided about a run before it begins. Its text form is what a
// failure prints and what testdata/record holds.
type script struct {
	seed       uint64 // of the input and of the jitter
	brokers    int
	partitions int // of the input topic
	accounts   int
	instances  int           // named a, b, c
	latency    time.Duration // the longest that a frame is under way
	v1         bool          // brokers with transaction.version 1
	ballast    int           // bytes by which the state of an account is larger than it has to be
	lookup     bool          // the app looks up the branch of each transfer
	vault      bool          // the app has a two-phase sink
	rules      bool          // the app hears a broadcast stream
	// copying is how many bytes a second the local store copies; 0: no bound. What is not
	// copied yet is read where it is.
	copying int
	lives   []settings // of an instance's lives, in turn
	steps   []step     // by time
	// expect is what an error has to say that a life ends with, for a script of something
	// that can't go on. Empty: everything has to be processed in the end.
	expect string
}

// settings are the options of one life.
type settings struct {
	parallelism int
	backend     string // memory; pebble, with the directory of the life before; or fresh
	every       time.Duration
	records     int64 // AfterRecords; 0: no
	timeout     time.Duration
	txn         time.Duration
	session     time.Duration
	tolerable   int
	retain      int
	held        int64 // bytes
	// unaligned says that checkpoints may be, and align for how long they are not.
	unaligned bool
	align     time.Duration
	drain     bool // it ends when it has processed what was there at its begin
}

// step is something that happens at a time.
type step struct {
	at   time.Duration
	verb string
	who  string        // instance
	on   string        // request or store operation that it waits for or acts on
	mode string        // what of several ways
	n    int           // at the n-th, or how often, or how many
	dur  time.Duration // for how long, or after what time
}

// The verbs. A step with on waits for the n-th such request or operation of the instance.
const (
	verbFeed  = "feed"  // n records of input; mode plain, commit (in a transaction) or abort
	verbKill  = "kill"  // kill -9, restarted after dur; mode before or after the request
	verbStop  = "stop"  // SIGTERM, restarted after dur; on=restart: n ms into the pause before its next restart
	verbPause = "pause" // SIGSTOP for dur; mode before or after the request
	verbCut   = "cut"   // no network for dur; mode silent, reset, deaf (from an answer on) or mute (no requests)
	verbLose  = "lose"  // n requests are applied and their answers lost
	verbDrop  = "drop"  // n requests are lost
	verbDelay = "delay" // n frames take dur longer; mode request or answer
	verbSlow  = "slow"  // handlers take n milliseconds for each record, for dur; mode one: for one bucket's
	// verbRegistry is about what the app looks up in, for dur; mode slow (each call takes up to
	// n milliseconds), hang or fail (n percent of calls).
	verbRegistry = "registry"
	verbDrag     = "drag"   // handlers of every life take n milliseconds for each record, for dur
	verbStore    = "store"  // n store operations; mode fail, unknown (done, error), hang, stall, slow or flip (a bit of what is read)
	verbBroker   = "broker" // n requests are answered with the error mode
	verbEvict    = "evict"  // the group takes the instance for gone
	verbMove     = "move"   // leaders move; mode leaders or coordinators
	verbSave     = "save"   // a savepoint
	verbFence    = "fence"  // somebody takes the instance's transactional id, and goes
	verbStorm    = "storm"  // n evictions, of one instance after the other, dur apart
	verbClock    = "clock"  // the machine's clock is set; mode ahead or back, by dur
	verbFlaky    = "flaky"  // n percent of requests are answered with the error mode, for dur
	verbGrow     = "grow"   // n partitions are added to the input
	verbTrim     = "trim"   // input is deleted; mode committed (what is) or all
	// verbRecreate deletes the input and makes it again; mode refused: when the app refuses to go
	// on, it is told to keep its state, else that is what the script is about.
	verbRecreate = "recreate"
	// verbReceiver is about the receiver of the write-ahead sink; mode failover (n steps are
	// lost), down (for dur), lose (n answers) or slow (each step takes dur).
	verbReceiver = "receiver"
	// verbVault is about the receiver of the two-phase sink; mode down (for dur) or forget (the
	// next n transactions that are to be committed).
	verbVault = "vault"
	verbRule  = "rule" // n rules
	// verbRehome lets the app go on from a savepoint, see rehome_test.go; mode offsets, app or
	// rename; on=kill: nobody takes it as it stops, but all are killed and it is made then.
	verbRehome = "rehome"
	// verbOutage takes the checkpoint store away from everybody, for dur; mode fail or hang.
	verbOutage = "outage"
)

// isFault tells whether the rest of the script makes sense without the step.
func (s step) isFault() bool {
	return s.verb != verbFeed && s.verb != verbGrow && (s.verb != verbRecreate || s.mode == "refused")
}

func (s step) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "at %v %s", s.at, s.verb)
	put := func(name string, v any, ok bool) {
		if ok {
			fmt.Fprintf(&b, " %s=%v", name, v)
		}
	}
	put("who", s.who, s.who != "")
	put("on", s.on, s.on != "")
	put("mode", s.mode, s.mode != "")
	put("n", s.n, s.n != 0)
	put("for", s.dur, s.dur != 0)
	return b.String()
}

func (s settings) String() string {
	return fmt.Sprintf("life parallelism=%d backend=%s every=%v records=%d timeout=%v txn=%v session=%v tolerable=%d retain=%d held=%d unaligned=%v align=%v drain=%v",
		s.parallelism, s.backend, s.every, s.records, s.timeout, s.txn, s.session, s.tolerable, s.retain, s.held, s.unaligned, s.align, s.drain)
}

// String is the text form, which parse reads.
func (sc script) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "world seed=%d brokers=%d partitions=%d accounts=%d instances=%d latency=%v v1=%v ballast=%d",
		sc.seed, sc.brokers, sc.partitions, sc.accounts, sc.instances, sc.latency, sc.v1, sc.ballast)
	if sc.lookup {
		b.WriteString(" lookup=true")
	}
	if sc.vault {
		b.WriteString(" vault=true")
	}
	if sc.rules {
		b.WriteString(" rules=true")
	}
	if sc.copying > 0 {
		fmt.Fprintf(&b, " copying=%d", sc.copying)
	}
	b.WriteByte('\n')
	for _, l := range sc.lives {
		fmt.Fprintln(&b, l)
	}
	for _, s := range sc.steps {
		fmt.Fprintln(&b, s)
	}
	if sc.expect != "" {
		fmt.Fprintln(&b, "expect", sc.expect)
	}
	return b.String()
}

// parse reads the text form. Lines that begin with # and empty ones are comments.
func parse(text string) (sc script, err error) {
	for i, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		if e := sc.parseLine(line); e != nil {
			err = errors.Join(err, fmt.Errorf("line %d: %q: %w", i+1, line, e))
		}
	}
	if err == nil && (sc.brokers < 1 || sc.partitions < 1 || sc.accounts < 1 || sc.instances < 1 || len(sc.lives) == 0) {
		err = errors.New("a script needs a world line and a life line")
	}
	slices.SortStableFunc(sc.steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
	return sc, err
}

func (sc *script) parseLine(line string) error {
	words := strings.Fields(line)
	switch words[0] {
	case "world":
		return fields(words[1:], map[string]any{
			"seed": &sc.seed, "brokers": &sc.brokers, "partitions": &sc.partitions, "accounts": &sc.accounts,
			"instances": &sc.instances, "latency": &sc.latency, "v1": &sc.v1, "ballast": &sc.ballast, "lookup": &sc.lookup, "vault": &sc.vault, "rules": &sc.rules, "copying": &sc.copying,
		})
	case "life":
		var l settings
		sc.lives = append(sc.lives, l)
		p := &sc.lives[len(sc.lives)-1]
		return fields(words[1:], map[string]any{
			"parallelism": &p.parallelism, "backend": &p.backend, "every": &p.every, "records": &p.records, "timeout": &p.timeout,
			"txn": &p.txn, "session": &p.session, "tolerable": &p.tolerable, "retain": &p.retain, "held": &p.held,
			"unaligned": &p.unaligned, "align": &p.align, "drain": &p.drain,
		})
	case "expect":
		sc.expect = strings.Join(words[1:], " ")
		return nil
	case "at":
		if len(words) < 3 {
			return errors.New("want: at TIME VERB")
		}
		at, err := time.ParseDuration(words[1])
		if err != nil {
			return err
		}
		s := step{at: at, verb: words[2]}
		err = fields(words[3:], map[string]any{"who": &s.who, "on": &s.on, "mode": &s.mode, "n": &s.n, "for": &s.dur})
		sc.steps = append(sc.steps, s)
		return err
	}
	return errors.New("want world, life, at or expect")
}

// fields sets what words of the form name=value name.
func fields(words []string, into map[string]any) error {
	for _, w := range words {
		name, value, _ := strings.Cut(w, "=")
		var err error
		switch p := into[name].(type) {
		case *string:
			*p = value
		case *int:
			*p, err = strconv.Atoi(value)
		case *int64:
			*p, err = strconv.ParseInt(value, 10, 64)
		case *uint64:
			*p, err = strconv.ParseUint(value, 10, 64)
		case *bool:
			*p, err = strconv.ParseBool(value)
		case *time.Duration:
			*p, err = time.ParseDuration(value)
		default:
			err = fmt.Errorf("no such field: %s", name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// only returns the script with those faults that keep says, by their number, and all of
// the input.
func (sc script) only(keep func(fault int) bool) script {
	var steps []step
	i := 0
	for _, s := range sc.steps {
		if !s.isFault() || keep(i) {
			steps = append(steps, s)
		}
		if s.isFault() {
			i++
		}
	}
	sc.steps = steps
	return sc
}

func (sc script) faults() (n int) {
	for _, s := range sc.steps {
		if s.isFault() {
			n++
		}
	}
	return n
}

// metadataAge is how old an app's knowledge of partitions may become: short where some are
// added.
func (sc script) metadataAge() time.Duration {
	for _, s := range sc.steps {
		if s.verb == verbGrow {
			return 5 * time.Second
		}
	}
	return 5 * time.Minute
}

// requestKey returns the key of a request by its name, as in "EndTxn".
func requestKey(name string) (kmsg.Key, bool) {
	for k := range kmsg.Key(kmsg.MaxKey + 1) {
		if k.Name() == name {
			return k, true
		}
	}
	return -1, false
}
