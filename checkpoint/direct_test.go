package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// The disk fails after a directory was made. That it is there later does not say that its
// entry is on disk.
func TestDirectoryThatWasNotSyncedIsSyncedLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "store")
	synced, failing := map[string]bool{}, ""
	real := syncDir
	defer func() { syncDir = real }()
	syncDir = func(dir string) error {
		if dir == failing {
			failing = ""
			return syscall.EIO
		}
		synced[dir] = true
		return real(dir)
	}
	failing = filepath.Dir(filepath.Dir(path))
	if _, err := OpenDir(path); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	failing = path
	if err := d.Put(t.Context(), "seg/a", nil); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), "seg/b", nil); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Join(path, "seg"); len(dir) >= len(filepath.Dir(filepath.Dir(path))); dir = filepath.Dir(dir) {
		if !synced[dir] {
			t.Errorf("%s was not synced", dir)
		}
	}
}

// Objects go around the page cache or through it, by their size, and come back as they were.
func TestObjectsOfAllSizesComeBack(t *testing.T) {
	t.Run("from where a page begins", func(t *testing.T) { objectsOfAllSizesComeBack(t, 0) })
	t.Run("from elsewhere", func(t *testing.T) { objectsOfAllSizesComeBack(t, 1) })
	t.Run("the file system refuses the buffers", func(t *testing.T) {
		defer func(b *sync.Pool) { addressOff, directBuffers = 0, b }(directBuffers)
		addressOff, directBuffers = 1, newDirectBuffers()
		objectsOfAllSizesComeBack(t, 1)
	})
}

func objectsOfAllSizesComeBack(t *testing.T, at int) {
	d, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int64{
		1, directAlign, directMin - 1, directMin, directMin + 1, writeAtOnce, writeAtOnce + 1, 3*writeAtOnce - 1,
		directMax - 1, directMax, directMax + 1, directMax + directAlign,
	} {
		name, data := fmt.Sprint("object-", size), make([]byte, int(size)+at)[at:]
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		if err := d.Put(t.Context(), name, data); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Get(t.Context(), name); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes: got %d others, %v", size, len(got), err)
		}
		for range 50 {
			off := rng.Int64N(size + 1)
			n := rng.Int64N(size - off + 1)
			switch rng.IntN(4) {
			case 0:
				off, n = 0, size
			case 1:
				off = off &^ (directAlign - 1)
				n = size - off
			}
			got, err := d.GetRange(t.Context(), name, off, n)
			if err != nil || !bytes.Equal(got, data[off:off+n]) {
				t.Fatalf("%d of %d bytes at %d: got %d others, %v", n, size, off, len(got), err)
			}
		}
	}
}
