package crashpoint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// TestEveryPointIsHitAndListed compares the constants of points.go, the list All
// and the calls of Hit in the module: each of them must name the same points.
func TestEveryPointIsHitAndListed(t *testing.T) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "points.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]bool{}
	listed := map[string]bool{}
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, s := range g.Specs {
			v, ok := s.(*ast.ValueSpec)
			if !ok {
				continue
			}
			if g.Tok == token.CONST {
				declared[v.Names[0].Name] = true
				continue
			}
			if v.Names[0].Name != "All" {
				continue
			}
			for _, e := range v.Values[0].(*ast.CompositeLit).Elts {
				listed[e.(*ast.Ident).Name] = true
			}
		}
	}
	hit := hitPoints(t, filepath.Join("..", ".."))
	for name := range declared {
		if !listed[name] {
			t.Errorf("%s is declared but missing in All, so no crash test kills there", name)
		}
		if !hit[name] {
			t.Errorf("%s is declared but no code calls crashpoint.Hit(crashpoint.%s)", name, name)
		}
	}
	if len(listed) != len(declared) {
		t.Errorf("All lists %d points, %d are declared", len(listed), len(declared))
	}
}

// hitPoints returns the names X of all calls crashpoint.Hit(crashpoint.X) in
// the non-test files below root.
func hitPoints(t *testing.T, root string) map[string]bool {
	t.Helper()
	hit := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if fun, ok := call.Fun.(*ast.SelectorExpr); !ok || fun.Sel.Name != "Hit" || !isPkg(fun.X, "crashpoint") {
				return true
			}
			arg, ok := call.Args[0].(*ast.SelectorExpr)
			if !ok {
				t.Errorf("%s: crashpoint.Hit takes a constant of package crashpoint, so that it can be enumerated", path)
				return true
			}
			hit[arg.Sel.Name] = true
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return hit
}

func isPkg(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}
