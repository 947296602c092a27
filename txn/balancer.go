package txn

import (
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir/internal/guard"
)

// SingleActive returns the balancer that assigns every partition of every topic to
// one member, the active one, and nothing to the others: hot standbys that take over
// when it leaves or dies.
//
// The member that owns partitions stays active, whoever joins. Where several claim
// some, which happens when members come back from a network partition, the newest
// generation wins, and then the most partitions. Where none does, the first by
// instance id is active. It is cooperative: a partition that somebody else still
// owns is first revoked there.
func SingleActive() kgo.GroupBalancer { return newSingleActive(func() {}) }

// newSingleActive returns SingleActive for a client, which refresh tells to look for
// new partitions.
func newSingleActive(refresh func()) singleActive {
	return singleActive{kgo.CooperativeStickyBalancer(), refresh}
}

// singleActive takes the encoding of members and assignments from the sticky
// balancer.
type singleActive struct {
	kgo.GroupBalancer
	refresh func()
}

// ProtocolName is what the members of a group must agree on.
func (singleActive) ProtocolName() string { return "weir-single-active" }

// MemberBalancer is called at the group's leader.
//
// The leader assigns the partitions that its client knew of when it last looked, which
// may be minutes ago: a member that comes back would get fewer than it had. So it looks
// now, and if there are more, the client asks for another rebalance.
func (s singleActive) MemberBalancer(members []kmsg.JoinGroupResponseMember) (kgo.GroupMemberBalancer, map[string]struct{}, error) {
	s.refresh()
	if guard.Broken(guard.SingleOwner) {
		return s.GroupBalancer.MemberBalancer(members)
	}
	b, err := kgo.NewConsumerBalancer(s, members)
	return b, b.MemberTopics(), err
}

// Balance implements kgo.ConsumerBalancerBalance.
func (singleActive) Balance(b *kgo.ConsumerBalancer, topics map[string]int32) kgo.IntoSyncAssignment {
	plan := b.NewPlan()
	active, meta := activeMember(b)
	if active == nil {
		return plan
	}
	// A topic that the active member doesn't know, because a newer version stands by,
	// waits for that one to take over.
	for _, topic := range meta.Topics {
		for p := range topics[topic] {
			plan.AddPartition(active, topic, p)
		}
	}
	plan.AdjustCooperative(b)
	return plan
}

func activeMember(b *kgo.ConsumerBalancer) (active *kmsg.JoinGroupResponseMember, activeMeta *kmsg.ConsumerMemberMetadata) {
	most := 0
	// Members come in the order of their instance ids.
	b.EachMember(func(m *kmsg.JoinGroupResponseMember, meta *kmsg.ConsumerMemberMetadata) {
		owned := 0
		for _, t := range meta.OwnedPartitions {
			owned += len(t.Partitions)
		}
		better := active == nil ||
			owned > 0 && (most == 0 || meta.Generation > activeMeta.Generation ||
				meta.Generation == activeMeta.Generation && owned > most)
		if better {
			active, activeMeta, most = m, meta, owned
		}
	})
	return active, activeMeta
}
