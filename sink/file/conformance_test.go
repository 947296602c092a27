package file

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/twophase"
	"github.com/weirstream/weir/weirtest/conformance"
)

// visible returns what readers of the directory see: files by name.
func visible(t testing.TB, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(b)
	}
	return files
}

// texts returns the contents of files, in an order of their own.
func texts(files map[string]string) []string {
	all := []string{}
	for _, text := range files {
		all = append(all, text)
	}
	slices.Sort(all)
	return all
}

func line(dst []byte, v string) ([]byte, error) { return append(dst, v...), nil }

func TestLinesConform(t *testing.T) {
	conforms(t, func(o Options) *participant[string] { return lines(o, line) }, func(vs []string) string { return strings.Join(vs, "\n") + "\n" })
}

func TestRecordsConform(t *testing.T) {
	conforms(t, func(o Options) *participant[string] { return records(o, codec.String) }, func(vs []string) string {
		text := "weir-records 1 string 1\n"
		for _, v := range vs {
			text += string(rune(len(v))) + v
		}
		return text
	})
}

func conforms(t *testing.T, make func(Options) *participant[string], text func([]string) string) {
	conformance.TwoPhase[string]{Values: []string{"a", "bb", "c", "dd", "e", "ff"}, New: func(tb testing.TB) conformance.Transactional[string] {
		o := Options{Dir: filepath.Join(t.TempDir(), "new", "out"), Prefix: "p-", Suffix: ".txt"}
		return conformance.Transactional[string]{
			Participant: func() twophase.Participant[string] { return make(o) },
			Contents:    func() any { return texts(visible(tb, o.Dir)) },
			Want: func(transactions [][]string) any {
				want := []string{}
				for _, vs := range transactions {
					want = append(want, text(vs))
				}
				slices.Sort(want)
				return want
			},
		}
	}}.Run(t)
}
