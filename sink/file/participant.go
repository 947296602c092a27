package file

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/sink/twophase"
)

// participant is the directory.
type participant[T any] struct {
	o      Options
	what   string
	header []byte // of each file
	encode func(dst []byte, v T) ([]byte, error)
	bad    error // what is wrong with the encoding
}

func (p *participant[T]) Check() error   { return errors.Join(p.o.check(), p.bad) }
func (p *participant[T]) String() string { return p.o.String() + ", " + p.what }

// hidden is the folder of the directory that has what is not committed.
const hidden = ".weir"

// folder is that of an app's operator, from the directory.
func folder(app, operator string) string {
	escape := func(s string) string {
		s = url.PathEscape(s)
		if strings.Trim(s, ".") == "" {
			s = strings.ReplaceAll(s, ".", "%2E")
		}
		return s
	}
	return filepath.Join(hidden, escape(app), escape(operator))
}

// Connect implements [twophase.Participant].
func (p *participant[T]) Connect(env twophase.Env) (twophase.Receiver[T], error) {
	dir, err := filepath.Abs(p.o.Dir)
	if err != nil {
		return nil, fmt.Errorf("file: directory %s: %w", p.o.Dir, err)
	}
	r := &receiver[T]{
		p: p, operator: env.Operator, dir: dir, in: folder(env.App, env.Operator),
		open: map[*transaction[T]]bool{}, prepared: map[int]int64{},
	}
	if err := makeDir(r.folder(), dir); err != nil {
		return nil, fmt.Errorf("file: %w", passing(err))
	}
	nonce := make([]byte, 8)
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	r.nonce = hex.EncodeToString(nonce)
	return r, nil
}

// receiver is the directory in one incarnation.
type receiver[T any] struct {
	p        *participant[T]
	operator string // ID of the sink
	dir      string // absolute
	in       string // our folder in it
	nonce    string // of the incarnation

	mu       sync.Mutex
	begun    int64
	prepared map[int]int64 // how many files, by subtask
	open     map[*transaction[T]]bool
}

func (r *receiver[T]) folder() string { return filepath.Join(r.dir, r.in) }

// handle names a prepared file. Leftovers have folder and file, and subtask and number if
// the mark is to be taken back that says that it is committed.
type handle struct {
	Dir     string `json:"dir,omitempty"` // where it was prepared
	In      string `json:"in"`            // its folder, from there
	File    string `json:"file"`
	Bytes   int64  `json:"bytes,omitempty"`
	Subtask string `json:"subtask,omitempty"` // INCARNATION-SUBTASK; the subtask is the writer's number
	Number  int64  `json:"number,omitempty"`  // of the subtask's files: they are committed in this order
}

func (h handle) encode() ([]byte, error) { return json.Marshal(h) }

// decode returns a handle that the checkpoint has for this sink's operator ID.
func (r *receiver[T]) decode(b []byte) (handle, error) {
	h, err := decode(b)
	if err != nil {
		err = fmt.Errorf("%w\n  if this was prepared by another kind of sink: start once with that sink, which commits it, and stop; then give this sink a new ID, and start with weir.AllowDroppedState(%q)", err, r.operator)
	}
	return h, err
}

func decode(b []byte) (h handle, err error) {
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("file: transaction %.64q is no file: %w", b, err)
	}
	if h.In == "" || h.File == "" {
		return h, fmt.Errorf("file: transaction %.64q names no file", b)
	}
	if h.File != filepath.Base(h.File) || !filepath.IsLocal(h.In) {
		return h, fmt.Errorf("file: transaction %.64q names a file outside of its directory", b)
	}
	return h, nil
}

// transaction is a file that is being written.
type transaction[T any] struct {
	r       *receiver[T]
	subtask int
	path    string
	f       *os.File
	out     *bufio.Writer
	bytes   int64
	values  int64
	buf     []byte
}

// mostBuffer is how large a buffer may be to be used again.
const mostBuffer = 1 << 20

// Begin implements [twophase.Receiver].
func (r *receiver[T]) Begin(_ context.Context, subtask int) (twophase.Transaction[T], error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun++
	tx := &transaction[T]{r: r, subtask: subtask, path: filepath.Join(r.folder(), fmt.Sprintf("open-%s-%d", r.nonce, r.begun))}
	f, err := os.OpenFile(tx.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, r.p.o.mode())
	if err != nil {
		return nil, passing(err)
	}
	tx.f, tx.out = f, bufio.NewWriterSize(f, 64<<10)
	r.open[tx] = true
	return tx, nil
}

// Write implements [twophase.Transaction].
func (tx *transaction[T]) Write(v T) error {
	buf, err := tx.r.p.encode(tx.buf[:0], v)
	if err != nil {
		return err
	}
	if tx.values == 0 {
		if err := tx.put(tx.r.p.header); err != nil {
			return err
		}
	}
	tx.values++
	if tx.buf = buf; cap(buf) > mostBuffer {
		tx.buf = nil
	}
	return tx.put(buf)
}

func (tx *transaction[T]) put(b []byte) error {
	n, err := tx.out.Write(b)
	tx.bytes += int64(n)
	if err != nil {
		return &sink.Outage{Err: passing(err)} // the value can't help it
	}
	return nil
}

// Prepare implements [twophase.Transaction].
func (tx *transaction[T]) Prepare(ctx context.Context) ([]byte, error) {
	if tx.values == 0 {
		tx.Rollback(ctx)
		return nil, nil
	}
	if err := errors.Join(tx.out.Flush(), syncFile(tx.f)); err != nil {
		return nil, passing(err)
	}
	r := tx.r
	r.mu.Lock()
	r.prepared[tx.subtask]++
	h := handle{Dir: r.dir, In: r.in, Bytes: tx.bytes, Subtask: r.nonce + "-" + strconv.Itoa(tx.subtask), Number: r.prepared[tx.subtask]}
	delete(r.open, tx)
	r.mu.Unlock()
	h.File = fmt.Sprintf("%s%s-%d-%s-%06d%s", r.p.o.Prefix, time.Now().UTC().Format("20060102T150405.000Z"), tx.subtask, r.nonce, h.Number, r.p.o.Suffix)
	if err := tx.f.Close(); err != nil {
		return nil, passing(err)
	}
	to := filepath.Join(r.folder(), h.File)
	if err := rename(tx.path, to); errors.Is(err, fs.ErrNotExist) {
		// A file server that is asked again, because its first answer was lost, finds nothing
		// to rename. The new name is nobody else's.
		if info, serr := os.Lstat(to); serr != nil || info.Size() != h.Bytes {
			return nil, passing(err)
		}
	} else if err != nil {
		return nil, passing(err)
	}
	if err := syncDir(r.folder()); err != nil {
		return nil, passing(err)
	}
	return h.encode()
}

// Rollback implements [twophase.Transaction].
func (tx *transaction[T]) Rollback(context.Context) {
	tx.r.mu.Lock()
	delete(tx.r.open, tx)
	tx.r.mu.Unlock()
	_ = tx.f.Close() // what was written is not wanted
	_ = os.Remove(tx.path)
}

// Commit implements [twophase.Receiver].
func (r *receiver[T]) Commit(_ context.Context, b []byte) error {
	h, err := r.decode(b)
	if err != nil {
		return err
	}
	// The directory may have been moved or copied, and Options with it: then the file is
	// where it was prepared, if it is there at all, for nobody to see.
	err = r.commitIn(r.dir, h)
	if errors.Is(err, twophase.ErrGone) && h.Dir != r.dir {
		if was := r.commitIn(h.Dir, h); !errors.Is(was, twophase.ErrGone) {
			return was
		}
		return fmt.Errorf("%w; it was prepared in %s, and is not there either", err, h.Dir)
	}
	return err
}

// commitIn commits a file whose directory is at dir. Two processes may be here at once.
func (r *receiver[T]) commitIn(dir string, h handle) error {
	in := filepath.Join(dir, h.In)
	from, to := filepath.Join(in, h.File), filepath.Join(dir, h.File)
	switch info, err := os.Lstat(from); {
	case errors.Is(err, fs.ErrNotExist):
		return committed(in, to, h)
	case err != nil:
		return passing(err)
	case info.Size() != h.Bytes:
		return fmt.Errorf("%w: %s has %d bytes, and %d were prepared: the file was damaged", twophase.ErrGone, from, info.Size(), h.Bytes)
	}
	if err := mark(in, h); err != nil {
		return passing(errors.Join(err, unmark(in, h)))
	}
	if err := rename(from, to); errors.Is(err, fs.ErrNotExist) {
		return committed(in, to, h)
	} else if err != nil {
		return passing(errors.Join(err, unmark(in, h)))
	}
	// Another process, whose rename failed, may have taken the mark back.
	if err := errors.Join(touch(in, h), syncDir(dir), syncDir(in)); err != nil {
		return passing(err)
	}
	before := h
	before.Number--
	_ = os.Remove(filepath.Join(in, before.mark())) // there may be none; a start removes what stays
	return nil
}

// committed tells whether a file that is not prepared any more was committed.
func committed(in, to string, h handle) error {
	info, err := os.Lstat(to)
	if err == nil && info.Size() == h.Bytes {
		return passing(errors.Join(syncDir(filepath.Dir(to)), syncDir(in))) // who renamed it may have died
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return passing(err)
	}
	entries, err := os.ReadDir(in)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return passing(err)
	}
	for _, e := range entries {
		if subtask, number, ok := parseMark(e.Name()); ok && subtask == h.Subtask && number >= h.Number {
			return nil // and somebody took it away
		}
	}
	return fmt.Errorf("%w: %s is neither in %s nor committed, and nothing says that it was: is the right directory mounted?", twophase.ErrGone, h.File, in)
}

// marked begins the name of a mark.
const marked = "committed-"

// mark is the name of the mark that the file is committed, and those before it.
func (h handle) mark() string { return fmt.Sprintf("%s%s-%d", marked, h.Subtask, h.Number) }

// mark notes, durably, that the file is going to be in the directory. A mark is made under a
// new name, so a process that was replaced can't set it back, but for that of a file that is
// still prepared.
func mark(in string, h handle) error {
	if err := touch(in, h); err != nil {
		return err
	}
	return syncDir(in)
}

// touch makes the mark if there is none.
func touch(in string, h handle) error {
	f, err := os.OpenFile(filepath.Join(in, h.mark()), os.O_CREATE|os.O_WRONLY, defaultMode)
	if err != nil {
		return err
	}
	return f.Close()
}

// unmark takes back, durably, the mark of a file that is still prepared, and so was not
// committed whatever the mark says. If it is not there, the mark stays.
func unmark(in string, h handle) error {
	isPrepared := func() (bool, error) {
		_, err := os.Lstat(filepath.Join(in, h.File))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	}
	if is, err := isPrepared(); !is {
		return err
	}
	before := h
	before.Number--
	var err error
	if is := filepath.Join(in, h.mark()); before.Number > 0 {
		err = rename(is, filepath.Join(in, before.mark())) // in one step: it is never without a mark
	} else {
		err = os.Remove(is)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if is, err := isPrepared(); err != nil {
		return err
	} else if !is {
		return mark(in, h) // another process committed it meanwhile
	}
	return syncDir(in)
}

// markName is what marks are called. A prepared file may begin as they do, but then has a
// time where they have the incarnation.
var markName = regexp.MustCompile(`^` + marked + `([0-9a-f]+-[0-9]+)-([0-9]+)$`)

// parseMark returns of which subtask, and up to which number, files are committed.
func parseMark(name string) (subtask string, number int64, ok bool) {
	m := markName.FindStringSubmatch(name)
	if m == nil {
		return "", 0, false
	}
	number, err := strconv.ParseInt(m[2], 10, 64)
	return m[1], number, err == nil
}

// preparedName is what the names of prepared files have between prefix and suffix. A suffix
// that begins with a digit makes the number longer.
var preparedName = regexp.MustCompile(`T[0-9]{6}\.[0-9]{3}Z-([0-9]+)-([0-9a-f]{16})-([0-9]{6,})`)

// markOf returns the mark that says of a prepared file that it is committed, if it is the
// last one of its subtask: subtask and number of a handle.
func markOf(name string, last map[string]int64) (subtask string, number int64) {
	for _, m := range preparedName.FindAllStringSubmatch(name, -1) {
		subtask = m[2] + "-" + m[1]
		if number, ok := last[subtask]; ok && strings.HasPrefix(m[3], fmt.Sprintf("%06d", number)) {
			return subtask, number
		}
	}
	return "", 0
}

// Leftovers implements [twophase.Receiver]. Among them are marks that a later one replaces.
// The last one of a subtask stays, also if nothing that is named needs it: a savepoint may.
// Where that one was made for a file that is left over, Abort takes it back, and the one
// before it stays as well.
func (r *receiver[T]) Leftovers(_ context.Context, named [][]byte) ([][]byte, error) {
	var files []string
	for _, b := range named {
		h, err := r.decode(b)
		if err != nil {
			return nil, err
		}
		files = append(files, h.File)
	}
	entries, err := os.ReadDir(r.folder())
	if err != nil {
		return nil, passing(err)
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return e.IsDir() || strings.HasPrefix(e.Name(), ".") // as .nfs0001 is, a file that somebody has open
	})
	last, taken := map[string]int64{}, map[string]bool{} // by subtask: its last mark, and whether that is taken back
	for _, e := range entries {
		if subtask, number, ok := parseMark(e.Name()); ok {
			last[subtask] = max(last[subtask], number)
		}
	}
	if err := syncDir(r.folder()); err != nil { // who made them may have died
		return nil, passing(err)
	}
	var handles []handle
	for _, e := range entries {
		if _, _, isMark := parseMark(e.Name()); isMark || slices.Contains(files, e.Name()) {
			continue
		}
		h := handle{In: r.in, File: e.Name()}
		if h.Subtask, h.Number = markOf(e.Name(), last); h.Number > 0 {
			taken[h.Subtask] = true
		}
		handles = append(handles, h)
	}
	for _, e := range entries {
		subtask, number, isMark := parseMark(e.Name())
		if !isMark || number == last[subtask] || number == last[subtask]-1 && taken[subtask] {
			continue
		}
		handles = append(handles, handle{In: r.in, File: e.Name()})
	}
	var left [][]byte
	for _, h := range handles {
		b, err := h.encode()
		if err != nil {
			return nil, err
		}
		left = append(left, b)
	}
	return left, nil
}

// Abort implements [twophase.Receiver].
func (r *receiver[T]) Abort(_ context.Context, leftover []byte) error {
	h, err := decode(leftover)
	if err != nil {
		return err
	}
	in := filepath.Join(r.dir, h.In)
	if h.Number > 0 {
		if err := unmark(in, h); err != nil {
			return passing(err)
		}
	}
	if err := os.Remove(filepath.Join(in, h.File)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return passing(err)
	}
	return nil // if the removal is not durable, the next start finds it again
}

// Close implements [twophase.Receiver].
func (r *receiver[T]) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for tx := range r.open {
		errs = append(errs, tx.f.Close())
	}
	clear(r.open)
	return errors.Join(errs...)
}

// makeDir makes a directory in ours and those above it, and syncs each one that got a new
// entry. So it does above a directory that is there: who made it may have died before.
func makeDir(dir, ours string) error {
	above := filepath.Dir(dir)
	info, err := os.Stat(dir)
	switch {
	case err == nil && !info.IsDir():
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	case err == nil:
		// Above our directory there are others' file systems, and some that can't be opened.
		if err := syncDir(above); err != nil && len(dir) > len(ours) {
			return err
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := makeDir(above, ours); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(above)
}

// Variables for tests.
var (
	rename   = os.Rename
	syncFile = (*os.File).Sync
	syncDir  = fsyncDir
)

func fsyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// passes are errors of the file system that may be over at the next try: it is full, out of
// reach, or the process has too many files open. An error of the disk is none of them.
var passes = []error{
	syscall.ENOSPC, syscall.EDQUOT,
	syscall.EAGAIN, syscall.EINTR, syscall.EMFILE, syscall.ENFILE,
	syscall.ESTALE, syscall.ETIMEDOUT, syscall.ENOTCONN, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ECONNREFUSED, syscall.ECONNRESET,
}

// passing marks errors that pass.
func passing(err error) error {
	for _, e := range passes {
		if errors.Is(err, e) {
			return &sink.Retriable{Err: err}
		}
	}
	return err
}
