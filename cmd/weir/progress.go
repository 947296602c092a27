package main

import (
	"io"
	"os"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offline"
)

// progressDelay is how long work lasts before a bar is worth showing.
const progressDelay = time.Second

// progress shows a bar on a terminal, for work that takes longer than a moment.
type progress struct {
	w     io.Writer
	what  string
	start time.Time
	p     *mpb.Progress
	bar   *mpb.Bar
}

// newProgress shows nothing if w is no terminal.
func newProgress(w io.Writer, what string) *progress {
	if terminalWidth(w) == 0 || os.Getenv("TERM") == "dumb" {
		w = nil
	}
	return &progress{w: w, what: what, start: time.Now()}
}

// set says that done of total are done.
func (p *progress) set(done, total int64) {
	if p.w == nil || p.bar == nil && time.Since(p.start) < progressDelay {
		return
	}
	if p.bar == nil {
		p.p = mpb.New(mpb.WithOutput(p.w), mpb.WithWidth(40))
		p.bar = p.p.AddBar(total, mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(p.what+" ")), mpb.AppendDecorators(decor.Percentage(), decor.Name(" "), decor.AverageETA(decor.ET_STYLE_GO)))
	}
	p.bar.SetCurrent(done)
}

// scan is for offline.OnProgress.
func (p *progress) scan(s offline.Progress) { p.set(int64(s.KeyGroup), int64(s.KeyGroups)) }

// copied is for what package checkpoint copies.
func (p *progress) copied(s checkpoint.Progress) { p.set(s.Bytes, s.BytesTotal) }

// close removes the bar.
func (p *progress) close() {
	if p.bar != nil {
		p.bar.Abort(true)
		p.p.Wait()
		p.bar = nil
	}
	p.w = nil
}
