package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/internal/crashpoint"
)

// TestS04_DamagedObjectIsRefusedByName damages what the next start needs, while the
// service is down.
func TestS04_DamagedObjectIsRefusedByName(t *testing.T) {
	t.Parallel()
	w := newWorld(t, []string{needBroker(t)}, 200)
	w.args = []string{"-ballast", "600"} // a segment doesn't fit into its manifest
	w.feedNow(2000)
	w.launch("-interval", "5m", "-drain").exits(0) // one checkpoint of everything

	m, manifest := w.pointed()
	segment := ""
	for _, s := range m.Segments {
		if !s.Inline() {
			segment = s.Object
		}
	}
	if segment == "" {
		t.Fatal("every segment is in its manifest; the test needs one that isn't")
	}
	damages := []struct {
		name string
		do   func(path string, whole []byte) error
		says string
	}{
		{"truncated", func(path string, whole []byte) error { return os.WriteFile(path, whole[:len(whole)/2], 0o600) }, "damaged"},
		{"torn to nothing", func(path string, whole []byte) error { return os.WriteFile(path, nil, 0o600) }, "damaged"},
		{"one bit flipped", func(path string, whole []byte) error {
			b := append([]byte(nil), whole...)
			b[len(b)/3] ^= 1 << 4
			return os.WriteFile(path, b, 0o600)
		}, "damaged"},
		{"deleted", func(path string, _ []byte) error { return os.Remove(path) }, "missing"},
	}
	w.feedNow(200)
	for _, object := range []string{manifest, segment} {
		path := filepath.Join(w.store, filepath.FromSlash(object))
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range damages {
			if err := d.do(path, whole); err != nil {
				t.Fatal(err)
			}
			p := w.launch()
			said := p.refuses(object, d.says, w.store)
			if n := p.count("committed"); n != 0 {
				t.Fatalf("%s %s: %d checkpoints were committed\n%s", object, d.name, n, p.story())
			}
			t.Logf("%s %s:\n%s", object, d.name, said)
			_ = os.Remove(path) // what is gone can't be removed
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.finish(w.launch())
}

// TestS09_RestoreFailsAgainAndAgain kills while state is loaded, at the crash points
// there and at random, and takes the store away from under a restore.
func TestS09_RestoreFailsAgainAndAgain(t *testing.T) {
	onEachBackend(t, "", restoreFails)
}

func restoreFails(t *testing.T, b backend) {
	t.Parallel()
	const (
		rounds  = 6
		kills   = 20
		startup = 250 * time.Millisecond // what a start takes about
	)
	w := newWorld(t, []string{needBroker(t)}, 300)
	w.args = append(w.at(b), "-ballast", "600")
	w.feedNow(2000)
	p := w.launch()
	w.settleWith(p)
	p.kill()

	// The broker may have a commit of a process that was killed, and tell of it later,
	// but not later than the next one restores.
	restores := func(point crashpoint.Point) *checkpoint.Manifest {
		p := w.launch(fmt.Sprintf("%s=%s", crashEnv, point))
		p.diesOfItself(point, progressTime)
		m, _ := w.pointed()
		return m
	}
	at := restores(crashpoint.InRestore)
	w.feedNow(500)
	forget := func() {
		if b != inMemory {
			w.remove(w.local(b))
		}
	}
	for i := range rounds {
		if i == rounds/2 {
			forget()
		}
		point := []crashpoint.Point{crashpoint.InRestore, crashpoint.AfterRestore}[i%2]
		if now := restores(point); now.Checkpoint != at.Checkpoint {
			t.Fatalf("checkpoint %d was committed by a process that died at %s; want %d still", now.Checkpoint, point, at.Checkpoint)
		}
	}
	for i := range kills {
		if i%3 == 0 {
			forget()
		}
		p := w.launch()
		p.killAtRandom(startup)
	}

	m := restores(crashpoint.AfterRestore)
	w.feedNow(500)
	forget() // what it has it would not ask for
	path := filepath.Join(w.store, filepath.FromSlash(m.Segments[0].Object))
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, path); err != nil { // reading it fails, and says so
		t.Fatal(err)
	}
	p = w.launch("-restarts", "3")
	p.refuses("gave up after 3 restarts", m.Segments[0].Object)
	p = w.launch("-restarts", "-1")
	p.await("restarting", 2, progressTime)
	// In place of the link, at once: an object that is not there stops the app for good.
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	p.await("committed", 1, progressTime)
	w.finish(p)
}

// TestS39_DeadLettersAreInTheSameCommit kills while poisonous records flow.
func TestS39_DeadLettersAreInTheSameCommit(t *testing.T) {
	t.Parallel()
	const kills = 10
	w := newWorld(t, []string{needBroker(t)}, 50)
	w.topic(w.dead, 1, nil)
	w.args = []string{"-dead", w.dead, "-interval", "30ms"}
	w.feedOn(40, 10*time.Millisecond)
	for range kills {
		p := w.launch()
		p.await("deadlettered", 1, progressTime)
		p.next("committed", progressTime)
		p.killAtRandom(100 * time.Millisecond)
	}
	p := w.launch(crashEnv + "=" + string(crashpoint.AfterOffsets) + ":2")
	p.diesOfItself(crashpoint.AfterOffsets, progressTime)
	w.quench()
	w.finish(w.launch())
}
