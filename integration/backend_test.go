package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// backend says where the service has its state while it runs.
type backend string

const (
	inMemory backend = "memory"
	// linked is a local store beside the checkpoint store: it makes hard links.
	linked backend = "local store"
	// copied is one on another file system, where there is one: it copies.
	copied backend = "local store elsewhere"
)

// onEachBackend runs a test with state in memory and in a local store.
func onEachBackend(t *testing.T, name string, test func(t *testing.T, b backend)) {
	t.Helper()
	for _, b := range []backend{inMemory, linked} {
		words := string(b)
		if name != "" {
			words = name + ", " + words
		}
		t.Run(words, func(t *testing.T) { test(t, b) })
	}
}

// at returns the words of a launch with that backend. A world has one local store of
// each kind.
func (w *world) at(b backend) []string {
	w.t.Helper()
	if b == inMemory {
		return []string{"WEIR_STATE_DIR="}
	}
	return []string{"WEIR_STATE_DIR=" + w.local(b)}
}

// local returns the directory of the world's local store of that kind.
func (w *world) local(b backend) string {
	w.t.Helper()
	if w.locals[b] == "" {
		parent := filepath.Dir(w.store)
		if b == copied {
			parent = otherFileSystem(w.t, parent)
		}
		if w.locals == nil {
			w.locals = map[backend]string{}
		}
		w.locals[b] = filepath.Join(parent, "state")
	}
	return w.locals[b]
}

// otherFileSystem returns a new directory that no file of dir can be linked into, or
// one that is as good as any where the machine has no second file system.
func otherFileSystem(t *testing.T, dir string) string {
	t.Helper()
	const memory = "/dev/shm"
	var here, there syscall.Stat_t
	if syscall.Stat(dir, &here) != nil || syscall.Stat(memory, &there) != nil || here.Dev == there.Dev {
		return t.TempDir()
	}
	other, err := os.MkdirTemp(memory, "weir-integration-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(other); err != nil {
			t.Error(err)
		}
	})
	return other
}

// remove deletes a local store, if there is one.
func (w *world) remove(dir string) {
	w.t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		w.t.Fatal(err)
	}
}

// replace puts a copy of the directory from in the place of to. No file of the copy is
// a link.
func (w *world) replace(to, from string) {
	w.t.Helper()
	w.remove(to)
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		w.t.Fatal(err)
	}
}

// segmentFiles returns the files of segments in a local store.
func segmentFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "segments", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// sizeOf returns how many files are below dir and their bytes. Files may come and go.
func sizeOf(t *testing.T, dir string) (files int, bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			files++
			bytes += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files, bytes
}

// damage is what may become of a file while nobody looks.
type damage struct {
	name string
	do   func(whole []byte) []byte // nil: the file is deleted
}

var damages = []damage{
	{"truncated", func(whole []byte) []byte { return whole[:len(whole)/2] }},
	{"torn to nothing", func([]byte) []byte { return []byte{} }},
	{"one bit flipped", func(whole []byte) []byte {
		b := slices.Clone(whole)
		b[len(b)/3] ^= 1 << 4
		return b
	}},
	{"deleted", func([]byte) []byte { return nil }},
}

// damage does it to the file alone, and returns what was in it.
func (w *world) damage(path string, d damage) (whole []byte) {
	w.t.Helper()
	whole, err := os.ReadFile(path)
	if err == nil {
		err = os.Remove(path)
	}
	if b := d.do(whole); err == nil && b != nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return whole
}

// damageLinked does it to what the file and all links to it have in common.
func (w *world) damageLinked(path string, d damage) (whole []byte) {
	w.t.Helper()
	whole, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, d.do(whole), 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return whole
}

// oneSegment makes a world whose state is one segment, larger than what rides in a
// manifest, and which has more input.
func oneSegment(t *testing.T, b backend) (w *world, object string) {
	t.Helper()
	w = newWorld(t, []string{needBroker(t)}, 200)
	w.args = append(w.at(b), "-ballast", "1000", "-interval", "5m")
	w.feedNow(2000)
	w.launch("-drain").exits(0)
	w.settle(progressTime) // the broker tells of a commit a moment after it
	m, _ := w.pointed()
	if len(m.Segments) != 1 || m.Segments[0].Inline() {
		t.Fatalf("the checkpoint has the segments %v, want one that isn't in its manifest", m.Segments)
	}
	w.feedNow(2000)
	return w, m.Segments[0].Object
}

// TestS04_FileDamagedInTheLocalStoreHealsByItself damages what the local store has,
// while the service is down. The checkpoint store has it too, so nobody need do
// anything.
func TestS04_FileDamagedInTheLocalStoreHealsByItself(t *testing.T) {
	for _, b := range []backend{linked, copied} {
		for _, d := range damages {
			t.Run(string(b)+", "+d.name, func(t *testing.T) {
				t.Parallel()
				w, _ := oneSegment(t, b)
				files := segmentFiles(t, w.local(b))
				if len(files) != 1 {
					t.Fatalf("the local store has the files %q, want one", files)
				}
				w.damage(files[0], d)
				p := w.launch("-drain") // nothing is committed before all state was read
				p.exits(0)
				found := 0
				for _, r := range p.all("restarting") {
					t.Log(r.Error)
					if strings.Contains(r.Error, "is damaged in local store") {
						found++
					}
				}
				if d.name == "one bit flipped" && found != 1 {
					t.Errorf("restarted %d times for the damage; want once, when the bit was read\n%s", found, p.story())
				}
				// Until it has partitions it stands by, and what stands by fetches what is missing, too.
				if !slices.ContainsFunc(p.all("restored"), func(r happened) bool { return r.How == "rebuilt" }) &&
					!slices.ContainsFunc(p.all("followed"), func(f happened) bool { return f.Segments == 1 }) {
					t.Errorf("the state was not rebuilt\n%s", p.story())
				}
				w.feedNow(500)
				w.finish(w.launch("-interval", "50ms"))
			})
		}
	}
}

// TestS04_DamagedSegmentIsRefusedByNameWithALocalStore damages the checkpoint store
// where the local store has nothing, or nothing but a link to the same file.
func TestS04_DamagedSegmentIsRefusedByNameWithALocalStore(t *testing.T) {
	for _, kept := range []bool{false, true} {
		for _, d := range damages {
			if kept && d.name == "deleted" {
				continue // the local store still has it
			}
			name := d.name + ", local store deleted"
			if kept {
				name = d.name + ", linked by the local store"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w, object := oneSegment(t, linked)
				path := filepath.Join(w.store, filepath.FromSlash(object))
				var whole []byte
				if kept {
					whole = w.damageLinked(path, d)
				} else {
					whole = w.damage(path, d)
					w.remove(w.local(linked))
				}
				p := w.launch()
				says := "damaged"
				if d.name == "deleted" {
					says = "missing"
				}
				t.Log(p.refuses(object, says))
				if n := p.count("committed"); n != 0 {
					t.Errorf("%d checkpoints were committed\n%s", n, p.story())
				}
				again := slices.DeleteFunc(p.all("restarting"), func(r happened) bool { return !strings.Contains(r.Error, object) })
				if n := len(again); n > 1 {
					t.Errorf("restarted %d times for the segment, want at most once: to look at it as a whole\n%s", n, p.story())
				}
				if err := os.WriteFile(path, whole, 0o600); err != nil {
					t.Fatal(err)
				}
				w.finish(w.launch("-interval", "50ms"))
			})
		}
	}
}

// TestS27_SubtasksChangeBetweenLivesUnderLoad has 1, 3, 7 and 2 subtasks in turn,
// killed and stopped.
func TestS27_SubtasksChangeBetweenLivesUnderLoad(t *testing.T) {
	onEachBackend(t, "", func(t *testing.T, b backend) {
		t.Parallel()
		w := newWorld(t, []string{needBroker(t)}, 2000)
		w.args = append(w.at(b), "-interval", "20ms", "-ballast", "400", "-memory", tiny(b))
		w.feedOn(40, 10*time.Millisecond)
		for i := range 2 {
			for j, n := range []int{1, 3, 7, 2} {
				p := w.launch("-parallelism", fmt.Sprint(n))
				p.await("committed", 3, progressTime)
				if (i+j)%2 == 0 {
					p.killAtRandom(200 * time.Millisecond)
				} else {
					p.stop()
				}
			}
		}
		w.quench()
		w.finish(w.launch("-parallelism", "5"))
	})
}

// tiny is the least memory that a local store can be given.
func tiny(b backend) string {
	if b == inMemory {
		return "0"
	}
	return "1"
}

// TestS28_BackendIsSwitchedBetweenLivesWhileInputFlows goes from one backend to
// another, killed and stopped. Each local store is older than what the others did
// meanwhile.
func TestS28_BackendIsSwitchedBetweenLivesWhileInputFlows(t *testing.T) {
	t.Parallel()
	w := newWorld(t, []string{needBroker(t)}, 1000)
	w.args = []string{"-interval", "20ms", "-ballast", "400"}
	w.feedOn(40, 10*time.Millisecond)
	hows := map[string]int{}
	lives := []backend{inMemory, linked, copied, inMemory, copied, linked, linked, inMemory, linked, copied, copied, inMemory}
	for i, b := range lives {
		p := w.launch(w.at(b)...)
		p.await("committed", 3, progressTime)
		how := p.all("restored")[0].How
		if i > 0 && (b == inMemory) != (how == "read") {
			t.Errorf("with its state in %s the service came to it %q", b, how)
		}
		hows[how]++
		if i%2 == 0 {
			p.killAtRandom(200 * time.Millisecond)
		} else {
			p.stop()
		}
	}
	w.quench()
	w.finish(w.launch(w.at(linked)...))
	t.Logf("how the state came: %v", hows)
	if hows["reused"]+hows["caught up"] == 0 {
		t.Errorf("no local store kept anything from one life to another: %v", hows)
	}
}

// TestS33_StateLargerThanItsMemory has state of many times what may be in memory.
func TestS33_StateLargerThanItsMemory(t *testing.T) {
	for _, b := range []backend{linked, copied} {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			const keys = 10_000
			w := newWorld(t, []string{needBroker(t)}, keys)
			w.args = append(w.at(b), "-memory", tiny(b), "-ballast", "1000") // 10 MB in 2 MiB
			w.feedNow(2 * keys)
			w.launch("-drain").exits(0)
			before := w.input()
			for range 4 {
				w.feedNow(keys)
			}
			// once is how many values are read if each stays in memory from then on.
			old, once := newModel().take(before...), 0
			for key := range newModel().take(w.since(before)...).tallies {
				if _, ok := old.tallies[key]; ok {
					once++
				}
			}
			p := w.launch("-drain", "-interval", "5m")
			p.exits(0)
			reasons := map[string]int{}
			for _, c := range p.all("begun") {
				reasons[c.Reason]++
			}
			if reasons["memory"] < 2 {
				t.Errorf("checkpoints were taken for these reasons: %v; what changed should have filled the memory more than once", reasons)
			}
			committed := p.all("committed")
			decoded := committed[len(committed)-1].Decoded
			if decoded <= int64(once) {
				t.Errorf("%d values were read from the local store, want more than one for each of the %d keys that it had: none was dropped from memory", decoded, once)
			}
			var entries []int64
			for _, c := range p.all("persisted") {
				entries = append(entries, c.Entries)
			}
			t.Logf("entries of the checkpoints: %v; %d values read, of %d keys", entries, decoded, once)
			t.Logf("checkpoints by reason: %v", reasons)
			w.feedNow(2000)
			w.finish(w.launch("-interval", "50ms"))
		})
	}
}
