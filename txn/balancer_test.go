package txn

import (
	"fmt"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// claim is a member of instance id, with what it says it owns.
type claim struct {
	instance   string
	generation int32
	owned      map[string][]int32
	topics     []string // nil: "t"
}

// balance returns each instance's partitions.
func balance(t *testing.T, topics map[string]int32, claims ...claim) map[string][]string {
	t.Helper()
	s := SingleActive()
	var members []kmsg.JoinGroupResponseMember
	for _, c := range claims {
		m := kmsg.NewJoinGroupResponseMember()
		m.MemberID = c.instance + "-id"
		m.InstanceID = &c.instance
		if c.topics == nil {
			c.topics = []string{"t"}
		}
		m.ProtocolMetadata = s.JoinGroupMetadata(c.topics, c.owned, c.generation)
		members = append(members, m)
	}
	b, names, err := s.MemberBalancer(members)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != len(topics) {
		t.Fatalf("topics %v, want those of %v", names, topics)
	}
	into, err := b.(kgo.GroupMemberBalancerOrError).BalanceOrError(topics)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, a := range into.IntoSyncAssignment() {
		parts, err := s.ParseSyncAssignment(a.MemberAssignment)
		if err != nil {
			t.Fatal(err)
		}
		id := a.MemberID[:len(a.MemberID)-len("-id")]
		for topic, ps := range parts {
			for _, p := range ps {
				got[id] = append(got[id], fmt.Sprintf("%s/%d", topic, p))
			}
		}
		slices.Sort(got[id])
	}
	return got
}

func TestSingleActiveBalance(t *testing.T) {
	two := map[string]int32{"t": 2}
	all := map[string][]int32{"t": {0, 1}}
	for name, tc := range map[string]struct {
		topics map[string]int32
		claims []claim
		want   map[string][]string
	}{
		"first member gets everything": {two, []claim{{instance: "b", generation: -1}}, map[string][]string{"b": {"t/0", "t/1"}}},
		"first by instance id where nobody owns": {two,
			[]claim{{instance: "a", generation: -1}, {instance: "b", generation: -1}}, map[string][]string{"a": {"t/0", "t/1"}}},
		"a standby that joins takes nothing": {two,
			[]claim{{instance: "a", generation: -1}, {instance: "b", generation: 4, owned: all}}, map[string][]string{"b": {"t/0", "t/1"}}},
		"newest claim wins, and an old owner must revoke first": {two,
			[]claim{{instance: "a", generation: 3, owned: map[string][]int32{"t": {0}}}, {instance: "b", generation: 5, owned: map[string][]int32{"t": {1}}}},
			map[string][]string{"b": {"t/1"}}},
		"a claim goes before a newer member without one": {two,
			[]claim{{instance: "a", generation: 9}, {instance: "b", generation: 2, owned: all}}, map[string][]string{"b": {"t/0", "t/1"}}},
		"more partitions win in one generation": {map[string]int32{"t": 3},
			[]claim{{instance: "a", generation: 5, owned: map[string][]int32{"t": {0}}}, {instance: "b", generation: 5, owned: map[string][]int32{"t": {1, 2}}}},
			map[string][]string{"b": {"t/1", "t/2"}}},
		"new partitions go to the active": {map[string]int32{"t": 4},
			[]claim{{instance: "a", generation: 5}, {instance: "b", generation: 5, owned: all}}, map[string][]string{"b": {"t/0", "t/1", "t/2", "t/3"}}},
		"a topic that the active doesn't know waits": {map[string]int32{"t": 2, "u": 1},
			[]claim{{instance: "a", generation: -1, topics: []string{"t", "u"}}, {instance: "b", generation: 5, owned: all}}, map[string][]string{"b": {"t/0", "t/1"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := balance(t, tc.topics, tc.claims...)
			for _, c := range tc.claims {
				if !slices.Equal(got[c.instance], tc.want[c.instance]) {
					t.Errorf("%s got %v, want %v", c.instance, got[c.instance], tc.want[c.instance])
				}
			}
		})
	}
}

func TestSingleActiveIsCooperativeUnderItsOwnName(t *testing.T) {
	if s := SingleActive(); !s.IsCooperative() || s.ProtocolName() != "weir-single-active" {
		t.Errorf("%q, cooperative %v", s.ProtocolName(), s.IsCooperative())
	}
}

func TestLeaderLooksForNewPartitionsAtEachBalance(t *testing.T) {
	looked := 0
	b := newSingleActive(func() { looked++ })
	for n := range 3 {
		if looked != n {
			t.Fatalf("after %d balances it looked %d times", n, looked)
		}
		if _, _, err := b.MemberBalancer(nil); err != nil {
			t.Fatal(err)
		}
	}
}
