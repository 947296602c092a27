package redis

import (
	"context"
	"fmt"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// Marker says how far a write-ahead sink is applied in Redis: all of the logs of earlier
// checkpoints, and the first Operations of that of Checkpoint, as far as they belong to
// the marker's lane. On a cluster the lane is a hash slot.
type Marker struct {
	Key        string
	Lineage    string // of the checkpoint
	Checkpoint int64
	Operations int64
	App        string
	Sink       string
	Instance   string    // who moved it last
	At         time.Time // when, by that process's clock
}

func (m Marker) position() position { return position{m.Lineage, m.Checkpoint, m.Operations} }

// ParseMarker parses the text of a marker.
func ParseMarker(key, text string) (Marker, error) {
	if v, ok := laterStamp(text); ok {
		return Marker{}, fmt.Errorf("key %q has a marker of version %d, this build reads version %d: run the build that wrote it", key, v, stampVersion)
	}
	s, ok := parseStamp(text)
	if !ok {
		return Marker{}, fmt.Errorf("key %q has no marker of a write-ahead sink that this build can read: %.200q; restore it, or see \"Redis markers\" in docs/operations.md", key, text)
	}
	return Marker{key, s.lineage, s.checkpoint, s.operations, s.app, s.sink, s.instance, s.at}, nil
}

// scanCount is how many keys one SCAN looks at.
const scanCount = 1000

// Markers reads all markers under the prefix of o, on every server of a cluster. It looks
// at all keys, a thousand at a time.
func Markers(ctx context.Context, o Options) ([]Marker, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	cl := o.client()
	defer cl.Close()
	var out []Marker
	err := eachServer(ctx, cl, func(ctx context.Context, c *goredis.Client) error {
		it := c.Scan(ctx, 0, globEscape(o.Prefix)+markerKind+"*", scanCount).Iterator()
		var keys []string
		for it.Next(ctx) {
			keys = append(keys, it.Val())
		}
		if err := it.Err(); err != nil {
			return fmt.Errorf("listing markers: %w", classify(err))
		}
		for _, k := range keys {
			text, err := c.Get(ctx, k).Result()
			if err == goredis.Nil {
				continue // deleted meanwhile
			}
			if err != nil {
				return fmt.Errorf("reading marker %s: %w", k, classify(err))
			}
			m, err := ParseMarker(k, text)
			if err != nil {
				return err
			}
			out = append(out, m)
		}
		return nil
	})
	return out, err
}

// globEscape makes a text match itself in a pattern.
func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `^`, `\^`).Replace(s)
}

// marker is the key of a lane's marker.
func (l layout) marker(n lane, app, sink string) string {
	return l.prefix + markerKind + l.tag(uint16(n)) + name(app, sink)
}
