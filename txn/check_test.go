package txn

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

func checkConfig(topics ...string) Config {
	return Config{App: testApp, Group: testGroup, Instance: "a", Topics: topics, CommitTopic: commitTopic}
}

func TestCheckPassesWhereNothingIsWrong(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		if err := Check(t.Context(), r.cl, checkConfig(inTopic), outTopic); err != nil {
			t.Error(err)
		}
		// And it left nothing behind.
		w := r.start("a").up()
		w.mustCommit(1)
	})
}

func TestCheckReportsEverythingAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		cfg := checkConfig(inTopic, "nowhere")
		cfg.TransactionTimeout = time.Hour
		err := Check(t.Context(), r.cl, cfg, outTopic, "void")
		for _, want := range []string{`"nowhere"`, `"void"`, "kafka-topics --create", "transaction.max.timeout.ms", "15m"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error doesn't say %q: %v", want, err)
			}
		}
	})
}

// Brokers before 2.5 take a commit that carries no member from a process that was replaced.
func TestCheckRefusesVersionsThatCannotFence(t *testing.T) {
	for name, tc := range map[string]struct {
		broker []kfake.Opt
		client []kgo.Opt
		want   string
	}{
		"brokers": {broker: []kfake.Opt{kfake.MaxVersions(kversion.V2_4_0())}, want: "upgrade them"},
		"client":  {client: []kgo.Opt{kgo.MaxVersions(kversion.V2_4_0())}, want: "kgo.MaxVersions"},
		"neither": {broker: []kfake.Opt{kfake.MaxVersions(kversion.V2_5_0())}, client: []kgo.Opt{kgo.MaxVersions(kversion.V2_5_0())}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				err := Check(t.Context(), r.plain(tc.client...), checkConfig(inTopic), outTopic)
				if tc.want == "" {
					if err != nil {
						t.Error(err)
					}
					return
				}
				for _, want := range []string{"TxnOffsetCommit", "OffsetFetch", "Kafka 2.5", tc.want} {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("error doesn't say %q: %v", want, err)
					}
				}
			}, tc.broker...)
		})
	}
}

func TestCheckNamesMissingRights(t *testing.T) {
	allow := func(rt kmsg.ACLResourceType, name string, op kmsg.ACLOperation) kfake.ACL {
		return kfake.ACL{Resource: rt, Name: name, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: op, Allow: true}
	}
	user := kfake.User("PLAIN", "weir", "secret",
		allow(kmsg.ACLResourceTypeTopic, inTopic, kmsg.ACLOperationDescribe),
		allow(kmsg.ACLResourceTypeTopic, commitTopic, kmsg.ACLOperationAll),
	)
	inBubbleAs(t, []kgo.Opt{kgo.SASL(plain.Auth{User: "root", Pass: "root"}.AsMechanism())}, func(t *testing.T, r *rig) {
		cl := r.plain(kgo.SASL(plain.Auth{User: "weir", Pass: "secret"}.AsMechanism()))
		err := Check(t.Context(), cl, checkConfig(inTopic), outTopic)
		for _, want := range []string{
			`read topic "in"`, `write topic "out"`, `read group "app-group"`, `write transactional-id "app/a"`, "kafka-acls --add",
			"--transactional-id app/ --resource-pattern-type prefixed",
		} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error doesn't say %q: %v", want, err)
			}
		}
	}, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "root", "root"), user)
}

func TestCheckOfUnreachableBrokersNamesThemInTime(t *testing.T) {
	cl, err := kgo.NewClient(kgo.SeedBrokers("kafka-7.example:9092"), kgo.DisableClientMetrics(), kgo.Dialer(func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: context.DeadlineExceeded}
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err = Check(ctx, cl, checkConfig(inTopic))
	if err == nil || !strings.Contains(err.Error(), "kafka-7.example:9092") || !strings.Contains(err.Error(), "WEIR_BROKERS") {
		t.Error(err)
	}
}

// TestCheckAsksACoordinatorThatDiedAgain is about the seconds in which a broker that
// died is still named as the coordinator.
func TestCheckAsksACoordinatorThatDiedAgain(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name  string
			moves time.Duration // until another broker answers
			says  error
			want  error
		}{
			{"it moves in time", 9 * time.Second, nil, nil},
			{"what the next one says counts", 9 * time.Second, kerr.GroupAuthorizationFailed, kerr.GroupAuthorizationFailed},
			{"it doesn't move", time.Hour, nil, refused},
		} {
			begun := time.Now()
			err := askCoordinator(t.Context(), func(context.Context) error {
				if time.Since(begun) < c.moves {
					return refused
				}
				return c.says
			})
			if took := time.Since(begun); !errors.Is(err, c.want) || took > reachTimeout {
				t.Errorf("%s: %v after %v, want %v", c.name, err, took, c.want)
			}
		}
	})
}

func TestEnsureCommitTopicWaitsUntilABrokerHasHeardOfIt(t *testing.T) {
	for name, c := range map[string]struct {
		fault  kfake.Fault
		exists bool
	}{
		"made by this instance": {kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "new"}, false},
		"made by another one":   {kfake.Fault{Keys: []kmsg.Key{kmsg.DescribeConfigs}, Resource: "new"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				if c.exists {
					if _, err := r.adm.CreateTopic(t.Context(), 1, 1, map[string]*string{"cleanup.policy": kadm.StringPtr("compact")}, "new"); err != nil {
						t.Fatal(err)
					}
				}
				c.fault.Err, c.fault.Count = kerr.UnknownTopicOrPartition, 3
				h := r.c.Fault(c.fault)
				if err := EnsureCommitTopic(t.Context(), r.adm, "new", -1); err != nil || h.Hits() != 3 {
					t.Errorf("%v after %d refusals, want none after 3", err, h.Hits())
				}
				if !c.exists {
					if _, err := r.adm.DeleteTopic(t.Context(), "new"); err != nil {
						t.Fatal(err)
					}
				}
				c.fault.Count = -1
				r.c.Fault(c.fault)
				begun := time.Now()
				if err := EnsureCommitTopic(t.Context(), r.adm, "new", -1); !errors.Is(err, kerr.UnknownTopicOrPartition) || !strings.Contains(err.Error(), "topic new") {
					t.Errorf("%v, want that nobody knows it", err)
				}
				if took := time.Since(begun); took < unknownTopicPatience || took > 2*unknownTopicPatience {
					t.Errorf("believed after %v, want about %v", took, unknownTopicPatience)
				}
			})
		})
	}
}

func TestEnsureCommitTopicMakesACompactedOne(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		configs, err := r.adm.DescribeTopicConfigs(t.Context(), commitTopic)
		if err != nil {
			t.Fatal(err)
		}
		rc, _ := configs.On(commitTopic, nil)
		got := map[string]string{}
		for _, c := range rc.Configs {
			got[c.Key] = c.MaybeValue()
		}
		if got["cleanup.policy"] != "compact" || got["segment.bytes"] != "4194304" {
			t.Errorf("%v", got)
		}
		if err := EnsureCommitTopic(t.Context(), r.adm, commitTopic, -1); err != nil {
			t.Errorf("a second time: %v", err)
		}
		if _, err := r.adm.CreateTopic(t.Context(), 1, 1, map[string]*string{"cleanup.policy": kadm.StringPtr("delete")}, "wrong"); err != nil {
			t.Fatal(err)
		}
		if err := EnsureCommitTopic(t.Context(), r.adm, "wrong", -1); err == nil || !strings.Contains(err.Error(), "kafka-configs --alter") {
			t.Error(err)
		}
		r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.TopicAuthorizationFailed, Count: -1})
		if err := EnsureCommitTopic(t.Context(), r.adm, commitTopic, -1); err != nil {
			t.Errorf("may not create, and need not: %v", err)
		}
		if err := EnsureCommitTopic(t.Context(), r.adm, "missing", -1); err == nil || !strings.Contains(err.Error(), "kafka-topics --create") {
			t.Error(err)
		}
	})
}
