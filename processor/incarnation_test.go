package processor

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
)

func TestNothingBeginsOnceAnIncarnationIsWaitedFor(t *testing.T) {
	inc := &incarnation{}
	inc.ctx, inc.cancel = context.WithCancelCause(t.Context())
	defer inc.cancel(nil)
	var begun, over, late atomic.Int64
	spawned := make(chan struct{})
	go func() { // a restore
		defer close(spawned)
		for range 10_000 {
			inc.spawn(func() error {
				begun.Add(1)
				late.Add(over.Load())
				return nil
			})
		}
	}()
	for begun.Load() == 0 {
		runtime.Gosched()
	}
	inc.end()
	inc.group.Wait()
	over.Store(1)
	<-spawned
	inc.group.Wait()
	if n := late.Load(); n > 0 {
		t.Errorf("%d goroutines began after that", n)
	}
}
