package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// openFile opens a file that may be a pipe: neither waiting for its other end nor what is
// read and written then outlasts ctx. A file that is to be written is not made.
func openFile(ctx context.Context, name string, flag int) (*os.File, error) {
	type opened struct {
		f   *os.File
		err error
	}
	c := make(chan opened, 1)
	go func() {
		f, err := os.OpenFile(name, flag, 0)
		c <- opened{f, err}
	}()
	select {
	case o := <-c:
		if o.err == nil {
			context.AfterFunc(ctx, func() { _ = o.f.Close() })
		}
		return o.f, o.err
	case <-ctx.Done():
		return nil, fmt.Errorf("open %s: %w", name, context.Cause(ctx))
	}
}

// writeFile makes a file that is complete or not there, with the mode that one of this name
// has. A link is followed. What is no regular file, such as a pipe, is written to.
func writeFile(ctx context.Context, name string, write func(io.Writer) error) error {
	mode, isNew := fs.FileMode(0o666), false
	switch stat, err := os.Stat(name); {
	case errors.Is(err, fs.ErrNotExist):
		isNew = true
	case err != nil:
		return fmt.Errorf("export: %w", err)
	case !stat.Mode().IsRegular():
		return writeInto(ctx, name, write)
	default:
		mode = stat.Mode().Perm()
	}
	name = followed(name)
	dir, _ := filepath.Split(name)
	f, err := os.OpenFile(fmt.Sprintf("%s.weir-export-%016x", dir, rand.Uint64()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if !isNew {
		err = f.Chmod(mode) // whatever the umask is
	}
	if err == nil {
		err = write(f)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func writeInto(ctx context.Context, name string, write func(io.Writer) error) error {
	f, err := openFile(ctx, name, os.O_WRONLY)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	err = errors.Join(write(f), f.Close())
	if ctx.Err() != nil {
		err = fmt.Errorf("export to %s: %w", name, context.Cause(ctx))
	}
	return err
}

// followed is the name of what a link stands for, which need not be there.
func followed(name string) string {
	const most = 40 // as many as Linux follows
	for range most {
		link, err := os.Readlink(name)
		if err != nil {
			break
		}
		if !filepath.IsAbs(link) {
			dir, _ := filepath.Split(name)
			link = dir + link
		}
		name = link
	}
	return name
}
