package checkpoint

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// The segment of a checkpoint is written once, read once, by the merge that makes a larger
// one of it, and deleted: of what it says, what is asked for soon is still in the memory of
// who wrote it. To take it into the page cache and out again would cost more than all else
// that is done to write it, and push out what is read. So objects of that size go around the
// cache, both ways, where the file system lets them.
const (
	directMin = DefaultInlineLimit + 1
	directMax = 4 << 20

	// directAlign is what offsets, lengths and addresses must be multiples of. Sectors are
	// no larger.
	directAlign = 4096
)

func goesDirect(size int64) bool { return size >= directMin && size <= directMax }

// addressOff is added to addresses that would be aligned; for a test.
var addressOff = 0

func isAligned(b []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))&(directAlign-1) == 0
}

// aligned returns n bytes at an address that is a multiple of directAlign.
func aligned(n int) []byte {
	b := make([]byte, n+directAlign-1+addressOff)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b))))&(directAlign-1) + addressOff
	return b[skip : skip+n : skip+n]
}

var directBuffers = newDirectBuffers()

func newDirectBuffers() *sync.Pool {
	return &sync.Pool{New: func() any { b := aligned(writeAtOnce); return &b }}
}

// writeDirect writes the begin of data, as much as goes, around the page cache, and returns
// how much that was. The file, which is new, is as any other afterwards.
func writeDirect(f *os.File, data []byte) (n int, err error) {
	if !goesDirect(int64(len(data))) || setDirect(f, true) != nil {
		return 0, nil
	}
	// What comes from a large buffer begins with a page as it is.
	var buffer []byte
	if !isAligned(data) {
		b := directBuffers.Get().(*[]byte)
		defer directBuffers.Put(b)
		buffer = *b
	}
	for err == nil && len(data)-n >= directAlign {
		c := min(len(data)-n, writeAtOnce) &^ (directAlign - 1)
		from := data[n : n+c]
		if buffer != nil {
			copy(buffer, from)
			from = buffer[:c]
		}
		_, err = f.Write(from)
		if errors.Is(err, syscall.EINVAL) { // this file system wants something else
			err = nil
			break
		}
		n += c
	}
	return n, errors.Join(err, setDirect(f, false))
}

// readDirect reads n bytes at off of a file of that size, around the page cache if it was
// written so. It reads into memory if that will do.
func readDirect(f *os.File, size, off, n int64, memory []byte) ([]byte, error) {
	if goesDirect(size) && setDirect(f, true) == nil {
		begin := off &^ (directAlign - 1)
		end := (off + n + directAlign - 1) &^ (directAlign - 1)
		b := memory[:0]
		if int64(cap(b)) < end-begin || !isAligned(b) {
			b = aligned(int(end - begin))
		}
		b = b[:end-begin]
		got, err := f.ReadAt(b, begin)
		if int64(got) >= off-begin+n { // the file may end before the last sector does
			return b[off-begin : off-begin+n], nil
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if errors.Is(err, syscall.EINVAL) { // this file system wants something else
			err = setDirect(f, false)
		}
		if err != nil {
			return nil, err
		}
	}
	b := memory[:0]
	if int64(cap(b)) < n {
		b = make([]byte, n)
	}
	b = b[:n]
	if _, err := io.ReadFull(io.NewSectionReader(f, off, n), b); err != nil {
		return nil, err
	}
	return b, nil
}
