package sim

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// The scenarios by their numbers, as scripts. Other packages test single parts of them
// more closely, and package integration some of them with real brokers; here whole apps
// have to get over them with state, outputs and the receiver exact.

// calm is a life with nothing special; fields may be set again behind it.
const calm = "parallelism=2 backend=memory every=50ms records=0 timeout=2s txn=10s session=6s tolerable=20 retain=2 held=1048576 unaligned=false align=0s"

// modes are ways to take checkpoints and to keep state.
func modes() map[string]string {
	m := map[string]string{}
	for _, backend := range []string{"memory", "pebble"} {
		m["aligned, "+backend] = "backend=" + backend
		m["unaligned, "+backend] = "unaligned=true backend=" + backend
	}
	return m
}

// story is a script for one scenario.
type story struct {
	world     string   // more about the world
	instances int      // 1 if 0
	lives     []string // fields that differ from calm
	steps     string
	expect    string
	// saw are words that have to be in the history, or what the story is about did not
	// happen.
	saw []string
	// check looks at more, if it is not nil.
	check func(t *testing.T, res *result)
}

func (s story) tell(t *testing.T) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "world seed=7 brokers=2 partitions=3 accounts=8 instances=%d latency=1ms v1=false %s\n", max(1, s.instances), s.world)
	for _, l := range s.lives {
		fmt.Fprintln(&b, "life", calm, l)
	}
	if len(s.lives) == 0 {
		fmt.Fprintln(&b, "life", calm)
	}
	fmt.Fprintln(&b, s.steps)
	if s.expect != "" {
		fmt.Fprintln(&b, "expect", s.expect)
	}
	sc, err := parse(b.String())
	if err != nil {
		t.Fatal(err)
	}
	if s.expect == "" {
		// All faults end with the last step, and one that waits for the n-th request may have to
		// wait until what came before it is over.
		last := slices.MaxFunc(sc.steps, func(a, b step) int { return cmp.Compare(a.at, b.at) }).at
		sc.steps = append(sc.steps, step{at: last + 3*time.Second, verb: verbFeed, mode: "plain", n: 5})
	}
	var res *result
	for range 3 { // one that is given up says nothing
		if res = simulate(t, sc, "with a file of this script and -script"); !res.frozen {
			break
		}
	}
	if res.frozen {
		t.Skip("virtual time stood still in every run")
	}
	history := strings.Join(res.history, "\n")
	for _, w := range s.saw {
		if !strings.Contains(history, w) {
			t.Errorf("it did not happen: %q is not in the history:\n%s", w, history)
		}
	}
	if s.check != nil && !t.Failed() {
		s.check(t, res)
	}
}

// flow is input every so often.
func flow(from, to, every time.Duration, n int) string {
	var b strings.Builder
	for at := from; at < to; at += every {
		fmt.Fprintf(&b, "at %v feed mode=plain n=%d\n", at, n)
	}
	return b.String()
}

func TestS01_KilledAtEachDurableStep(t *testing.T) {
	points := map[string]string{}
	for n := 1; n <= 3; n++ { // segment or not, logs, manifest
		points[fmt.Sprintf("before object %d", n)] = fmt.Sprintf("on=put mode=before n=%d", n)
		points[fmt.Sprintf("after object %d", n)] = fmt.Sprintf("on=put mode=after n=%d", n)
	}
	for _, on := range []string{"Produce", "TxnOffsetCommit", "EndTxn"} {
		points["before "+on] = "mode=before on=" + on
		points["after "+on] = "mode=after on=" + on
	}
	points["before deleting"] = "on=delete mode=before"
	points["in deleting"] = "on=delete mode=after n=2"
	for name, point := range points {
		t.Run(name, func(t *testing.T) {
			for name, mode := range modes() {
				t.Run(name, func(t *testing.T) {
					if testing.Short() && !strings.Contains(name, "unaligned, pebble") {
						t.Skip("one mode is enough in -short")
					}
					story{
						lives: []string{mode, mode + " parallelism=3"},
						steps: flow(time.Second, 3*time.Second, 200*time.Millisecond, 30) + "at 2s kill who=a for=50ms " + point,
						saw:   []string{"a0  is killed", "a1  restored"},
					}.tell(t)
				})
			}
		})
	}
}

func TestS02_EndTxnAppliedAndEveryAnswerLost(t *testing.T) {
	for name, mode := range modes() {
		t.Run(name, func(t *testing.T) {
			story{
				lives: []string{mode + " txn=4s session=10s"},
				steps: "at 1s feed mode=plain n=20\nat 2s cut who=a on=EndTxn mode=deaf n=1 for=7s\nat 2.1s feed mode=plain n=20\nat 20s feed mode=plain n=20",
				saw:   []string{"cut who=a on=EndTxn", "restart 1 in"},
			}.tell(t)
		})
	}
}

func TestS03_KilledRightAfterTheCommitBeforeTheSinkWasTold(t *testing.T) {
	story{
		steps: flow(time.Second, 3*time.Second, 300*time.Millisecond, 30) + `
			at 1.9s receiver mode=slow for=400ms
			at 2s kill who=a on=EndTxn mode=after n=1 for=100ms
			at 2.6s kill who=a on=EndTxn mode=after n=2 for=100ms`,
		saw: []string{"a0  is killed", "a1  is killed"},
	}.tell(t)
}

func TestS05_KilledAgainAndAgainWhileInputFlows(t *testing.T) {
	var kills strings.Builder
	for i := range 8 {
		fmt.Fprintf(&kills, "at %v kill who=a for=30ms\n", 2*time.Second+time.Duration(i)*330*time.Millisecond)
	}
	for name, mode := range modes() {
		t.Run(name, func(t *testing.T) {
			story{
				lives: []string{mode, mode + " parallelism=5", mode + " parallelism=1"},
				steps: flow(time.Second, 6*time.Second, 100*time.Millisecond, 20) + kills.String(),
				check: func(t *testing.T, res *result) {
					if res.lives < 9 {
						t.Errorf("%d lives", res.lives)
					}
				},
			}.tell(t)
		})
	}
}

func TestS06_LateAcknowledgementsOfACheckpointThatWasGivenUp(t *testing.T) {
	for name, mode := range modes() {
		t.Run(name, func(t *testing.T) {
			story{
				// Handlers of one bucket take so long that barriers reach its subtask only after
				// the checkpoint's time.
				lives: []string{mode + " timeout=500ms tolerable=100"},
				steps: "at 1s feed mode=plain n=20\nat 1.5s slow who=a mode=one n=40 for=8s\n" + flow(1600*time.Millisecond, 4*time.Second, 300*time.Millisecond, 60) +
					"at 3s store who=a on=put mode=stall n=3 for=1200ms\nat 11s kill who=a for=100ms\nat 12s feed mode=plain n=20",
				saw: []string{"failed", "is killed"},
			}.tell(t)
		})
	}
}

func TestS07_StoppedForLongerThanItsTransactionMayTake(t *testing.T) {
	for _, on := range []string{"", " on=TxnOffsetCommit mode=after", " on=EndTxn mode=before", " on=EndTxn mode=after"} {
		t.Run("stopped"+on, func(t *testing.T) {
			story{
				lives: []string{"txn=2s session=10s"},
				steps: flow(time.Second, 3*time.Second, 200*time.Millisecond, 20) + "at 2s pause who=a for=5s" + on + "\nat 10s feed mode=plain n=20",
				saw:   []string{"is stopped for 5s"},
			}.tell(t)
		})
	}
}

func TestS08_StoreFailsOrHangsBetweenBarrierAndCommit(t *testing.T) {
	for _, how := range []string{"mode=fail n=5", "mode=unknown n=5", "mode=hang n=3 for=5s", "mode=stall n=3 for=5s"} {
		t.Run(how, func(t *testing.T) {
			story{
				lives: []string{"timeout=500ms tolerable=100"},
				steps: flow(time.Second, 4*time.Second, 100*time.Millisecond, 20) + "at 2s store who=a on=put " + how + "\nat 12s kill who=a for=50ms\nat 13s feed mode=plain n=20",
				saw:   []string{"failed", "is killed"},
			}.tell(t)
		})
	}
	t.Run("more often than is tolerable", func(t *testing.T) {
		story{
			lives: []string{"timeout=500ms tolerable=2"},
			steps: flow(time.Second, 4*time.Second, 100*time.Millisecond, 20) + "at 2s store who=a on=put mode=fail n=3",
			saw:   []string{"a0  ends:"}, // not tolerated: Run returns, and the next life replays
			check: func(t *testing.T, res *result) {
				failed := 0
				for _, h := range res.history {
					if strings.Contains(h, "a0  checkpoint") && strings.Contains(h, "failed") {
						failed++
					}
				}
				if failed != 3 {
					t.Errorf("%d checkpoints failed before the app ended, want 3: two are tolerated", failed)
				}
			},
		}.tell(t)
	})
}

func TestS08_StoreIsAwayWhileStateIsReadInPlace(t *testing.T) {
	for how, saw := range map[string]string{"mode=fail": "reading what is committed", "mode=hang": "outage mode=hang"} {
		t.Run(how, func(t *testing.T) {
			story{
				world: "copying=100",
				lives: []string{"backend=fresh tolerable=100 timeout=500ms", "backend=fresh tolerable=100 timeout=500ms unaligned=true parallelism=3"},
				steps: flow(time.Second, 6*time.Second, 50*time.Millisecond, 10) + "at 3s kill who=a for=50ms\nat 3.2s outage for=3s " + how + "\nat 12s feed mode=plain n=20",
				saw:   []string{"a1  restored", saw},
			}.tell(t)
		})
	}
}

func TestS09_RestoreFailsAgainAndAgain(t *testing.T) {
	for name, mode := range modes() {
		t.Run(name, func(t *testing.T) {
			mode = strings.Replace(mode, "pebble", "fresh", 1) // or there is nothing to read
			story{
				lives: []string{mode},
				steps: flow(time.Second, 2*time.Second, 100*time.Millisecond, 20) + `
					at 2s kill who=a for=50ms
					at 2.06s kill who=a on=get mode=before n=1 for=50ms
					at 3s kill who=a on=OffsetFetch mode=after n=1 for=50ms
					at 3.5s kill who=a for=50ms
					at 3.56s store who=a on=get mode=fail n=3
					at 6s feed mode=plain n=20`,
				saw: []string{"is killed", "store who=a on=get"},
				check: func(t *testing.T, res *result) {
					if res.lives < 4 {
						t.Errorf("%d lives", res.lives)
					}
				},
			}.tell(t)
		})
	}
}

func TestS10_CommitThatFailsForGoodIsRolledBackInTheSameProcess(t *testing.T) {
	for _, how := range []string{
		"on=EndTxn mode=INVALID_PRODUCER_EPOCH", "on=EndTxn mode=INVALID_TXN_STATE", "on=EndTxn mode=UNKNOWN_SERVER_ERROR", "on=TxnOffsetCommit mode=UNKNOWN_MEMBER_ID", "on=Produce mode=INVALID_PRODUCER_EPOCH",
	} {
		t.Run(how, func(t *testing.T) {
			story{
				steps: flow(time.Second, 4*time.Second, 100*time.Millisecond, 20) + "at 2s broker who=a " + how + " n=1\nat 3s broker who=a " + how + " n=1",
				saw:   []string{"restart 1 in"},
				check: func(t *testing.T, res *result) {
					if res.lives != 1 {
						t.Errorf("%d processes, want the one", res.lives)
					}
				},
			}.tell(t)
		})
	}
}

func TestS14_RebalanceStormsDuringCheckpointsAndDuringRestore(t *testing.T) {
	for name, mode := range modes() {
		t.Run(name, func(t *testing.T) {
			story{
				instances: 3,
				lives:     []string{mode, strings.Replace(mode, "pebble", "fresh", 1) + " parallelism=3"},
				steps: flow(time.Second, 12*time.Second, 250*time.Millisecond, 20) + `
					at 3s storm n=12 for=100ms
					at 6s storm n=30 for=20ms
					at 8s store who=a on=get mode=slow n=20 for=400ms
					at 8s store who=b on=get mode=slow n=20 for=400ms
					at 8s store who=c on=get mode=slow n=20 for=400ms
					at 8.1s storm n=10 for=250ms`,
				saw: []string{"storm n=30", "rebalance:"},
			}.tell(t)
		})
	}
}

func TestS17_NewPartitionsAreTakenUp(t *testing.T) {
	for name, mode := range modes() {
		t.Run(name, func(t *testing.T) {
			story{
				instances: 2,
				lives:     []string{mode, mode + " parallelism=3"},
				steps:     flow(time.Second, 20*time.Second, 500*time.Millisecond, 20) + "at 3s grow n=2\nat 4s kill who=active for=100ms\nat 9s grow n=3\nat 9.1s kill who=active on=EndTxn mode=before n=1 for=100ms",
				saw:       []string{"grow n=2", "3@", "7@"},
			}.tell(t)
		})
	}
}

func TestS19_InputThatIsGoneIsALoudStop(t *testing.T) {
	const before = "at 1s feed mode=plain n=60\n"
	for name, s := range map[string]story{
		"recreated while it is read": {steps: before + "at 2s recreate\nat 3s feed mode=plain n=20", expect: "gone or was recreated"},
		"recreated with less while nothing runs": {
			steps: before + "at 2s kill who=a for=2s\nat 3s recreate\nat 3.5s feed mode=plain n=4", expect: "has no committed offsets",
		},
		"retention passed the position": {
			steps: before + "at 2s kill who=a for=3s\nat 3s feed mode=plain n=60\nat 3.5s trim mode=all\nat 4s feed mode=plain n=20", expect: "the records in between are lost",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s.saw = []string{"it was refused, as expected"}
			s.tell(t)
		})
	}
	t.Run("retention behind the position harms nobody", func(t *testing.T) {
		story{steps: flow(time.Second, 5*time.Second, 200*time.Millisecond, 20) + "at 2s trim mode=committed\nat 2.5s kill who=a for=50ms\nat 4s trim mode=committed\nat 5s kill who=a for=50ms"}.tell(t)
	})
}

func TestS19_InputIsRecreatedWithCommitsUnderWayAndTheAppGoesOnWithItsState(t *testing.T) {
	for name, mode := range modes() {
		for _, v1 := range []bool{false, true} {
			if v1 && name != "unaligned, memory" {
				continue
			}
			for _, fault := range []string{
				"", "delay who=a on=Produce mode=request n=1 for=300ms", "delay who=a on=TxnOffsetCommit mode=request n=1 for=300ms", "delay who=a on=TxnOffsetCommit mode=answer n=1 for=300ms",
				"delay who=a on=EndTxn mode=request n=1 for=300ms\nat 2.05s kill who=a for=500ms", // it brings the offsets back
				"delay who=a on=EndTxn mode=request n=1 for=300ms", "delay who=a on=EndTxn mode=answer n=1 for=300ms", "kill who=a on=EndTxn mode=before n=1 for=300ms", "pause who=a for=300ms",
			} {
				t.Run(fmt.Sprintf("%s, v1=%v, %s", name, v1, fault), func(t *testing.T) {
					if testing.Short() && !strings.Contains(name, "unaligned, memory") {
						t.Skip("one mode is enough in -short")
					}
					if fault != "" {
						fault = "at 1.95s " + fault + "\n"
					}
					story{
						world: fmt.Sprintf("vault=true rules=true v1=%v", v1),
						lives: []string{mode, mode + " parallelism=3"},
						steps: "at 1s rule n=5\n" + flow(time.Second, 3*time.Second, 90*time.Millisecond, 10) + fault + "at 2.01s recreate mode=refused\n" +
							flow(4*time.Second, 20*time.Second, 500*time.Millisecond, 10) + "at 30s rule n=5\n" + flow(30*time.Second, 31*time.Second, 100*time.Millisecond, 10),
						saw: []string{"it was noticed that the input is another one", "with the new input"},
					}.tell(t)
				})
			}
		}
	}
}

func TestS21_CommitsMeetErrorsOnceInBurstsAndAThirdOfTheTime(t *testing.T) {
	input := flow(time.Second, 6*time.Second, 100*time.Millisecond, 20)
	for _, e := range []struct{ on, mode string }{
		{"EndTxn", "COORDINATOR_LOAD_IN_PROGRESS"}, {"EndTxn", "CONCURRENT_TRANSACTIONS"}, {"EndTxn", "COORDINATOR_NOT_AVAILABLE"},
		{"TxnOffsetCommit", "COORDINATOR_LOAD_IN_PROGRESS"}, {"TxnOffsetCommit", "CONCURRENT_TRANSACTIONS"},
	} {
		what := fmt.Sprintf("on=%s mode=%s", e.on, e.mode)
		for name, steps := range map[string]string{
			"once":                "at 2s broker who=a n=1 " + what,
			"in a burst":          "at 2s broker who=a n=8 " + what,
			"a third of the time": "at 2s flaky who=a n=30 for=4s " + what,
		} {
			t.Run(what+" "+name, func(t *testing.T) {
				story{steps: input + steps, saw: []string{what}}.tell(t)
			})
		}
	}
	for _, on := range []string{"Produce", "TxnOffsetCommit", "EndTxn"} {
		for _, when := range []string{"before", "after"} {
			t.Run("fenced "+when+" "+on, func(t *testing.T) {
				story{
					steps: input + "at 2s fence who=a on=" + on + " mode=" + when + " n=2",
					saw:   []string{"fence who=a", "restart 1 in"},
					check: func(t *testing.T, res *result) {
						if res.lives != 1 {
							t.Errorf("%d processes, want the one: nobody else has its name", res.lives)
						}
					},
				}.tell(t)
			})
		}
	}
}

func TestS26_WhatEndsAtTheEndOfItsInputCommitsTheTailAndIsGoneOnWith(t *testing.T) {
	for name, mode := range modes() {
		t.Run(name, func(t *testing.T) {
			story{
				// Some partitions have nothing, others much; each life ends when it has what was
				// there when it began, and the next one goes on.
				lives: []string{mode + " drain=true", mode + " drain=true parallelism=5", mode + " drain=true parallelism=1", mode + " parallelism=3"},
				steps: "at 0s feed mode=plain n=3\nat 0.1s feed mode=plain n=200\nat 4s feed mode=plain n=1\nat 8s feed mode=commit n=100\nat 8.1s kill who=a on=EndTxn mode=before n=1 for=10ms\nat 12s feed mode=plain n=40",
				saw:   []string{"ends: <nil>"},
			}.tell(t)
		})
	}
}

func TestS28_GoesOnFromASavepointInAnotherGroupAndStore(t *testing.T) {
	for name, mode := range modes() {
		for _, how := range []string{"mode=app", "mode=offsets", "mode=app on=kill", "mode=offsets on=kill"} {
			t.Run(name+" "+how, func(t *testing.T) {
				story{
					world: "vault=true rules=true", instances: 2,
					lives: []string{mode, mode + " parallelism=3"},
					steps: moves(how),
					saw:   []string{"goes on from savepoint home-1", "goes on from savepoint home-2", "goes on from savepoint home-3"},
				}.tell(t)
			})
		}
	}
}

func TestS31_OperatorsAreRenamedBetweenTwoLivesAndKeepTheirState(t *testing.T) {
	for name, mode := range modes() {
		for _, how := range []string{"mode=rename", "mode=rename on=kill"} {
			t.Run(name+" "+how, func(t *testing.T) {
				story{
					world: "vault=true rules=true", instances: 2,
					lives: []string{mode, mode + " parallelism=3"},
					steps: moves(how),
					saw:   []string{`with operators "-1"`, `with operators "-2"`, `with operators "-3"`},
				}.tell(t)
			})
		}
	}
}

// moves are three: in quiet, with somebody killed in the commit of the stop, and one in the
// midst of more than can be done, after which whoever starts is killed again and again.
func moves(how string) string {
	return fmt.Sprintf(`
		at 1s rule n=5
		at 2s rehome %[1]s
		at 4s rehome %[1]s
		at 4s kill who=active on=EndTxn mode=after n=1
		at 18.9s feed mode=plain n=200
		at 18.8s drag n=20 for=3s
		at 20s rehome %[1]s
		at 40s rule n=5
		`, how) + flow(time.Second, 45*time.Second, 250*time.Millisecond, 10) + kills(21*time.Second, 8)
}

// kills ends whoever committed last, and others, again and again.
func kills(from time.Duration, n int) string {
	var b strings.Builder
	for i := range n {
		at := from + time.Duration(i)*330*time.Millisecond
		on := []string{"", " on=TxnOffsetCommit mode=after", " on=EndTxn mode=before", " on=EndTxn mode=after"}[i%4]
		fmt.Fprintf(&b, "at %v kill who=%s for=30ms%s\n", at, []string{"a", "b"}[i/4%2], on)
	}
	return b.String()
}

func TestS38_KilledAtEachStepOfTwoPhaseCommit(t *testing.T) {
	for _, on := range []string{"begin", "prepare", "commit", "leftovers", "abort"} {
		for _, when := range []string{"before", "after"} {
			t.Run(when+" "+on, func(t *testing.T) {
				story{
					world: "vault=true",
					lives: []string{"unaligned=true", "parallelism=3"},
					steps: flow(time.Second, 5*time.Second, 100*time.Millisecond, 30) + fmt.Sprintf(`
						at 2s kill who=a on=put mode=after n=1 for=50ms
						at 2.2s kill who=a on=%[1]s mode=%[2]s n=1 for=50ms
						at 3s kill who=a on=prepare mode=after n=2 for=50ms
						at 3.06s kill who=a on=%[1]s mode=%[2]s n=1 for=50ms`, on, when),
					saw: []string{"a1  is killed"},
				}.tell(t)
			})
		}
	}
}

// TestS38_ReplacedProcessRollsNothingBack stops a process in its start, before it asks what
// was left. When it goes on, and has not heard yet that it was replaced, its successor has a
// transaction that is prepared, and whose commit is under way.
func TestS38_ReplacedProcessRollsNothingBack(t *testing.T) {
	story{
		world: "vault=true", instances: 2,
		steps: flow(time.Second, 5*time.Second, 100*time.Millisecond, 30) + `
			at 2s kill who=a for=3s
			at 2s kill who=b for=5500ms
			at 6s pause who=a on=leftovers mode=before n=1 for=4s
			at 8s cut who=a mode=mute for=5s
			at 8.1s evict who=a
			at 9s store who=b on=commit mode=stall n=1 for=20s
			at 9.5s feed mode=plain n=30
			at 40s feed mode=plain n=30`,
		saw: []string{"a1  is stopped", "b1  restored", "a1  restart 1 in"},
	}.tell(t)
}

func TestS38_TransactionThatTheVaultForgotIsALoudStop(t *testing.T) {
	for name, mode := range modes() {
		t.Run(name, func(t *testing.T) {
			story{
				world: "vault=true", lives: []string{mode},
				steps: flow(time.Second, 4*time.Second, 100*time.Millisecond, 30) + "at 2s vault mode=forget n=3",
				saw:   []string{"can't be committed: the transaction is gone", "what the vault forgot is brought back"},
			}.tell(t)
		})
	}
}

// TestStoriesSayWhatTheyMean makes sure that what stories are written in is what scripts
// are written in.
func TestStoriesSayWhatTheyMean(t *testing.T) {
	sc, err := parse("world seed=1 brokers=1 partitions=1 accounts=2 instances=1 latency=1ms v1=false\nlife " + calm + "\nexpect the end of the world")
	if err != nil || sc.expect != "the end of the world" {
		t.Fatalf("%+v: %v", sc, err)
	}
	if again, err := parse(sc.String()); err != nil || again.String() != sc.String() {
		t.Fatalf("read back %v: %v", again, err)
	}
}
