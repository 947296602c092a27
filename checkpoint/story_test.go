package checkpoint_test

import (
	ctx "context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/offsets"
)

// TestStories runs the scripts in testdata/stories and compares the exact sequence of
// store operations. The commands:
//
//	open [inline=BYTES] [retain=N] [fan-in=N]   start an incarnation on the last commit
//	persist ID [KG/KEY=VALUE | KG/KEY- ]... [log=SINK/BYTES]... [keep=SINK/ID]...
//	                                            persist changes and logs
//	commit ID                                   the commit point of ID is behind us
//	fail OP PREFIX | heal                       operations fail until healed
//	restore                                     read the last committed checkpoint
//	close                                       end the incarnation
//
// Background work is waited for after each command. Persist, open and close are shown
// in the exact order; after a commit merging and collection run side by side, and a
// restore reads several segments at once, so those are shown in an order of their
// own: deletions as they came, then reads by name, then writes.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		s := faultstore.Wrap(checkpoint.NewMem())
		var mu sync.Mutex
		var log strings.Builder
		fail := func(faultstore.Op, string) bool { return false }
		s.Before(func(_ ctx.Context, op faultstore.Op, name string) error {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(&log, "%s %s", op, name)
			if fail(op, name) {
				log.WriteString(" -> fails\n")
				return errStore
			}
			log.WriteString("\n")
			return nil
		})
		var r *rig
		var incarnation uint32
		var base *checkpoint.Manifest
		var baseRef offsets.ManifestRef
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			mu.Lock()
			log.Reset()
			mu.Unlock()
			var out string
			switch d.Cmd {
			case "open":
				var inline int64
				var retain, fanIn int
				d.MaybeScanArgs(t, "inline", &inline)
				d.MaybeScanArgs(t, "retain", &retain)
				d.MaybeScanArgs(t, "fan-in", &fanIn)
				incarnation++
				r = newRig(t, s, func(c *checkpoint.Config) {
					c.Base, c.BaseRef, c.Incarnation = base, baseRef, incarnation
					c.InlineLimit, c.Retain, c.MergeFanIn = inline, retain, fanIn
					c.Listener = checkpoint.Listener{}
				})
			case "persist":
				var id int64
				fmt.Sscan(d.CmdArgs[0].Key, &id)
				c := changes{}
				snap := snapshot(id, nil)
				snap.Logs, snap.Keep = nil, map[string]int64{}
				for _, a := range d.CmdArgs[1:] {
					if a.Key == "log" || a.Key == "keep" {
						sink, number, _ := strings.Cut(a.Vals[0], "/")
						var n int64
						fmt.Sscan(number, &n)
						if a.Key == "keep" {
							snap.Keep[sink] = n
						} else {
							snap.Logs = append(snap.Logs, checkpoint.LogPart{Operator: sink, Bytes: make([]byte, n)})
						}
						continue
					}
					if k, ok := strings.CutSuffix(a.Key, "-"); ok {
						c[k] = ""
					} else {
						c[a.Key] = a.Vals[0]
					}
				}
				snap.Runs = freeze(c)
				_, stats, err := r.Persist(context(), snap)
				if err != nil {
					if !errors.Is(err, errStore) {
						t.Fatal(err)
					}
					out = "failed\n"
				} else {
					out = fmt.Sprintf("ok: %d entries, %d tombstones, inline %v, chain of %d\n", stats.Entries, stats.Tombstones, stats.Inline, stats.Segments)
				}
			case "commit":
				var id int64
				fmt.Sscan(d.CmdArgs[0].Key, &id)
				r.Committed(id)
			case "fail":
				op, prefix := faultstore.Op(d.CmdArgs[0].Key), d.CmdArgs[1].Key
				fail = func(o faultstore.Op, name string) bool { return o == op && strings.HasPrefix(name, prefix) }
				return ""
			case "heal":
				fail = func(faultstore.Op, string) bool { return false }
				return ""
			case "restore":
				r.Settle()
				_, ref := r.Base()
				m, err := checkpoint.Load(context(), s, ref)
				if err != nil {
					t.Fatal(err)
				}
				for e, err := range m.Scan(context(), s, 0, keyGroups) {
					if err != nil {
						t.Fatal(err)
					}
					out += fmt.Sprintf("%d/%s=%s\n", e.KeyGroup, e.Key, e.Value)
				}
			case "close":
				r.Settle()
				base, baseRef = r.Base()
				r.close()
				return ""
			default:
				d.Fatalf(t, "unknown command %s", d.Cmd)
			}
			r.Settle()
			mu.Lock()
			defer mu.Unlock()
			if d.Cmd == "commit" || d.Cmd == "restore" {
				return ordered(log.String()) + out
			}
			return log.String() + out
		})
	})
}

// ordered takes the chance out of the order of operations that ran side by side.
func ordered(log string) string {
	rank := func(line string) string {
		switch {
		case strings.HasPrefix(line, "delete"):
			return "0"
		case strings.HasPrefix(line, "get"):
			return "1" + line
		}
		return "2" + line
	}
	lines := strings.SplitAfter(log, "\n")
	lines = lines[:len(lines)-1]
	slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(rank(a), rank(b)) })
	return strings.Join(lines, "")
}
