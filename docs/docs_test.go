package docs_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/weirstream/weir"
)

// root is the module's directory.
const root = ".."

// pages are the files of the documentation with their contents, by path from root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	m := map[string]string{}
	found, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range found {
		m["docs/"+name] = read(t, name)
	}
	for _, name := range []string{"design", "guide", "guarantees", "operations", "capabilities", "formats"} {
		if m["docs/"+name+".md"] == "" {
			t.Errorf("docs/%s.md is missing", name)
		}
	}
	if b, err := os.ReadFile(filepath.Join(root, "README.md")); err == nil {
		m["README.md"] = string(b)
	}
	return m
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// goFiles calls visit for every Go file below the folders, given from root.
func goFiles(t *testing.T, visit func(path string), folders ...string) {
	t.Helper()
	for _, folder := range folders {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && strings.HasSuffix(path, ".go") {
				visit(path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// squeeze makes all white space alike.
func squeeze(s string) string { return strings.Join(strings.Fields(s), " ") }

var (
	goBlock   = regexp.MustCompile("(?ms)^```go\n(.*?)^```$")
	codeBlock = regexp.MustCompile("(?ms)^```.*?^```$")
)

func TestEveryGoBlockIsCodeThatIsCompiledAndTested(t *testing.T) {
	var sources []string
	goFiles(t, func(path string) { sources = append(sources, squeeze(read(t, path))) }, "docs", "examples")
	blocks := 0
	for name, text := range pages(t) {
		if opened, whole := strings.Count(text, "```go\n"), goBlock.FindAllStringSubmatchIndex(text, -1); opened != len(whole) {
			t.Errorf("%s: %d go blocks begin, %d are closed", name, opened, len(whole))
		}
		for _, at := range goBlock.FindAllStringSubmatchIndex(text, -1) {
			blocks++
			code := squeeze(text[at[2]:at[3]])
			if !slices.ContainsFunc(sources, func(s string) bool { return strings.Contains(s, code) }) {
				t.Errorf("%s:%d: this code stands in no Go file of docs or examples:\n%s", name, 1+strings.Count(text[:at[0]], "\n"), text[at[2]:at[3]])
			}
		}
	}
	if blocks < 10 {
		t.Errorf("found %d go blocks: is the pattern right?", blocks)
	}
}

var (
	link   = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	header = regexp.MustCompile(`(?m)^#+ (.+)$`)
)

// anchors returns the names of the headers of a page, as GitHub makes them.
func anchors(text string) map[string]bool {
	m := map[string]bool{}
	for _, h := range header.FindAllStringSubmatch(text, -1) {
		a := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r > 127:
				return r
			}
			return -1
		}, strings.ToLower(h[1]))
		m[a] = true
	}
	return m
}

func TestRelativeLinksLeadSomewhere(t *testing.T) {
	for name, text := range pages(t) {
		for _, l := range link.FindAllStringSubmatch(codeBlock.ReplaceAllString(text, ""), -1) {
			if strings.Contains(l[1], "://") || strings.HasPrefix(l[1], "mailto:") {
				continue
			}
			path, anchor, _ := strings.Cut(l[1], "#")
			target := filepath.Join(root, filepath.Dir(name), path)
			if path == "" {
				target = filepath.Join(root, name)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: link %s: %v", name, l[1], err)
				continue
			}
			if anchor != "" && !anchors(read(t, target))[anchor] {
				t.Errorf("%s: link %s: the page has no such header", name, l[1])
			}
		}
	}
}

// packages that the documentation names identifiers of, with their folders.
var packages = map[string]string{
	"weir": ".", "barrier": "barrier", "checkpoint": "checkpoint", "codec": "codec", "event": "event", "offsets": "offsets",
	"processor": "processor", "record": "record", "segment": "state/segment", "sink": "sink", "source": "source", "state": "state",
	"pebble": "state/pebble", "txn": "txn", "kafka": "sink/kafka", "redis": "sink/redis", "crashpoint": "internal/crashpoint", "guard": "internal/guard", "keygroup": "internal/keygroup",
	"faultstore": "checkpoint/faultstore", "twophase": "sink/twophase", "file": "sink/file", "weirtest": "weirtest", "conformance": "weirtest/conformance", "lookup": "lookup",
}

// declared returns the exported names of a package: what is declared at its top
// level, with its declaration, and methods and fields as Type.Name.
func declared(t *testing.T, folder string) map[string]ast.Node {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, folder, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]ast.Node{}
	fset := token.NewFileSet()
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				name := d.Name.Name
				if d.Recv != nil {
					name = receiver(d.Recv.List[0].Type) + "." + name
				}
				names[name] = d
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						names[s.Name.Name] = s
						members(names, s)
					case *ast.ValueSpec:
						for _, n := range s.Names {
							names[n.Name] = s
						}
					}
				}
			}
		}
	}
	return names
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

func members(names map[string]ast.Node, s *ast.TypeSpec) {
	var list *ast.FieldList
	switch typ := s.Type.(type) {
	case *ast.StructType:
		list = typ.Fields
	case *ast.InterfaceType:
		list = typ.Methods
	default:
		return
	}
	for _, f := range list.List {
		for _, n := range f.Names {
			names[s.Name.Name+"."+n.Name] = f
		}
	}
}

var qualified = regexp.MustCompile(`\b([a-z]+)\.([A-Z]\w*)`)

func TestEveryNameInTheDocsExists(t *testing.T) {
	known := map[string]map[string]ast.Node{}
	for pkg, folder := range packages {
		known[pkg] = declared(t, folder)
	}
	seen := 0
	for name, text := range pages(t) {
		for _, q := range qualified.FindAllStringSubmatch(text, -1) {
			names, ok := known[q[1]]
			if !ok {
				continue
			}
			seen++
			if names[q[2]] == nil {
				t.Errorf("%s names %s, which does not exist", name, q[0])
			}
		}
	}
	if seen < 100 {
		t.Errorf("found %d names: is the pattern right?", seen)
	}
}

var variable = regexp.MustCompile(`\bWEIR_[A-Z_]*[A-Z]\b`)

func TestVariablesOfTheDocsAndOfTheCodeAreTheSame(t *testing.T) {
	code, shipped := map[string]bool{}, map[string]bool{}
	goFiles(t, func(path string) {
		for _, v := range variable.FindAllString(read(t, path), -1) {
			code[v] = true
			if !strings.HasSuffix(path, "_test.go") {
				shipped[v] = true
			}
		}
	}, ".")
	docs := map[string]bool{}
	for name, text := range pages(t) {
		for _, v := range variable.FindAllString(text, -1) {
			docs[v] = true
			if !code[v] {
				t.Errorf("%s names %s, which no code reads", name, v)
			}
		}
	}
	for v := range shipped {
		if !docs[v] {
			t.Errorf("%s is read by the code and named in no page", v)
		}
	}
}

// returns tells whether a function has one result of that type.
func returns(n ast.Node, typ string) bool {
	f, ok := n.(*ast.FuncDecl)
	if !ok || f.Recv != nil || f.Type.Results == nil || len(f.Type.Results.List) != 1 {
		return false
	}
	id, ok := f.Type.Results.List[0].Type.(*ast.Ident)
	return ok && id.Name == typ
}

func TestGuideListsEveryOptionAndEvent(t *testing.T) {
	guide := pages(t)["docs/guide.md"]
	options := 0
	for name, decl := range declared(t, ".") {
		if !returns(decl, "Option") && !returns(decl, "SourceOption") {
			continue
		}
		options++
		if !strings.Contains(guide, "`weir."+name+"`") {
			t.Errorf("guide.md lacks option weir.%s", name)
		}
	}
	for name := range declared(t, "event") {
		if field, ok := strings.CutPrefix(name, "Listener."); ok && !strings.Contains(guide, "`"+field+"`") {
			t.Errorf("guide.md lacks event %s", field)
		}
	}
	if options < 20 {
		t.Errorf("found %d options: is the search right?", options)
	}
}

func TestDefaultsInTheGuideAreThoseOfTheCode(t *testing.T) {
	guide := pages(t)["docs/guide.md"]
	for option, want := range map[string]string{
		"CheckpointEvery":   weir.DefaultCheckpointEvery.String(),
		"CheckpointTimeout": fmt.Sprintf("%.0fs", weir.DefaultCheckpointTimeout.Seconds()),
		"TolerableFailures": fmt.Sprint(weir.DefaultTolerableFailures),
		"RetryPause":        weir.DefaultRetryPause.String(),
		"KeyGroups":         fmt.Sprint(weir.DefaultKeyGroups),
		"Retain":            fmt.Sprint(weir.DefaultRetain),
		"HeldBytes":         fmt.Sprintf("%d MiB", weir.DefaultHeldBytes>>20),
		"StopTimeout":       weir.DefaultStopTimeout.String(),
		"SessionTimeout":    weir.DefaultSessionTimeout.String(),
	} {
		row := regexp.MustCompile("(?m)^\\| `weir\\." + option + "` \\| ([^|]*) \\|").FindStringSubmatch(guide)
		if row == nil {
			t.Errorf("guide.md has no row of weir.%s", option)
		} else if row[1] != want {
			t.Errorf("guide.md says that the default of weir.%s is %q, it is %q", option, row[1], want)
		}
	}
}

func TestOperationsNamesEveryErrorType(t *testing.T) {
	operations := pages(t)["docs/operations.md"]
	types := 0
	for _, pkg := range []string{"weir", "processor", "checkpoint", "offsets", "txn", "codec", "barrier", "pebble", "redis", "twophase"} {
		for name, decl := range declared(t, packages[pkg]) {
			if _, ok := decl.(*ast.TypeSpec); !ok || !strings.HasSuffix(name, "Error") || !ast.IsExported(name) {
				continue
			}
			types++
			if !strings.Contains(operations, "`"+pkg+"."+name+"`") {
				t.Errorf("operations.md does not explain %s.%s", pkg, name)
			}
		}
	}
	if types < 15 {
		t.Errorf("found %d error types: is the search right?", types)
	}
}

func TestDesignNamesEveryGuardAndCrashPoint(t *testing.T) {
	design := pages(t)["docs/design.md"]
	for _, pkg := range []string{"guard", "crashpoint"} {
		n := 0
		for name, decl := range declared(t, packages[pkg]) {
			v, ok := decl.(*ast.ValueSpec)
			if !ok || len(v.Values) != 1 {
				continue
			}
			lit, ok := v.Values[0].(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING || name == "Env" {
				continue
			}
			n++
			if text := strings.Trim(lit.Value, `"`); !strings.Contains(design, "`"+text+"`") {
				t.Errorf("design.md lacks %s %s", pkg, text)
			}
		}
		if n < 5 {
			t.Errorf("found %d constants of %s: is the search right?", n, pkg)
		}
	}
}

var floorLine = regexp.MustCompile(`(?m)^(\d)  (\S.*?)  +\S.*$`)

// TestPackagesImportOnlyWhatTheMapAllows compares the map of the house in design.md
// with the imports.
func TestPackagesImportOnlyWhatTheMapAllows(t *testing.T) {
	const module = "github.com/weirstream/weir"
	type place struct{ floor, line, at int }
	places := map[string]place{}
	for line, m := range floorLine.FindAllStringSubmatch(pages(t)["docs/design.md"], -1) {
		for at, name := range strings.Split(m[2], ", ") {
			if name == "weir" {
				name = "."
			}
			places[name] = place{int(m[1][0] - '0'), line, at}
		}
	}
	if len(places) < 15 {
		t.Fatalf("found %d packages in the map: is the pattern right?", len(places))
	}
	above := []string{"cmd", "examples", "bench", "integration", "statetest", "docs", "internal/sim"} // imported by nobody
	goFiles(t, func(path string) {
		rel, err := filepath.Rel(root, path)
		if err != nil {
			t.Fatal(err)
		}
		folder := filepath.ToSlash(filepath.Dir(rel))
		top, _, _ := strings.Cut(folder, "/")
		if strings.HasSuffix(path, "_test.go") || slices.Contains(above, top) || slices.Contains(above, folder) {
			return
		}
		from, ok := places[folder]
		if !ok {
			t.Errorf("package %s is not in the map", folder)
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			target := strings.Trim(imp.Path.Value, `"`)
			if target != module && !strings.HasPrefix(target, module+"/") {
				continue
			}
			name := strings.TrimPrefix(strings.TrimPrefix(target, module), "/")
			if name == "" {
				name = "."
			}
			to, ok := places[name]
			if !ok || to.floor > from.floor || to.floor == from.floor && (to.line != from.line || to.at <= from.at) {
				t.Errorf("%s imports %s, which the map does not allow", rel, name)
			}
		}
	}, ".")
}
