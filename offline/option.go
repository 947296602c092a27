package offline

import (
	"time"

	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/state/segment"
)

// Option says how to read a snapshot.
type Option func(*options)

type options struct {
	expired    bool
	processing int64
	event      int64
	lo, hi     int
	progress   func(Progress)
	messages   *protoregistry.Files
	spared     map[uint16]segment.Spans
}

// IncludeExpired yields entries that have expired as well, and says so in their Meta.
// Otherwise they are left out: to the app they do not exist.
func IncludeExpired() Option { return func(o *options) { o.expired = true } }

// At says what time it is for entries that expire in processing time. The default is
// now. In event time, the snapshot's watermark decides.
func At(t time.Time) Option { return func(o *options) { o.processing = t.UnixMilli() } }

// KeyGroups restricts reading to the key-groups [lo, hi).
func KeyGroups(lo, hi int) Option { return func(o *options) { o.lo, o.hi = lo, hi } }

// OnProgress calls f now and then from the goroutine that reads.
func OnProgress(f func(Progress)) Option { return func(o *options) { o.progress = f } }

// Messages are the descriptors of the protobuf messages in the state. With them rows
// show such a message as JSON, without them its bytes.
func Messages(files *protoregistry.Files) Option { return func(o *options) { o.messages = files } }

// Progress says how far a scan is. As keys are spread evenly over key-groups, these
// tell the share of the work.
type Progress struct {
	Entries   int64 // read so far
	KeyGroup  int   // being read, counted from the first one wanted
	KeyGroups int   // wanted
}

func (s *Snapshot) options(opts []Option) *options {
	o := &options{processing: time.Now().UnixMilli(), event: s.manifest.Watermark, hi: s.manifest.KeyGroups, spared: checkpoint.Spared(s.manifest.States)}
	for _, opt := range opts {
		opt(o)
	}
	o.lo, o.hi = max(o.lo, 0), min(o.hi, s.manifest.KeyGroups)
	return o
}

// Meta is what is known of an entry beside its key and value.
type Meta struct {
	KeyGroup int
	Version  int // of the codec that wrote the value
	// Clock says which clock makes the entry expire, and Expires when, in milliseconds
	// since 1970.
	Clock   segment.Domain
	Expires int64
	Expired bool // it has, see [IncludeExpired]
}

// header reads what the value of an entry begins with. What is spared never expires.
func (o *options) header(e segment.Entry) (h segment.Header, rest []byte, expired bool, err error) {
	h, rest, err = segment.CutHeader(e.Value)
	if o.spared[e.State].Has(h) {
		h.Domain, h.Expires = segment.Forever, 0
	}
	return h, rest, h.Expired(o.processing, o.event), err
}

func (o *options) meta(e segment.Entry) (m Meta, rest []byte, err error) {
	h, rest, expired, err := o.header(e)
	return Meta{KeyGroup: int(e.KeyGroup), Version: h.Version, Clock: h.Domain, Expires: h.Expires, Expired: expired}, rest, err
}
