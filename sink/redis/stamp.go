package redis

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// stamp is the text of markers, and the first line of dead letters: words of the form
// name=value behind the magic, always these and in this order.
type stamp struct {
	lineage                string
	checkpoint, operations int64
	app, sink, instance    string
	at                     time.Time
}

// stampMagic begins a stamp and has its version.
const (
	stampName    = "weir"
	stampVersion = 1
	stampMagic   = stampName + "1" // the version
)

// laterStamp returns the version of a stamp that a later build wrote.
func laterStamp(text string) (version uint64, ok bool) {
	rest, ok := strings.CutPrefix(text, stampName)
	if !ok {
		return 0, false
	}
	n, _, _ := strings.Cut(rest, " ")
	version, err := strconv.ParseUint(n, 10, 31)
	return version, err == nil && version > stampVersion
}

func parseStamp(text string) (stamp, bool) {
	var s stamp
	words := strings.Split(text, " ")
	if len(words) != 8 || words[0] != stampMagic {
		return s, false
	}
	var values [7]string
	for i, name := range []string{"lineage", "checkpoint", "operations", "app", "sink", "instance", "at"} {
		v, ok := strings.CutPrefix(words[i+1], name+"=")
		if !ok {
			return s, false
		}
		values[i] = v
	}
	var errs [6]error
	s.lineage = values[0]
	s.checkpoint, errs[0] = strconv.ParseInt(values[1], 10, 64)
	s.operations, errs[1] = strconv.ParseInt(values[2], 10, 64)
	s.app, errs[2] = url.QueryUnescape(values[3])
	s.sink, errs[3] = url.QueryUnescape(values[4])
	s.instance, errs[4] = url.QueryUnescape(values[5])
	s.at, errs[5] = time.Parse(time.RFC3339Nano, values[6])
	for _, err := range errs {
		if err != nil {
			return s, false
		}
	}
	return s, s.lineage != "" && s.checkpoint >= 0 && s.operations >= 0
}

// position is how far a lane's operations are applied: all of earlier logs, and that many
// of the log of a checkpoint.
type position struct {
	lineage    string
	checkpoint int64
	operations int64
}

// text is the part of a marker that says how far its lane is; scripts compare it.
func (p position) text() string {
	if p == (position{}) {
		return ""
	}
	return p.log() + strconv.FormatInt(p.operations, 10) + " "
}

// log is the part of text in front of the number of operations.
func (p position) log() string {
	return stampMagic + " lineage=" + p.lineage + " checkpoint=" + strconv.FormatInt(p.checkpoint, 10) + " operations="
}

// author is the rest of a marker's text: who moved it and when.
func author(app, sink, instance string, at time.Time) string {
	return fmt.Sprintf("app=%s sink=%s instance=%s at=%s", url.QueryEscape(app), url.QueryEscape(sink), url.QueryEscape(instance), at.UTC().Format("2006-01-02T15:04:05.000Z07:00"))
}
