package keygroup

import (
	"math/rand/v2"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestOfMatchesKafkaPartitioner checks the hash against franz-go's own
// implementation of Kafka's default partitioner.
func TestOfMatchesKafkaPartitioner(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for n := 1; n <= 300; n += 13 {
		part := kgo.StickyKeyPartitioner(nil).ForTopic("t")
		for l := 1; l < 40; l++ {
			key := make([]byte, l)
			for i := range key {
				key[i] = byte(rng.Uint32())
			}
			if want, got := part.Partition(&kgo.Record{Key: key}, n), Of(key, n); want != got {
				t.Fatalf("key %x of %d: key-group %d, Kafka's partition %d", key, n, got, want)
			}
		}
	}
}

func TestRangesPartitionTheKeyGroups(t *testing.T) {
	for n := 1; n <= 257; n++ {
		for p := 1; p <= n; p++ {
			next := 0
			for i := range p {
				lo, hi := Range(i, p, n)
				if lo != next || hi <= lo {
					t.Fatalf("n=%d p=%d subtask %d owns [%d,%d), want it to start at %d and not be empty", n, p, i, lo, hi, next)
				}
				for g := lo; g < hi; g++ {
					if Subtask(g, p, n) != i {
						t.Fatalf("n=%d p=%d: key-group %d is in the range of %d but Subtask says %d", n, p, g, i, Subtask(g, p, n))
					}
				}
				next = hi
			}
			if next != n {
				t.Fatalf("n=%d p=%d: ranges end at %d", n, p, next)
			}
		}
	}
}
