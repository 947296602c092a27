package checkpoint

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/weirstream/weir/internal/crashpoint"
)

// Dir is a store in a directory of a local or network file system.
//
// Put writes a temporary file beside the object, syncs it, links it to its name,
// which fails if the name is taken, and syncs the directory. So a name stands for
// the complete object from the first instant on. A file system without hard links
// moves the file to its name instead.
type Dir struct {
	path string // absolute

	mu   sync.Mutex
	made map[string]bool // directories that exist durably
}

const (
	tempPrefix = ".tmp-"
	// tempAge is how old a temporary file must be before it counts as left behind
	// by a crash: much longer than any Put takes, because it may be another
	// process that is writing it.
	tempAge = time.Hour

	dirMode  = 0o755
	fileMode = 0o644
)

// OpenDir opens the store in the directory at path and makes it if it is missing.
func OpenDir(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, &StoreError{Op: "open", Store: path, Err: err}
	}
	d := &Dir{path: abs, made: map[string]bool{}}
	if err := d.makeDir(abs); err != nil {
		return nil, &StoreError{Op: "open", Store: d.String(), Err: err}
	}
	return d, nil
}

// File returns the path of the file that an object is, whether there is one or not; ok
// is false if there can't be. The file must not be changed.
func (d *Dir) File(object string) (path string, ok bool) {
	path, err := d.file(object)
	return path, err == nil
}

// Path returns the directory's absolute path.
func (d *Dir) Path() string { return d.path }

// String returns the URL, with the path as it is: OpenStore does not know escapes either.
func (d *Dir) String() string { return "file://" + d.path }

func (d *Dir) err(op, name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.Join(ErrNotFound, err)
	}
	return &StoreError{Op: op, Object: name, Store: d.String(), Err: err}
}

func (d *Dir) file(name string) (string, error) {
	if !validName(name) {
		return "", errBadName
	}
	return filepath.Join(d.path, filepath.FromSlash(name)), nil
}

// makeDir makes dir and its parents and syncs each parent that got a new entry: a
// synced file in a directory whose own entry is lost is lost, too. So is that of a
// directory that was there: who made it may have died, or failed, before he synced.
func (d *Dir) makeDir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.makeDirLocked(dir)
}

// makeDirAgain is makeDir where it was found to be gone.
func (d *Dir) makeDirAgain(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.made)
	return d.makeDirLocked(dir)
}

func (d *Dir) makeDirLocked(dir string) error {
	if d.made[dir] {
		return nil
	}
	info, err := os.Stat(dir)
	switch {
	case err == nil && !info.IsDir():
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	case err == nil:
		// Above the store's own directories there are others' file systems, and some that
		// can't be opened.
		if err := syncDir(filepath.Dir(dir)); err != nil && len(dir) > len(d.path) {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	default:
		parent := filepath.Dir(dir)
		if err := d.makeDirLocked(parent); err != nil {
			return err
		}
		if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := syncDir(parent); err != nil {
			return err
		}
	}
	d.made[dir] = true
	return nil
}

// Put implements Store.
func (d *Dir) Put(ctx context.Context, name string, data []byte) error {
	if err := d.put(ctx, name, data); err != nil {
		return d.err("put", name, err)
	}
	return nil
}

func (d *Dir) put(ctx context.Context, name string, data []byte) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	file, err := d.file(name)
	if err != nil {
		return err
	}
	dir := filepath.Dir(file)
	if err := d.makeDir(dir); err != nil {
		return err
	}
	temp, wrote, err := writeTemp(dir, data)
	if errors.Is(err, fs.ErrNotExist) {
		// Somebody removed the directory under us; a store made anew is as good.
		if err := d.makeDirAgain(dir); err != nil {
			return err
		}
		temp, wrote, err = writeTemp(dir, data)
	}
	if err != nil {
		return err
	}
	crashpoint.Hit(crashpoint.InStorePut)
	if err := ctx.Err(); err != nil {
		_ = os.Remove(temp)
		return err
	}
	err = linkFile(temp, file)
	if unsupported(err) {
		err = renameNew(temp, file)
	}
	if err != nil && isAt(wrote, file) {
		err = nil
	}
	// The object stands under its name by now, or doesn't; a temporary file that
	// can't be removed is collected later.
	_ = os.Remove(temp)
	if errors.Is(err, fs.ErrExist) {
		return ErrExists
	}
	if err != nil {
		return err
	}
	crashpoint.Hit(crashpoint.AfterStoreRename)
	return syncDir(dir)
}

// Link implements Linker by a hard link, where from is a directory of the same file
// system. The bytes are shared, but neither name depends on the other: deleting, moving
// or copying one leaves the other as it is.
func (d *Dir) Link(ctx context.Context, name string, from Store, object string) (bool, error) {
	from, object = below(from, object)
	src, ok := from.(*Dir)
	if !ok {
		return false, nil
	}
	done, err := d.link(ctx, name, src, object)
	if err != nil {
		return false, d.err("link", name, err)
	}
	return done, nil
}

func (d *Dir) link(ctx context.Context, name string, src *Dir, object string) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	old, err := src.file(object)
	if err != nil {
		return false, err
	}
	file, err := d.file(name)
	if err != nil {
		return false, err
	}
	dir := filepath.Dir(file)
	if err := d.makeDir(dir); err != nil {
		return false, err
	}
	err = os.Link(old, file)
	if errors.Is(err, fs.ErrNotExist) {
		// There is no such object, or somebody removed the directory under us.
		if err := d.makeDirAgain(dir); err != nil {
			return false, err
		}
		err = os.Link(old, file)
	}
	switch {
	case unsupported(err), errors.Is(err, syscall.EXDEV), errors.Is(err, syscall.EMLINK):
		return false, nil
	case errors.Is(err, fs.ErrExist):
		return false, ErrExists
	case err != nil:
		return false, err
	}
	return true, syncDir(dir)
}

// writeAtOnce is how much goes into one system call. While one lasts, Go lets another
// goroutine have the thread's turn, so a processor more is asked for than there are; if it
// lasts for milliseconds the kernel takes them from who handles records.
const writeAtOnce = 256 << 10

// writeTemp writes data durably into a new temporary file in dir, and returns which file
// that is.
func writeTemp(dir string, data []byte) (temp string, wrote fs.FileInfo, err error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	temp = filepath.Join(dir, tempPrefix+hex.EncodeToString(id[:]))
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return "", nil, err
	}
	n, err := writeDirect(f, data)
	for rest := data[n:]; len(rest) > 0 && err == nil; {
		n := min(len(rest), writeAtOnce)
		_, err = f.Write(rest[:n])
		rest = rest[n:]
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		wrote, err = f.Stat()
	}
	err = cmp.Or(err, f.Close())
	if err != nil {
		_ = os.Remove(temp)
		return "", nil, err
	}
	return temp, wrote, nil
}

// isAt tells whether a file has that name. If the first answer of a file server is lost, the
// request is sent again, and to that the server may say that the name is taken, by this very
// file, or that nothing is to be moved any more.
func isAt(f fs.FileInfo, name string) bool {
	at, err := os.Lstat(name)
	return err == nil && os.SameFile(f, at)
}

// unsupported tells that the file system can't do what was asked for.
func unsupported(err error) bool {
	return errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.ENOSYS)
}

// renameNew is for file systems without hard links. Where they can't keep what has the name
// either, another process could take it between look and rename. Only the store's marker,
// its owners and savepoints have names that two processes would choose. Who loses the marker
// or the store notices at the next start.
func renameNew(temp, file string) error {
	err := moveNewFile(temp, file)
	if !unsupported(err) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	if _, err := os.Lstat(file); err == nil {
		return fs.ErrExist
	}
	return os.Rename(temp, file)
}

// Variables for tests: file systems differ, and networks lose answers.
var (
	linkFile    = os.Link
	moveNewFile = renameNoReplace
	syncDir     = fsyncDir
)

func fsyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return cmp.Or(f.Sync(), f.Close())
}

// Get implements Store.
func (d *Dir) Get(ctx context.Context, name string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, d.err("get", name, err)
	}
	file, err := d.file(name)
	if err != nil {
		return nil, d.err("get", name, err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, d.err("get", name, err)
	}
	return b, nil
}

// GetRange implements Store.
func (d *Dir) GetRange(ctx context.Context, name string, off, n int64) ([]byte, error) {
	return d.getRangeInto(ctx, name, off, n, nil)
}

// getRangeInto is GetRange into memory, if that has the length, and the address, that it takes.
func (d *Dir) getRangeInto(ctx context.Context, name string, off, n int64, memory []byte) ([]byte, error) {
	b, err := d.getRange(ctx, name, off, n, memory)
	if err != nil {
		return nil, d.err("get range", name, err)
	}
	return b, nil
}

func (d *Dir) getRange(ctx context.Context, name string, off, n int64, memory []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	file, err := d.file(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if size := info.Size(); off < 0 || n < 0 || off > size || n > size-off {
		return nil, io.ErrUnexpectedEOF
	}
	return readDirect(f, info.Size(), off, n, memory)
}

// List implements Store.
func (d *Dir) List(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		var found []Object
		err := ctx.Err()
		if err == nil {
			err = d.walk(ctx, prefix, func(name string, info fs.FileInfo) error {
				// Beside temporary files there may be what other programs hide there, as .DS_Store
				// and .nfs0001 are. It is no object, and could not be deleted as one.
				if validName(name) && strings.HasPrefix(name, prefix) {
					found = append(found, Object{name, info.Size(), info.ModTime()})
				}
				return nil
			})
		}
		if err != nil {
			yield(Object{}, d.err("list", prefix, err))
			return
		}
		// A walk visits a/b before a-b, whose name is the lesser one.
		slices.SortFunc(found, func(a, b Object) int { return strings.Compare(a.Name, b.Name) })
		for _, o := range found {
			if !yield(o, nil) {
				return
			}
		}
	}
}

// walk visits the files below the last directory of prefix.
func (d *Dir) walk(ctx context.Context, prefix string, visit func(name string, info fs.FileInfo) error) error {
	dir := ""
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		dir = prefix[:i]
	}
	return d.walkDir(ctx, dir, visit)
}

// walkDir visits the files below dir. It follows symbolic links, as Get and Put do: a
// directory may be on another disk.
func (d *Dir) walkDir(ctx context.Context, dir string, visit func(name string, info fs.FileInfo) error) error {
	root, err := filepath.EvalSymlinks(filepath.Join(d.path, filepath.FromSlash(dir)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was ever put there
	}
	if err != nil {
		return err
	}
	return filepath.WalkDir(root, func(file string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted between being read and being looked at
		}
		if err != nil || e.IsDir() {
			return err
		}
		info, err := os.Stat(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		name := path.Join(dir, filepath.ToSlash(rel))
		if info.IsDir() {
			return d.walkDir(ctx, name, visit)
		}
		return visit(name, info)
	})
}

// Delete implements Store. The directory is not synced: an object that comes back
// after a crash is garbage again.
func (d *Dir) Delete(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return d.err("delete", name, err)
	}
	file, err := d.file(name)
	if err != nil {
		return d.err("delete", name, err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d.err("delete", name, err)
	}
	return nil
}

// removeTemps removes temporary files that a crash left behind, and returns how
// many. Beside the store's own directories there may be other things, as where a file system
// is mounted: they are not looked at.
func (d *Dir) removeTemps(ctx context.Context, now time.Time) (int, error) {
	n := 0
	var errs []error
	remove := func(name string, info fs.FileInfo) error {
		if !strings.HasPrefix(path.Base(name), tempPrefix) || now.Sub(info.ModTime()) < tempAge {
			return nil
		}
		err := os.Remove(filepath.Join(d.path, filepath.FromSlash(name)))
		switch {
		case err == nil:
			n++
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err) // it may be another owner's, which need not keep the others
		}
		return nil
	}
	entries, err := os.ReadDir(d.path)
	for _, e := range entries {
		if info, ierr := e.Info(); ierr == nil && !e.IsDir() {
			_ = remove(e.Name(), info)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // nothing was ever put there
	}
	for _, prefix := range []string{manifestPrefix, segmentPrefix, logPrefix, inFlightPrefix, savepointPrefix, probePrefix, ownerPrefix} {
		err = errors.Join(err, d.walk(ctx, prefix, remove))
	}
	if err := errors.Join(append(errs, err)...); err != nil {
		return n, d.err("remove temporary files", "", err)
	}
	return n, nil
}
