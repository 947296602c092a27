package redis

import (
	"net/url"

	"github.com/weirstream/weir/internal/guard"
)

// lane is a sequence of operations that are applied in order under one marker: the hash
// slot on a cluster, where a script sees the keys of one slot only, and 0 elsewhere.
type lane uint16

// Names of what the sinks keep in Redis beside the data, behind the prefix of [Options].
const (
	markerKind  = "weir:marker:"
	deadKind    = "weir:dead:"
	versionKind = "weir:version:"
	openKind    = "weir:open:"
)

// layout says under which keys the sinks keep what is theirs.
type layout struct {
	prefix  string
	cluster bool
}

// tag puts names into a slot: nothing where there are no slots, or where the prefix
// decides on the slot of every key.
func (l layout) tag(slot uint16) string {
	if _, ok := hashTag([]byte(l.prefix)); ok || !l.cluster {
		return ""
	}
	if guard.Broken(guard.MarkerInSlot) {
		slot = (slot + 1) % slots
	}
	return "{" + slotTags()[slot] + "}:"
}

// lane is the lane of operations on keys of a slot.
func (l layout) lane(slot uint16) lane {
	if l.cluster {
		return lane(slot)
	}
	return 0
}

func (l layout) dead(n lane, app, sink string) string {
	return l.prefix + deadKind + l.tag(uint16(n)) + name(app, sink)
}

// open is the list of the batches of a lane that were begun and not ended: there is one
// while a script runs, and none for whoever else looks.
func (l layout) open(n lane, app, sink string) string {
	return l.prefix + openKind + l.tag(uint16(n)) + name(app, sink)
}

func (l layout) version(slot uint16, key string) string {
	return l.prefix + versionKind + l.tag(slot) + key
}

// name is that of a sink of an app; app is empty for an idempotent sink, which is not told.
func name(app, sink string) string {
	if app == "" {
		return url.QueryEscape(sink)
	}
	return url.QueryEscape(app) + ":" + url.QueryEscape(sink)
}
