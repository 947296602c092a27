package keygroup

// Max is the largest key-group count: a key-group number is stored in two bytes.
const Max = 1 << 15

// Of returns the key-group of an encoded key among n key-groups, 0 <= Of < n.
func Of(key []byte, n int) int { return int(hash(key)&0x7fffffff) % n }

// Range returns the contiguous key-groups [lo, hi) that subtask i of parallelism
// p owns among n key-groups. Every key-group belongs to exactly one subtask.
func Range(i, p, n int) (lo, hi int) {
	// The inverse of Subtask: the smallest g with g*p/n >= i.
	return (i*n + p - 1) / p, ((i+1)*n + p - 1) / p
}

// Subtask returns the subtask of parallelism p that owns key-group g among n.
func Subtask(g, p, n int) int { return g * p / n }

// hash is murmur2 as Kafka's Utils.murmur2 computes it.
func hash(b []byte) uint32 {
	const (
		seed uint32 = 0x9747b28c
		m    uint32 = 0x5bd1e995
		r           = 24
	)
	h := seed ^ uint32(len(b))
	for len(b) >= 4 {
		k := uint32(b[3])<<24 | uint32(b[2])<<16 | uint32(b[1])<<8 | uint32(b[0])
		b = b[4:]
		k *= m
		k ^= k >> r
		k *= m
		h *= m
		h ^= k
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(b[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return h
}
