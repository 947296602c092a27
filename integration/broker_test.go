package integration

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestS20_TwoBrokersKilledInTurnUnderLoad keeps everything on two brokers and kills
// one after the other, each when the other has all there is.
func TestS20_TwoBrokersKilledInTurnUnderLoad(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 2)
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr())
	}
	w := newWorld(t, addrs, 50)
	w.args = []string{"-restarts", "-1"}
	w.feedOn(20, 20*time.Millisecond)
	p := w.launch()
	p.await("committed", 3, progressTime)
	t.Logf("first commit %v after exec, with the broker's default delay of a new group", p.all("committed")[0].at.Sub(p.begun).Round(time.Millisecond))

	// A killed broker registers again when its session lapsed; the rest may move twice.
	const backTime = 90 * time.Second
	for round, n := range []*node{nodes[0], nodes[1], nodes[0]} {
		n.kill(t)
		killed := time.Now()
		if round == 1 {
			p.killAtRandom(50 * time.Millisecond) // both at once
			p = w.launch()
		}
		w.outOfSync(n, backTime)
		if round == 1 {
			p = w.supervised(p, backTime)
		}
		p.next("committed", backTime)
		p.next("committed", backTime) // the one before may have been under way
		t.Logf("broker %d killed: committed again after %v", n.id, time.Since(killed).Round(100*time.Millisecond))
		n.restart(t)
		w.inSync(len(nodes), backTime)
		t.Logf("broker %d is back and in sync %v after its death", n.id, time.Since(killed).Round(100*time.Millisecond))
		p.next("committed", progressTime)
	}
	restarts := p.count("restarting")
	p.killAtRandom(50 * time.Millisecond)
	p = w.launch()
	t.Logf("restarted by SIGKILL: first commit %v after exec", p.await("committed", 1, progressTime).at.Sub(p.begun).Round(time.Millisecond))
	w.quench()
	w.finish(p)
	t.Logf("%d restarts inside the process", restarts)
}

// supervised starts the service again, as a supervisor does, while it ends because the
// group's coordinator could not be asked at its start.
func (w *world) supervised(p *process, within time.Duration) *process {
	w.t.Helper()
	for begun := time.Now(); ; p = w.launch() {
		p.until("first commit, or the end", within, func() bool {
			return p.over || slices.ContainsFunc(p.events, func(e happened) bool { return e.Event == "committed" })
		})
		if p.count("committed") > 0 {
			return p
		}
		if said := p.refuses("ask for "); !strings.Contains(said, "group") && !strings.Contains(said, "transactional id") || time.Since(begun) > within {
			w.t.Fatalf("%s ended\n%s", p.name, p.story())
		}
	}
}

// inSync waits until every partition has all its replicas.
func (w *world) inSync(replicas int, within time.Duration) {
	w.t.Helper()
	w.replicas(within, func(isr []int32) bool { return len(isr) == replicas })
}

// outOfSync waits until the cluster knows that the node is dead.
func (w *world) outOfSync(n *node, within time.Duration) {
	w.t.Helper()
	w.replicas(within, func(isr []int32) bool { return !slices.Contains(isr, int32(n.id)) })
}

// replicas waits until the replicas in sync of every partition are as is says.
func (w *world) replicas(within time.Duration, is func(isr []int32) bool) {
	w.t.Helper()
	eventually(w.t, within, func() error {
		topics, err := w.adm.ListTopicsWithInternal(w.t.Context())
		if err != nil {
			return err
		}
		var errs []error
		topics.EachPartition(func(p kadm.PartitionDetail) {
			if !is(p.ISR) {
				errs = append(errs, fmt.Errorf("%s/%d: %v in sync", p.Topic, p.Partition, p.ISR))
			}
		})
		return errors.Join(errs...)
	})
}

// TestS23_WhatTheBrokerRefusesIsNamedAndNothingIsLost has the broker refuse a record,
// a topic and a right.
func TestS23_WhatTheBrokerRefusesIsNamedAndNothingIsLost(t *testing.T) {
	addr := needBroker(t)
	t.Run("message too large", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, []string{addr}, 20)
		w.setTopic(w.out, "max.message.bytes", "4000")
		w.feedNow(200)
		p := w.launch()
		w.settleWith(p)
		fs := w.make(1)
		w.feedPadded(fs, 20_000)
		said := p.refuses("MESSAGE_TOO_LARGE", w.out, "max.message.bytes", "the last committed checkpoint is")
		t.Log(said)
		w.launch().refuses("MESSAGE_TOO_LARGE", w.out)
		w.judge(newModel().take(w.until(fs[0])...))
		w.feedNow(100)
		w.setTopic(w.out, "max.message.bytes", "100000")
		w.finish(w.launch())
	})
	t.Run("output topic missing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, []string{addr}, 20)
		w.feedNow(200)
		missing := w.out + "-that-nobody-made"
		p := w.launch("-out", missing)
		t.Log(p.refuses(fmt.Sprintf("topic %q does not exist", missing), "create it"))
		w.finish(w.launch())
	})
	t.Run("input topic missing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, []string{addr}, 20)
		w.feedNow(200)
		missing := w.in + "-that-nobody-made"
		p := w.launch("-in", missing)
		t.Log(p.refuses(fmt.Sprintf("topic %q does not exist", missing), "create it"))
		w.finish(w.launch())
	})
	t.Run("output topic deleted while the service runs", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, []string{addr}, 20)
		w.args = []string{"-transaction", "10s"}
		w.feedNow(200)
		p := w.launch()
		w.settleWith(p)
		resp, err := w.adm.DeleteTopics(t.Context(), w.out)
		if err == nil {
			err = resp.Error()
		}
		if err != nil {
			t.Fatal(err)
		}
		// The broker hears of it a moment after the controller did, and takes outputs until then.
		eventually(t, progressTime, func() error {
			topics, err := w.adm.ListTopics(t.Context(), w.out)
			if err == nil && !errors.Is(topics[w.out].Err, kerr.UnknownTopicOrPartition) {
				err = fmt.Errorf("the broker still has topic %s: %v", w.out, topics[w.out].Err)
			}
			return err
		})
		before := w.input()
		w.feedNow(100)
		t.Log(p.refuses(w.out))
		// What was in the topic is gone with it; what was not yet committed is not.
		eventually(t, progressTime, func() error {
			resp, err := w.adm.CreateTopic(t.Context(), outPartitions, -1, nil, w.out)
			return errors.Join(err, resp.Err)
		})
		w.elected(w.out)
		p = w.launch()
		w.settleWith(p)
		p.stop()
		m := newModel().take(before...)
		m.outputs = map[string][]string{}
		w.judge(m.take(w.since(before)...))
		w.quiet()
	})
	t.Run("not authorised", func(t *testing.T) {
		t.Parallel()
		for _, c := range []struct {
			what string
			on   func(w *world) *kadm.ACLBuilder
			op   kmsg.ACLOperation
			says func(w *world) []string
		}{
			{"to write the output", func(w *world) *kadm.ACLBuilder {
				return kadm.NewACLs().Topics(w.out)
			}, kmsg.ACLOperationWrite, func(w *world) []string { return []string{"not authorised to write topic", w.out, "kafka-acls"} }},
			{"to read the input", func(w *world) *kadm.ACLBuilder {
				return kadm.NewACLs().Topics(w.in)
			}, kmsg.ACLOperationRead, func(w *world) []string { return []string{"not authorised to read topic", w.in, "kafka-acls"} }},
			{"to read the group", func(w *world) *kadm.ACLBuilder {
				return kadm.NewACLs().Groups(w.app)
			}, kmsg.ACLOperationRead, func(w *world) []string { return []string{"not authorised to read group", w.app, "kafka-acls"} }},
			{"to use the transactional id", func(w *world) *kadm.ACLBuilder {
				return kadm.NewACLs().TransactionalIDs(w.app + "/one")
			}, kmsg.ACLOperationWrite, func(w *world) []string {
				return []string{"not authorised to write transactional-id", w.app + "/one", "kafka-acls"}
			}},
		} {
			t.Run(c.what, func(t *testing.T) {
				w := newWorld(t, []string{addr}, 20)
				w.feedNow(200)
				allow := w.deny(c.op, func() *kadm.ACLBuilder { return c.on(w) })
				t.Log(w.launch().refuses(c.says(w)...))
				allow()
				w.finish(w.launch())
			})
		}
		t.Run("to write the output any more", func(t *testing.T) {
			w := newWorld(t, []string{addr}, 20)
			w.feedNow(200)
			p := w.launch()
			w.settleWith(p)
			allow := w.deny(kmsg.ACLOperationWrite, func() *kadm.ACLBuilder { return kadm.NewACLs().Topics(w.out) })
			w.feedNow(100)
			t.Log(p.refuses("TOPIC_AUTHORIZATION_FAILED", w.out, "grant Write"))
			allow()
			w.finish(w.launch())
		})
	})
}

// deny takes a right from everybody and leaves them all others, until allow is
// called. on makes a builder that names the resource.
func (w *world) deny(op kmsg.ACLOperation, on func() *kadm.ACLBuilder) (allow func()) {
	w.t.Helper()
	const everybody = "User:ANONYMOUS" // the principal of a plain connection
	all := []*kadm.ACLBuilder{
		// Where a resource has any rule, what no rule allows is denied.
		on().Allow(everybody).AllowHosts().ResourcePatternType(kadm.ACLPatternLiteral).Operations(kmsg.ACLOperationAll),
		on().Deny(everybody).DenyHosts().ResourcePatternType(kadm.ACLPatternLiteral).Operations(op),
	}
	for _, b := range all {
		made, err := w.adm.CreateACLs(w.t.Context(), b)
		for _, m := range made {
			err = errors.Join(err, m.Err)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	// The broker hears of a rule a moment after the controller took it.
	known := func(want int) {
		w.t.Helper()
		eventually(w.t, progressTime, func() error {
			n := 0
			for _, b := range all {
				found, err := w.adm.DescribeACLs(w.t.Context(), b)
				if err != nil {
					return err
				}
				for _, f := range found {
					n += len(f.Described)
				}
			}
			if n != want {
				return fmt.Errorf("the broker knows %d rules, want %d", n, want)
			}
			return nil
		})
	}
	known(len(all))
	return func() {
		w.t.Helper()
		defer known(0)
		for _, b := range all {
			gone, err := w.adm.DeleteACLs(w.t.Context(), b)
			for _, g := range gone {
				err = errors.Join(err, g.Err)
			}
			if err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

func (w *world) setTopic(topic, key, value string) {
	w.t.Helper()
	resp, err := w.adm.AlterTopicConfigs(w.t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: key, Value: &value}}, topic)
	if err == nil {
		for _, r := range resp {
			err = errors.Join(err, r.Err)
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
	// The broker hears of it a moment after the controller did.
	eventually(w.t, progressTime, func() error {
		rs, err := w.adm.DescribeTopicConfigs(w.t.Context(), topic)
		if err != nil {
			return err
		}
		r, err := rs.On(topic, nil)
		if err := errors.Join(err, r.Err); err != nil {
			return err
		}
		for _, c := range r.Configs {
			if c.Key == key && c.MaybeValue() == value {
				return nil
			}
		}
		return fmt.Errorf("the broker does not know %s=%s of topic %s", key, value, topic)
	})
}

// feedPadded feeds one record whose output is that many bytes larger.
func (w *world) feedPadded(fs []fed, bytes int) {
	w.t.Helper()
	r := fs[0].record(w.in)
	r.Value = fmt.Appendf(r.Value, " %d", bytes)
	cl := w.producer()
	defer cl.Close()
	if err := cl.ProduceSync(w.t.Context(), r).FirstErr(); err != nil {
		w.t.Fatal(err)
	}
	fs[0].partition, fs[0].offset = r.Partition, r.Offset
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fed = append(w.fed, fs...)
}

// until is the input that was fed before f.
func (w *world) until(f fed) []fed {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, g := range w.fed {
		if g == f {
			return w.fed[:i:i]
		}
	}
	return w.fed
}
