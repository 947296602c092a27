package weir

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/weirstream/weir/internal/inside"
	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/processor"
)

// App is a topology under construction and then the service that runs it.
type App struct {
	name    string
	opts    options
	errs    []error
	nodes   []*node
	sources processor.Sources
	stages  []stage
	states  []processor.DeclaredState
	outputs []string
	ahead   []processor.WriteAhead
	inputs  []inside.Input
	shown   bool                          // operators show what they emit: it runs in a test, step by step
	job     atomic.Pointer[processor.Job] // once Run was called

	adminAddr atomic.Pointer[string] // where Run listens
}

// stage is a keyed stage as the runtime sees it, and whether anything uses it.
type stage interface {
	processor.Stage
	Idle() bool
	Unaligned() error
}

// node is one operator of the topology, for validation and for Describe.
type node struct {
	id, kind string
	detail   string
	where    string // file and line of the call that made it
	inputs   []*node
	values   reflect.Type // of what it emits or, if it is a sink, of what it is given; nil: of none
	ends     bool         // a sink: nothing follows
	used     bool
	timed    bool // a source that tells event time
	states   []string
	sides    []sideOutlet
	hears    []*node         // of a KeyBy: broadcast streams that operators behind it hear
	asks     lookup.Settings // of a look-up
}

// New begins an app. The name is its identity: consumer group, transactional ids
// and the checkpoint store carry it. Mistakes in the options are reported by
// [App.Run], [App.Validate] and [App.Describe], together with those of the topology.
func New(name string, opts ...Option) *App {
	a := &App{name: name, opts: defaults()}
	if name == "" {
		a.errs = append(a.errs, errors.New("the app has no name: weir.New(name, ...)"))
	}
	for i, o := range opts {
		if o == nil {
			a.errorf("weir.New: option %d is nil", i+1)
			continue
		}
		o.apply(&a.opts)
	}
	if a.opts.parallelism == byCores {
		a.opts.parallelism = min(runtime.GOMAXPROCS(0), max(a.opts.keyGroups, 1))
	}
	return a
}

// Name returns the app's name.
func (a *App) Name() string { return a.name }

// add appends an operator to the topology.
func (a *App) add(kind, id, detail string, inputs ...*node) *node {
	if a == nil {
		noApp(kind, id)
	}
	n := &node{id: id, kind: kind, detail: detail, where: caller(), inputs: inputs}
	for _, in := range inputs {
		in.used = true
	}
	if id == "" {
		a.errs = append(a.errs, fmt.Errorf("a %s operator has no ID (%s)", kind, n.where))
	} else if strings.ContainsFunc(id, func(r rune) bool { return r < ' ' || r == '|' }) {
		a.errs = append(a.errs, fmt.Errorf("operator %q: the ID holds a control character or '|' (%s)", id, n.where))
	}
	for _, other := range a.nodes {
		if id != "" && other.id == id {
			a.errs = append(a.errs, fmt.Errorf("operator %q: ID used twice (%s and %s)", id, other.where, n.where))
		}
	}
	a.nodes = append(a.nodes, n)
	return n
}

// noApp panics over an operator that no app would know of, and so could not report.
func noApp(kind, id string) {
	panic(fmt.Sprintf("weir: %s operator %q is on the zero Stream or Keyed, or on a nil App: want what weir.New, weir.From or an operator returned (%s)", kind, id, caller()))
}

func (a *App) errorf(format string, args ...any) {
	a.errs = append(a.errs, fmt.Errorf(format, args...))
}

// caller returns file and line of the first frame outside this package.
func caller() string {
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if !strings.HasPrefix(f.Function, "github.com/weirstream/weir.") || strings.HasSuffix(f.File, "_test.go") {
			return fmt.Sprintf("%s:%d", filepath.Base(f.File), f.Line)
		}
		if !more {
			return "unknown"
		}
	}
}

// BuildError lists everything that is wrong with an app.
type BuildError struct {
	App  string
	Errs []error
}

func (e *BuildError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "weir: %s: cannot build:", e.App)
	for _, err := range e.Errs {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			b.WriteString("\n  " + line)
		}
	}
	return b.String()
}

func (e *BuildError) Unwrap() []error { return e.Errs }

// Validate reports everything that is wrong with topology and options, as a
// [*BuildError]. It asks no broker and reads no state, but it opens the stores: a directory
// that is missing is made.
func (a *App) Validate() error {
	_, _, err := a.build()
	return err
}

// build validates the app and makes what the runtime needs.
func (a *App) build() (processor.Config, *processor.Plan, error) {
	cfg, errs := a.opts.config(a.name)
	errs = append(errs, a.errs...)
	if len(a.sources.Topics()) == 0 {
		errs = append(errs, errors.New("the topology reads nothing: it has no weir.From"))
	}
	topics := map[string]bool{}
	for _, t := range a.sources.Topics() {
		if topics[t] {
			errs = append(errs, fmt.Errorf("topic %q is read by two sources; read it once and use the stream twice", t))
		}
		topics[t] = true
	}
	for _, n := range a.nodes {
		if !n.ends && !n.used {
			errs = append(errs, fmt.Errorf("operator %q: nothing uses its output; end the stream with weir.To (%s)", n.id, n.where))
		}
	}
	if a.opts.deadLetters != "" && topics[a.opts.deadLetters] {
		errs = append(errs, fmt.Errorf("dead-letter topic %q is an input of the app: a bad record would come back for ever", a.opts.deadLetters))
	}
	if commits := cfg.CommitTopic; topics[commits] || slices.Contains(a.outputs, commits) || commits == a.opts.deadLetters {
		errs = append(errs, fmt.Errorf("commit topic %q: the app also has it as an input, an output or its dead-letter topic: give the commits one of their own with weir.CommitTopic", commits))
	}
	errs = append(errs, a.checkLookups(cfg)...)
	// Without outputs a transaction is opened only when it is committed.
	if len(a.outputs) > 0 || cfg.DeadLetterTopic != "" {
		errs = append(errs, a.opts.checkOpen(cfg.TransactionTimeout)...)
	}
	if cfg.Unaligned {
		for _, st := range a.stages {
			if err := st.Unaligned(); err != nil && !st.Idle() {
				i := slices.IndexFunc(a.nodes, func(n *node) bool { return n.id == st.StageID() })
				errs = append(errs, fmt.Errorf("operator %q: %w (%s)", st.StageID(), err, a.nodes[i].where))
			}
		}
	}
	if len(errs) > 0 {
		return cfg, nil, &BuildError{App: a.name, Errs: errs}
	}
	plan := &processor.Plan{Sources: &a.sources, States: a.states, WriteAhead: a.ahead, OutputTopics: slices.Compact(slices.Sorted(slices.Values(a.outputs)))}
	for _, st := range a.feeds() {
		if !st.Idle() {
			plan.Stages = append(plan.Stages, st)
		}
	}
	return cfg, plan, nil
}

// Run runs the app until ctx is cancelled: then it takes a last checkpoint, leaves
// the consumer group so that a standby takes over at once, and returns nil. With
// [Drain] it also returns nil when the input that was there at start is processed
// and committed.
//
// A stop that comes while the app starts or waits to restart is clean only if nothing was
// left to do: if the last commit is in doubt, the last checkpoint was not committed, or a
// write-ahead sink has not applied everything ([*UnappliedError]), the error says so.
//
// A failure that a restart can mend restarts the app inside Run from its last
// checkpoint, under the policy of [Restart]. What the checks at the start find, such as
// brokers or a store that can't be reached, is returned at once, and so is anything else: a
// [*BuildError] before anything began, a [*HandlerError] when user code failed, or
// an error that says what is known and what the operator can do. Nothing after the
// last committed checkpoint was published then.
//
// If [App.StopWithSavepoint] or a request to the admin endpoint stopped it, Run returns when
// that savepoint is complete or given up.
//
// Run runs an App once: a second call, at the same time or afterwards, is an error and
// changes nothing.
func (a *App) Run(ctx context.Context) error {
	cfg, plan, err := a.build()
	if err != nil {
		return err
	}
	job := processor.NewJob(cfg, plan)
	if !a.job.CompareAndSwap(nil, job) {
		return &RunError{App: a.name, Err: errors.New("its Run was called before, and an App runs once: make another one with weir.New and the same topology")}
	}
	defer job.AwaitSavepoint()
	if a.opts.admin != "" {
		end, err := a.serveAdmin(cfg)
		if err != nil {
			return &RunError{App: a.name, Err: err}
		}
		defer end()
	}
	if err := job.Run(ctx); err != nil {
		return &RunError{App: a.name, Err: err}
	}
	return nil
}

// RunError is what ended a run.
type RunError struct {
	App string
	Err error
}

func (e *RunError) Error() string { return fmt.Sprintf("weir: %s: %v", e.App, e.Err) }
func (e *RunError) Unwrap() error { return e.Err }

// Describe returns the plan as text: the operators in the order of their
// definition with their inputs and states, and the settings that matter for the
// guarantee. It ends with the mistakes, if there are any.
func (a *App) Describe() string {
	var b strings.Builder
	cfg, _, err := a.build()
	fmt.Fprintf(&b, "app %s: group %s, instance %s, %d key-groups, %d subtasks a stage\n", a.name, cfg.Group, cfg.Instance, cfg.KeyGroups, cfg.Parallelism)
	fmt.Fprintf(&b, "checkpoints: %s, %s, store %s, %d kept\n", describeTrigger(cfg.Trigger), describeAlignment(cfg), a.opts.store, cfg.Retain)
	for _, n := range a.nodes {
		fmt.Fprintf(&b, "  %-10s %s", n.kind, n.id)
		if n.detail != "" {
			fmt.Fprintf(&b, " [%s]", n.detail)
		}
		for i, in := range n.inputs {
			sep := ", "
			if i == 0 {
				sep = " <- "
			}
			b.WriteString(sep + in.id)
		}
		if len(n.states) > 0 {
			fmt.Fprintf(&b, " (state: %s)", strings.Join(n.states, ", "))
		}
		b.WriteByte('\n')
	}
	if err != nil {
		fmt.Fprintf(&b, "%v\n", err)
	}
	return b.String()
}

// dropped returns the set of operator IDs.
func dropped(ids []string) map[string]bool {
	m := map[string]bool{}
	for _, id := range ids {
		m[id] = true
	}
	return m
}
