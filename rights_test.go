package weir_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/txn"
)

// guarded is a broker that asks who one is and what one may do.
type guarded struct {
	t        *testing.T
	c        *kfake.Cluster
	adm      *kadm.Client
	root     *kgo.Client
	password atomic.Value // of the user weir
	net      severed
}

const kept = "kept-by-the-fake"

func newGuarded(t *testing.T, opts ...kfake.Opt) *guarded {
	t.Helper()
	opts = append([]kfake.Opt{
		kfake.NumBrokers(1), kfake.SeedTopics(1, "in", "out", "dead"),
		kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "root", "root"), kfake.User("PLAIN", "weir", kept),
	}, opts...)
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	g := &guarded{t: t, c: c}
	g.password.Store("secret")
	// The fake only hangs up on a wrong password. Kafka says what is wrong.
	c.ControlKey(int16(kmsg.SASLAuthenticate), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		req := kreq.(*kmsg.SASLAuthenticateRequest)
		user, pass, _ := bytes.Cut(bytes.TrimPrefix(req.SASLAuthBytes, []byte{0}), []byte{0})
		switch {
		case string(user) != "weir":
		case string(pass) == g.password.Load():
			req.SASLAuthBytes = []byte("\x00weir\x00" + kept)
		default:
			resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
			resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
			resp.ErrorMessage = kmsg.StringPtr("Authentication failed: Invalid username or password")
			return resp, nil, true
		}
		return nil, nil, false
	})
	g.root, err = kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.SASL(plain.Auth{User: "root", Pass: "root"}.AsMechanism()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.root.Close)
	g.adm = kadm.NewClient(g.root)
	return g
}

func (g *guarded) produce(values ...string) {
	g.t.Helper()
	for _, v := range values {
		if err := g.root.ProduceSync(g.t.Context(), &kgo.Record{Topic: "in", Value: []byte(v)}).FirstErr(); err != nil {
			g.t.Fatal(err)
		}
	}
}

type right struct {
	op       kmsg.ACLOperation
	on, name string
	prefixed bool
}

func (r right) acl() *kadm.ACLBuilder {
	b := kadm.NewACLs().Allow("User:weir").AllowHosts("*").Operations(r.op)
	p := kadm.ACLPatternLiteral
	if r.prefixed {
		p = kadm.ACLPatternPrefixed
	}
	b = b.ResourcePatternType(p)
	switch r.on {
	case "topic":
		return b.Topics(r.name)
	case "group":
		return b.Groups(r.name)
	case "transactional-id":
		return b.TransactionalIDs(r.name)
	}
	return b.Clusters()
}

func (g *guarded) grant(rs ...right) {
	g.t.Helper()
	for _, r := range rs {
		made, err := g.adm.CreateACLs(g.t.Context(), r.acl())
		if err != nil || made[0].Err != nil {
			g.t.Fatal(err, made)
		}
	}
}

func (g *guarded) revoke(r right) {
	g.t.Helper()
	gone, err := g.adm.DeleteACLs(g.t.Context(), r.acl())
	if err != nil || len(gone) != 1 || len(gone[0].Deleted) != 1 {
		g.t.Fatal(err, gone)
	}
}

// documented returns the rights that the example in docs/operations.md grants, with the names
// of the tests' app.
func documented(t *testing.T) []right {
	t.Helper()
	text, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	names := strings.NewReplacer("wordcount", "app", "lines", "in", "counts", "out")
	var rs []right
	for line := range strings.Lines(string(text)) {
		args, ok := strings.CutPrefix(strings.TrimSpace(line), "acl --")
		if !ok {
			continue
		}
		var of []right
		var ops []kmsg.ACLOperation
		for _, arg := range strings.Split(args, " --") {
			name, value, _ := strings.Cut(arg, " ")
			switch name {
			case "operation":
				op, err := kmsg.ParseACLOperation(value)
				if err != nil {
					t.Fatal(err)
				}
				ops = append(ops, op)
			case "resource-pattern-type":
				of[0].prefixed = value == "prefixed"
			default:
				of = append(of, right{on: name, name: names.Replace(value)})
			}
		}
		for _, op := range ops {
			r := of[0]
			r.op = op
			rs = append(rs, r)
		}
	}
	return rs
}

func (g *guarded) as(pass func() string) weir.Option {
	return weir.KafkaOptions(kgo.Dialer(g.net.dial), kgo.SASL(plain.Plain(func(context.Context) (plain.Auth, error) {
		return plain.Auth{User: "weir", Pass: pass()}, nil
	})))
}

func secret() string { return "secret" }

func (g *guarded) start(pass func() string, opts ...weir.Option) *running {
	return start(g.t, "app", g.c.ListenAddrs(), sums(weir.DeadLetter), append([]weir.Option{weir.Store(checkpoint.NewMem()), weir.DeadLetters("dead"), g.as(pass)}, opts...)...)
}

var deadLetters = right{op: kmsg.ACLOperationWrite, on: "topic", name: "dead"}

// values returns what a read_committed reader finds in a topic now, sorted.
func (g *guarded) values(topic string) []string {
	g.t.Helper()
	ends, err := g.adm.ListCommittedOffsets(g.t.Context(), topic)
	if err != nil {
		g.t.Fatal(err)
	}
	end, _ := ends.Lookup(topic, 0)
	cl, err := kgo.NewClient(kgo.SeedBrokers(g.c.ListenAddrs()...), kgo.SASL(plain.Auth{User: "root", Pass: "root"}.AsMechanism()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		g.t.Fatal(err)
	}
	defer cl.Close()
	var found []*kgo.Record
	for next := int64(0); next < end.Offset; {
		fs := cl.PollFetches(g.t.Context())
		if err := fs.Err(); err != nil {
			g.t.Fatal(err)
		}
		fs.EachRecord(func(r *kgo.Record) {
			if next = r.Offset + 1; !r.Attrs.IsControl() {
				found = append(found, r)
			}
		})
	}
	return values(found)
}

// TestAppGoesOnWithANewPassword changes the password and cuts all connections.
func TestAppGoesOnWithANewPassword(t *testing.T) {
	g := newGuarded(t)
	g.grant(append(documented(t), deadLetters)...)
	store := checkpoint.NewMem()
	r := g.start(func() string { return g.password.Load().(string) }, weir.Store(store))
	g.produce("a:1", "x:y")
	await(r, 1, any1[event.CheckpointCommitted])
	g.password.Store("another")
	g.net.cut()
	g.produce("a:2", "x:z")
	await(r, 2, any1[event.DeadLettered])
	r.stop()
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	if out, dead := g.values("out"), g.values("dead"); !slices.Equal(out, []string{"a:1", "a:3"}) || !slices.Equal(dead, []string{"x:y", "x:z"}) {
		t.Errorf("out %q, dead letters %q", out, dead)
	}
}

// TestAppWithAnOldPasswordEndsAndSaysSo leaves a client with a password that the brokers refuse
// from now on, which alone would ask for ever.
func TestAppWithAnOldPasswordEndsAndSaysSo(t *testing.T) {
	const says = "user or password"
	g := newGuarded(t)
	g.grant(append(documented(t), deadLetters)...)
	store := checkpoint.NewMem()
	few := weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 2, Quiet: time.Minute})
	r := g.start(secret, weir.Store(store), few)
	g.produce("a:1")
	await(r, 1, any1[event.CheckpointCommitted])
	g.password.Store("another")
	g.net.cut()
	g.produce("a:2")
	err := r.wait()
	wantError(t, err, "gave up after 2 restarts", "log in to broker 127.0.0.1:", "SASL_AUTHENTICATION_FAILED", says)
	var te *txn.Error
	if !errors.As(err, &te) || te.Kind != txn.Transient {
		t.Errorf("error %#v", te)
	}
	first := await(r, 1, any1[event.Restarting])
	wantError(t, first.Err, "SASL_AUTHENTICATION_FAILED", says)
	if strings.Contains(first.Err.Error(), "silent") {
		t.Errorf("it names another cause: %v", first.Err)
	}

	err = g.start(secret, weir.Store(store)).wait()
	wantError(t, err, "log in to Kafka at 127.0.0.1:", "SASL_AUTHENTICATION_FAILED", says)

	r = g.start(func() string { return "another" }, weir.Store(store), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	if out := g.values("out"); !slices.Equal(out, []string{"a:1", "a:3"}) {
		t.Errorf("out %q", out)
	}
}

// TestDocumentedRightsAreAllThatAnAppNeeds grants what the example in the docs grants, and lets
// an app live: with dead letters, a savepoint, a restart inside the process and one of it.
func TestDocumentedRightsAreAllThatAnAppNeeds(t *testing.T) {
	g := newGuarded(t)
	g.grant(append(documented(t), deadLetters)...)
	dir, store := t.TempDir(), checkpoint.NewMem()
	var app *weir.App
	live := func(opts ...weir.Option) *running {
		return start(t, "app", g.c.ListenAddrs(), func(a *weir.App) { app = a; sums(weir.DeadLetter)(a) },
			append(opts, weir.DeadLetters("dead"), g.as(secret))...)
	}
	r := live(weir.Store(store))
	g.produce("a:1", "x:y")
	await(r, 1, any1[event.DeadLettered])
	await(r, 1, any1[event.CheckpointCommitted])
	g.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.UnknownMemberID, Count: 1})
	g.produce("a:2", "x:z")
	await(r, 1, any1[event.Restarting])
	await(r, 2, any1[event.Restored])
	for begun := time.Now(); len(g.values("dead")) < 2; { // committed, so the savepoint has them
		if time.Since(begun) > deadline {
			t.Fatalf("nothing is committed after the restart; events: %v", r.list())
		}
	}
	if _, err := app.StopWithSavepoint(t.Context(), dir, "last"); err != nil {
		t.Fatal(err)
	}
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	for i, opts := range [][]weir.Option{
		{weir.Store(store)},
		{weir.Store(checkpoint.NewMem()), weir.FromSavepoint(dir, "last")},
	} {
		if i == 1 {
			if _, err := g.adm.DeleteGroup(t.Context(), "app"); err != nil {
				t.Fatal(err)
			}
			if _, err := g.adm.DeleteTopics(t.Context(), "app-checkpoints"); err != nil {
				t.Fatal(err)
			}
		}
		g.produce("a:3")
		if err := live(append(opts, weir.Drain())...).wait(); err != nil {
			t.Fatal(err)
		}
	}
	// The savepoint is from before the first 3.
	if out, dead := g.values("out"), g.values("dead"); !slices.Equal(out, []string{"a:1", "a:3", "a:6", "a:6", "a:9"}) || !slices.Equal(dead, []string{"x:y", "x:z"}) {
		t.Errorf("out %q, dead letters %q", out, dead)
	}
}

// TestRightThatIsMissingIsNamed takes each right in turn, before the start and from an app that
// runs. The topic is there: to create it is another right.
func TestRightThatIsMissingIsNamed(t *testing.T) {
	for _, c := range []struct {
		of              right
		starts, running []string // what the error says
	}{
		{right{op: kmsg.ACLOperationRead, on: "topic", name: "in"},
			[]string{`read topic "in"`, "--operation Read --topic in"}, []string{"in", "TOPIC_AUTHORIZATION_FAILED", "grant Read on the topic"}},
		{right{op: kmsg.ACLOperationWrite, on: "topic", name: "out"},
			[]string{`write topic "out"`, "--operation Write --topic out"}, []string{"topic out", "TOPIC_AUTHORIZATION_FAILED", "grant Write"}},
		{deadLetters,
			[]string{`write topic "dead"`, "--operation Write --topic dead"}, []string{"topic dead", "TOPIC_AUTHORIZATION_FAILED", "grant Write"}},
		{right{op: kmsg.ACLOperationWrite, on: "topic", name: "app-checkpoints"},
			[]string{`write topic "app-checkpoints"`, "--operation Write --topic app-checkpoints"}, []string{"topic app-checkpoints", "TOPIC_AUTHORIZATION_FAILED", "grant Write"}},
		{right{op: kmsg.ACLOperationRead, on: "topic", name: "app-checkpoints"},
			[]string{`read topic "app-checkpoints"`, "--operation Read --topic app-checkpoints"}, nil},
		{right{op: kmsg.ACLOperationRead, on: "group", name: "app"},
			[]string{`read group "app"`, "--operation Read --group app"}, []string{"GROUP_AUTHORIZATION_FAILED", `grant Read on group "app"`}},
		{right{op: kmsg.ACLOperationWrite, on: "transactional-id", name: "app/", prefixed: true},
			[]string{`write transactional-id "app/a"`, "--operation Write --transactional-id app/ --resource-pattern-type prefixed"},
			[]string{"TRANSACTIONAL_ID_AUTHORIZATION_FAILED", `grant Write on transactional id "app/a"`, "prefix"}},
	} {
		t.Run(fmt.Sprint(c.of.op, " ", c.of.on, " ", c.of.name), func(t *testing.T) {
			g := newGuarded(t)
			g.grant(append(documented(t), deadLetters)...)
			if err := txn.EnsureCommitTopic(t.Context(), g.adm, "app-checkpoints", -1); err != nil {
				t.Fatal(err)
			}
			if c.running != nil {
				r := g.start(secret)
				g.produce("a:1", "x:y")
				await(r, 1, any1[event.CheckpointCommitted])
				g.revoke(c.of)
				g.produce("a:2", "x:z")
				wantError(t, r.wait(), c.running...)
			} else {
				g.revoke(c.of)
			}
			err := g.start(secret).wait()
			wantError(t, err, c.starts...)
			if strings.Contains(err.Error(), "Describe") {
				t.Errorf("the right that it names is not enough: %v", err)
			}
		})
	}
}
