package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/offsets"
)

func wantOut(t *testing.T, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("output lacks %q:\n%s", w, got)
		}
	}
}

// fields makes all white space in a table alike.
func fields(s string) string { return strings.Join(strings.Fields(s), " ") }

func parse[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

func TestCheckpointLsListsTheNewestFirst(t *testing.T) {
	payments(t)
	out, stderr, err := run(t, "checkpoint", "ls")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out, "\n")
	if fields(lines[0]) != "CHECKPOINT TAKEN STATE NEW POSITIONS POINTED AT" || !strings.HasPrefix(fields(lines[1]), "4711 12s ago") || !strings.HasPrefix(fields(lines[3]), "4709 14s ago") {
		t.Error(out)
	}
	wantOut(t, out, "4 partitions", "?")
	wantOut(t, stderr, "--brokers")
	list := parse[[]checkpointJSON](t, mustRun(t, "checkpoint", "ls", "-o", "json"))
	if len(list) != 3 || list[0].Checkpoint != 4711 || list[0].Committed != nil || list[0].NewBytes <= 0 || list[0].NewBytes >= list[0].StateBytes || len(list[0].Positions) != 4 {
		t.Errorf("%+v", list)
	}
}

func TestCheckpointShowTellsAllOfIt(t *testing.T) {
	_, refs := payments(t)
	out := mustRun(t, "checkpoint", "show", "4710")
	wantOut(t, fields(out), "checkpoint 4710 ("+refs[1].Object()+")", "app payments", "payments/3 4710003", "balance limits map string, string json v1", "seg/"+refs[0].Object()+".sst", "built on checkpoint 4709", "watermark 2026-11-21T11:59:55Z")
	j := parse[map[string]any](t, mustRun(t, "checkpoint", "show", "-o", "json"))
	if j["checkpoint"] != 4711. || len(j["states"].([]any)) != 4 || len(j["chain"].([]any)) != 3 || j["committed"] != nil {
		t.Errorf("%v", j)
	}
}

// writerIn makes a writer of an app to a directory.
func writerIn(t *testing.T, dir string) *checkpoint.Writer {
	t.Helper()
	store, err := checkpoint.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	w, err := checkpoint.NewWriter(checkpoint.Config{Store: store, App: "payments", KeyGroups: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(context.Background()) })
	return w
}

func TestCheckpointShowTellsTheLogsOfSinks(t *testing.T) {
	dir := t.TempDir()
	w := writerIn(t, dir)
	for id := range int64(3) {
		if _, _, err := w.Persist(t.Context(), checkpoint.Snapshot{Checkpoint: id + 1, Logs: []checkpoint.LogPart{{Operator: "scores", Bytes: make([]byte, 99)}}}); err != nil {
			t.Fatal(err)
		}
		w.Committed(id + 1)
	}
	wantOut(t, fields(mustRun(t, "checkpoint", "show", "3", "--store", dir)), "SINK LOGS SIZE CHECKPOINTS scores 3 300 B 1-3")
}

func TestCheckpointShowCountsRecordsInFlight(t *testing.T) {
	dir := t.TempDir()
	w := writerIn(t, dir)
	_, _, err := w.Persist(t.Context(), checkpoint.Snapshot{Checkpoint: 1, InFlight: []checkpoint.InFlightData{
		{InFlight: checkpoint.InFlight{Stage: "by-user", Records: 2, Heard: []checkpoint.Heard{{Operator: "totals", Stream: "rules", Codec: "string", Version: 1}}}, Data: make([]byte, 20)},
		{InFlight: checkpoint.InFlight{Stage: "by-user", Records: 5, MinKG: 2, MaxKG: 3}, Data: make([]byte, 50)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	wantOut(t, fields(mustRun(t, "checkpoint", "show", "1", "--store", dir)), "in flight 7 records", "IN FLIGHT TO RECORDS SIZE KEY-GROUPS by-user 2 20 B all by-user 5 50 B 2-3")
	j := parse[map[string]any](t, mustRun(t, "checkpoint", "show", "1", "--store", dir, "-o", "json"))
	if j["recordsInFlight"] != 7. || len(j["inFlight"].([]any)) != 2 {
		t.Errorf("%v", j)
	}
	if list := parse[[]checkpointJSON](t, mustRun(t, "checkpoint", "ls", "--store", dir, "-o", "json")); list[0].RecordsInFlight != 7 {
		t.Errorf("%+v", list)
	}
}

func TestS04_CheckpointVerifyNamesADamagedSegment(t *testing.T) {
	dir, refs := payments(t)
	wantOut(t, mustRun(t, "checkpoint", "verify"), "checkpoint 4711 is sound: 3 segments")
	name := "seg/" + refs[1].Object() + ".sst"
	damage(t, filepath.Join(dir, name))
	refused(t, []string{"checkpoint", "verify"}, name, "damaged")
	wantOut(t, mustRun(t, "checkpoint", "verify", "4709"), "is sound")
	out, _, err := run(t, "checkpoint", "verify", "-o", "json")
	if j := parse[map[string]any](t, out); err == nil || j["sound"] != false || !strings.Contains(j["error"].(string), name) {
		t.Errorf("%v %v", err, j)
	}
	refused(t, []string{"state", "ls"}, name, "damaged")
	refused(t, []string{"state", "scan", "--state", "total"}, name)
	refused(t, []string{"savepoint", "edit", "latest", "--name", "x"}, name)
}

func TestADamagedManifestHidesNoOther(t *testing.T) {
	dir, refs := payments(t)
	damage(t, filepath.Join(dir, "ckpt", refs[1].Object()+".manifest"))
	out, _, err := run(t, "checkpoint", "ls")
	if err == nil || !strings.Contains(err.Error(), refs[1].Object()) {
		t.Errorf("%v", err)
	}
	wantOut(t, fields(out), "4711 12s", "4710 - - - - damaged", "4709 14s")
	wantOut(t, mustRun(t, "state", "get", "--state", "total", "alice"), "300")
}

func TestWhatIsDeletedWhileItIsListedIsNotDamaged(t *testing.T) {
	dir, refs := payments(t)
	collected := "ckpt/" + refs[0].Object() + ".manifest"
	scheme := "collecting" + strings.ToLower(rand.Text())
	checkpoint.RegisterScheme(scheme, func(string) (checkpoint.Store, error) {
		store, err := checkpoint.OpenDir(dir)
		if err != nil {
			return nil, err
		}
		s := faultstore.Wrap(store)
		s.Before(func(ctx context.Context, op faultstore.Op, name string) error {
			if op == faultstore.Get && name == collected {
				return store.Delete(ctx, name)
			}
			return nil
		})
		return s, nil
	})
	if out := mustRun(t, "checkpoint", "ls", "--store", scheme+"://"); strings.Count(out, "\n") != 1+2 || strings.Contains(out, "4709") {
		t.Error(out)
	}
	if out := mustRun(t, "checkpoint", "ls"); strings.Count(out, "\n") != 1+2 {
		t.Errorf("it was not deleted: %s", out)
	}
}

func TestBadInputIsRefusedWithARemedy(t *testing.T) {
	dir, _ := payments(t)
	file := filepath.Join(dir, "weir-file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	empty := t.TempDir()
	for _, c := range []struct {
		args string
		want []string
	}{
		{"checkpoint ls --store " + dir + "/nowhere", []string{"there is no directory " + dir + "/nowhere", "mounted"}},
		{"checkpoint ls --store file://" + file, []string{"is a file"}},
		{"checkpoint ls --store ftp://x", []string{`scheme "ftp" is not supported`}},
		{"checkpoint ls --store " + empty, []string{"has no checkpoints", "is this the store"}},
		{"checkpoint show --store " + empty, []string{"is this the store"}},
		{"checkpoint ls -o yaml", []string{"text or json"}},
		{"checkpoint show 99", []string{"does not have checkpoint 99", "it holds 4711, 4710, 4709"}},
		{"checkpoint show before-v2", []string{"does not have savepoint before-v2", "it has no savepoints"}},
		{"checkpoint verify 99", []string{"4711"}},
		{"state ls --checkpoint 1", []string{"does not have checkpoint 1"}},
		{"state get alice", []string{"which state?", "balance/event-timers, balance/limits, balance/recent, balance/total"}},
		{"state get --operator balance --state sum alice", []string{`no state "sum" of operator "balance"`, "balance/limits"}},
		{"state get --state total nobody", []string{"holds nothing for key nobody at checkpoint 4711"}},
		{"state get --state total alice EUR", []string{"is a value state: it has no map keys"}},
		{"state get --state total --hex xyz", []string{"not hexadecimal"}},
		{"state scan --state total --key-group 128", []string{"the app has 128"}},
		{"state scan --state total --key-group -1", []string{"the app has 128"}},
		{"state scan --state total --limit -1", []string{"--limit -1"}},
		{"state get --state total -5", []string{"-5", "stands behind --"}},
		{"state get --state total -dash", []string{"-dash", "stands behind --"}},
		{"state diff 4711", []string{`is given ["4711"]`, "weir state diff BEFORE AFTER"}},
		{"savepoint rm", []string{"weir savepoint rm NAME..."}},
		{"checkpoint ls 4711", []string{`weir checkpoint ls is given ["4711"]`}},
		{"state scan --state total --descriptors " + file + "x", []string{"read descriptor set", "protoc"}},
		{"state export --state total out.xls", []string{"jsonl, csv, parquet"}},
		{"state export out.csv", []string{"which state?"}},
		{"state import --name x none.csv", []string{"none.csv"}},
		{"state import --name ../x none.csv", []string{"--name", "characters"}},
		{"state import --name x " + file, []string{"is not one of jsonl, csv, parquet"}},
		{"state import --name x --format csv " + file, []string{"--app and --key-groups"}},
		{"state import --name x --from latest --format csv " + file, []string{"--operator and --state"}},
		{"state import --name x --from latest --operator a --state b --format csv " + file, []string{`no state "b"`, "--key-codec"}},
		{"state diff 4709 1", []string{"does not have checkpoint 1"}},
		{"state diff 4709 4711 --operator balance --state sum", []string{`no state "sum" of operator "balance"`}},
		{"state diff 4709 4711 --operator ballance", []string{`no state of operator "ballance"`, "balance/total"}},
		{"state diff 4709 4711 --state sum -o json", []string{`no state "sum"; it has`, "balance/total"}},
		{"savepoint create --name x other", []string{`checkpoints of app "payments", not of "other"`}},
		{"savepoint create --name x --app other", []string{`checkpoints of app "payments", not of "other"`}},
		{"savepoint create --name x --app other --checkpoint 4711", []string{`checkpoints of app "payments", not of "other"`}},
		{"savepoint create", []string{"name"}},
		{"savepoint create --name .x", []string{"--name"}},
		{"savepoint copy nothing --name y", []string{"does not have savepoint nothing; it has no savepoints"}},
		{"savepoint copy x", []string{"where to?"}},
		{"savepoint rm nothing", []string{"does not have savepoint nothing"}},
		{"savepoint edit latest --name x --drop balance", []string{"want OPERATOR/STATE"}},
		{"savepoint edit latest --name x --drop balance/sum", []string{`no state "sum"`}},
		{"savepoint edit latest --name x --rename-operator nobody=x", []string{`operator "nobody"`}},
		{"savepoint edit latest --name x --rename-operator balance=a,balance=b", []string{`--rename-operator: "balance" cannot become both "a" and "b"`}},
		{"savepoint edit latest --name x --rename-operator balance", []string{"want OLD=NEW"}},
		{"savepoint edit latest --name x --rename-state balance/total=limits", []string{`rename state "total"`, `has a state "limits" already`}},
		{"gc", []string{"--brokers"}},
	} {
		refused(t, strings.Fields(c.args), c.want...)
	}
	t.Setenv("WEIR_STORE", "")
	refused(t, []string{"checkpoint", "ls"}, "--store", "WEIR_STORE")
	if _, err := os.Stat(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("a store was made by looking at it")
	}
}

func TestStateLsCountsAndGetFinds(t *testing.T) {
	payments(t)
	out, stderr, err := run(t, "state", "ls")
	if err != nil {
		t.Fatal(err)
	}
	wantOut(t, stderr, "checkpoint 4711 is the newest in the store; may not be committed")
	wantOut(t, fields(out), "balance total value string int64 v1 203", "balance limits map string, string json v1 2 ", "balance event-timers timers string - 1 ")
	wantOut(t, mustRun(t, "state", "ls", "--key-groups"), "KEY-GROUP")
	wantOut(t, mustRun(t, "state", "ls", "--quick"), "proto:payments.Payment v1")
	sizes := parse[[]map[string]any](t, mustRun(t, "state", "ls", "-o", "json"))
	if len(sizes) != 4 || sizes[3]["name"] != "total" || sizes[3]["entries"] != 203. || sizes[3]["expired"] != 1. || len(sizes[3]["keyGroups"].([]any)) < 50 {
		t.Errorf("%v", sizes[3])
	}
	if out := mustRun(t, "state", "get", "--operator", "balance", "--state", "total", "alice"); !strings.HasPrefix(out, "300        (checkpoint 4711, key-group ") || !strings.HasSuffix(out, ", codec int64 v1)\n") {
		t.Error(out)
	}
	wantOut(t, mustRun(t, "state", "get", "--checkpoint", "4709", "--state", "total", "alice"), "500 ", "checkpoint 4709")
	wantOut(t, mustRun(t, "state", "get", "--state", "total", "guest"), "expires 2026-11-21T13:00:00.000Z in processing time")
	refused(t, []string{"state", "get", "--state", "total", "stale"}, "nothing")
	wantOut(t, mustRun(t, "state", "get", "--state", "total", "--expired", "stale"), "9 ", "expired 2026-11-21T12:00:00.000Z")
	wantOut(t, mustRun(t, "state", "get", "--state", "total", "--hex", "616c696365"), "300 ")
	if out := mustRun(t, "state", "get", "--state", "limits", "alice"); strings.Count(out, "\n") != 2 {
		t.Error(out)
	}
	if out := mustRun(t, "state", "get", "--state", "limits", "alice", "USD"); strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, `USD  {"daily":800} (`) {
		t.Error(out)
	}
	out, stderr, err = run(t, "state", "get", "--state", "recent", "alice")
	if err != nil || !strings.HasPrefix(out, "0  0805 ") {
		t.Error(out, err)
	}
	wantOut(t, stderr, `codec "proto:payments.Payment": bytes in hexadecimal, because no descriptor set was given`)
	wantOut(t, mustRun(t, "state", "get", "--state", "event-timers", "alice"), "2026-11-21T12:01:00.000Z")
	j := parse[map[string]any](t, mustRun(t, "state", "get", "--state", "total", "alice", "-o", "json"))
	if j["value"] != 300. || j["key"] != "alice" || j["operator"] != "balance" {
		t.Errorf("%v", j)
	}
}

func TestAnEmptyMapKeyIsAMapKey(t *testing.T) {
	payments(t)
	file := filepath.Join(t.TempDir(), "empty.jsonl")
	if err := os.WriteFile(file, []byte(`{"key":"alice","mapKey":"","value":{"daily":1}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "state", "import", "--name", "empty", "--from", "4711", "--operator", "balance", "--state", "limits", file)
	get := []string{"state", "get", "--state", "limits", "alice", ""}
	if out := mustRun(t, append(get, "--checkpoint", "empty")...); strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, `{"daily":1} `) {
		t.Error(out)
	}
	refused(t, append(get, "--checkpoint", "4711"), `holds nothing for key alice and map key ""`)
}

func TestImportTakesTheStateThatThereIs(t *testing.T) {
	payments(t)
	file := filepath.Join(t.TempDir(), "total.csv")
	mustRun(t, "state", "export", "--state", "total", file)
	wantOut(t, mustRun(t, "state", "import", "--name", "some", "--from", "4711", "--state", "total", file), "203 put")
	mustRun(t, "savepoint", "edit", "4711", "--name", "one", "--drop", "balance/limits", "--drop", "balance/recent", "--drop", "balance/event-timers")
	wantOut(t, mustRun(t, "state", "import", "--name", "all", "--from", "one", file), "203 put")
	refused(t, []string{"state", "import", "--name", "x", "--from", "4711", file}, "balance/limits", "balance/total", "--operator and --state")
	refused(t, []string{"state", "import", "--name", "x", "--from", "4711", "--state", "totals", file}, `"totals"`, "total.csv")
}

func TestStateScanIsBounded(t *testing.T) {
	payments(t)
	out, stderr, err := run(t, "state", "scan", "--state", "total")
	if err != nil || strings.Count(out, "\n") != 101 || !strings.Contains(stderr, "--limit 0") {
		t.Errorf("%d lines, %q, %v", strings.Count(out, "\n"), stderr, err)
	}
	if out := mustRun(t, "state", "scan", "--state", "total", "--limit", "0", "-o", "json"); strings.Count(out, "\n") != 203 {
		t.Errorf("%d lines", strings.Count(out, "\n"))
	}
	if out := mustRun(t, "state", "scan", "--state", "total", "--limit", "0", "--expired", "--key-group", "3"); strings.Count(out, "\n") > 10 {
		t.Errorf("%d lines", strings.Count(out, "\n"))
	}
}

func TestStateGoesOutAndComesInAgain(t *testing.T) {
	payments(t)
	t.Chdir(t.TempDir())
	want := mustRun(t, "state", "scan", "--state", "total", "--limit", "0", "--expired")
	for _, file := range []string{"total.jsonl", "total.csv", "total.parquet"} {
		format := strings.TrimPrefix(filepath.Ext(file), ".")
		wantOut(t, mustRun(t, "state", "export", "--state", "total", "--expired", file), "wrote 204 entries of checkpoint 4711 to "+file)
		out := mustRun(t, "state", "import", "--name", format, "--app", "copy", "--key-groups", "128", "--operator", "balance", "--state", "total",
			"--key-codec", "string", "--value-codec", "int64", file)
		wantOut(t, out, "savepoint "+format, "204 put, 0 deleted")
		if got := mustRun(t, "state", "scan", "--checkpoint", format, "--limit", "0", "--expired"); got != want {
			t.Errorf("%s: %d bytes came back of %d", file, len(got), len(want))
		}
	}
	files, _ := filepath.Glob(".weir*")
	if len(files) > 0 {
		t.Errorf("left: %v", files)
	}
	if out := mustRun(t, "state", "export", "-format", "jsonl", "-"); strings.Count(out, "\n") != 203+2+1+1 {
		t.Errorf("%d lines", strings.Count(out, "\n"))
	}
	if err := os.WriteFile("fix.jsonl", []byte(`{"key":"alice","value":301}
{"operator":"balance","state":"total","key":"carol","deleted":true}
{"operator":"balance","state":"limits","key":"alice","mapKey":"GBP","value":{"daily":1}}
`), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "state", "import", "--name", "fixed", "--from", "4711", "--operator", "balance", "--state", "total", "fix.jsonl")
	out := mustRun(t, "state", "diff", "4711", "fixed")
	wantOut(t, out, "+ balance/limits  alice  GBP  {\"daily\":1}\n", "- balance/total  carol  -5\n", "~ balance/total  alice  300 -> 301\n", "1 added, 1 removed, 1 changed")
	if out := mustRun(t, "state", "diff", "4711", "fixed", "-o", "json"); strings.Count(out, "\n") != 3 || !strings.Contains(out, `"change":"removed"`) {
		t.Error(out)
	}
	if out := mustRun(t, "state", "diff", "4711", "fixed", "--state", "limits"); strings.Count(out, "\n") != 2 {
		t.Error(out)
	}
	if err := os.WriteFile("bad.jsonl", []byte(`{"key":5,"value":301}`), 0o644); err != nil {
		t.Fatal(err)
	}
	refused(t, strings.Fields("state import --name bad --from 4711 --operator balance --state total bad.jsonl"), "bad.jsonl", "line 1", `codec "string"`)
	refused(t, strings.Fields("state import --name bad --from 4711 --operator balance --state total --key-codec int64 fix.jsonl2"), "fix.jsonl2")
}

// full is a disk that nothing can be written to.
type full struct{}

var errFull = errors.New("no space left")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestWhatCannotBePrintedIsAnError(t *testing.T) {
	payments(t)
	mustRun(t, "savepoint", "create", "--name", "spare")
	for _, args := range []string{"state diff 4709 4711", "state diff 4711 4711", "state diff 4709 4711 -o json", "state scan --state total", "state get --state total alice", "checkpoint show", "checkpoint verify", "savepoint rm spare", "version"} {
		cmd := newCommand()
		cmd.SetArgs(strings.Fields(args))
		cmd.SetOut(full{})
		cmd.SetErr(io.Discard)
		if err := cmd.ExecuteContext(t.Context()); !errors.Is(err, errFull) {
			t.Errorf("weir %s: %v", args, err)
		}
	}
}

func TestSavepointsAreMadeCopiedChangedAndRemoved(t *testing.T) {
	dir, refs := payments(t)
	backups := filepath.Join(t.TempDir(), "backups")
	out, stderr, err := run(t, "savepoint", "create", "payments", "--name", "before-v2")
	if err != nil {
		t.Fatal(err)
	}
	wantOut(t, out, "savepoint before-v2 in file://"+dir, "of checkpoint 4711, 4 objects")
	wantOut(t, stderr, "may not be committed")
	refused(t, []string{"savepoint", "create", "--name", "before-v2"}, "there is a savepoint of this name")
	wantOut(t, fields(mustRun(t, "savepoint", "ls")), "before-v2 payments 4711 12s ago")
	wantOut(t, mustRun(t, "savepoint", "copy", "before-v2", "--to", "file://"+backups), "savepoint before-v2 in file://"+backups)
	wantOut(t, mustRun(t, "state", "get", "--store", backups, "--checkpoint", "before-v2", "--state", "total", "alice"), "300 ")
	// A savepoint that was copied out by other means is a store of its own.
	wantOut(t, mustRun(t, "state", "get", "--store", filepath.Join(backups, "savepoint", "before-v2"), "--state", "total", "alice"), "300 ")
	wantOut(t, mustRun(t, "checkpoint", "verify", "before-v2"), "is sound")
	wantOut(t, fields(mustRun(t, "checkpoint", "show", "before-v2")), "savepoint before-v2")

	out = mustRun(t, "savepoint", "edit", "before-v2", "--name", "v2", "--rename-operator", "balance=account", "--rename-state", "balance/total=sum", "--drop", "balance/recent", "--key-groups", "16", "--as", "payments-v2")
	wantOut(t, out, "savepoint v2")
	wantOut(t, mustRun(t, "state", "get", "--checkpoint", "v2", "--operator", "account", "--state", "sum", "alice"), "300 ")
	list := parse[[]savepointJSON](t, mustRun(t, "savepoint", "ls", "-o", "json"))
	if len(list) != 2 || list[1].Name != "v2" || list[1].KeyGroups != 16 || list[1].App != "payments-v2" || !list[1].Complete {
		t.Errorf("%+v", list)
	}
	refused(t, []string{"state", "diff", "before-v2", "v2"}, "key-groups")

	wantOut(t, mustRun(t, "savepoint", "rm", "v2", "before-v2"), "removed savepoint v2")
	_, stderr, err = run(t, "savepoint", "ls")
	if err != nil || !strings.Contains(stderr, "has no savepoints") {
		t.Errorf("%q %v", stderr, err)
	}
	_ = refs
}

func TestWhatIsRenamedAtATimeGoesByItsOldName(t *testing.T) {
	payments(t)
	names := func(savepoint string) string {
		var all []string
		for _, s := range parse[[]struct{ Operator, Name, Kind string }](t, mustRun(t, "state", "ls", "--quick", "-o", "json", "--checkpoint", savepoint)) {
			all = append(all, s.Operator+"/"+s.Name+":"+s.Kind)
		}
		return strings.Join(all, " ")
	}
	edit := func(from, name string, flags ...string) {
		t.Helper()
		mustRun(t, append([]string{"savepoint", "edit", from, "--name", name}, flags...)...)
	}
	edit("latest", "swapped", "--drop", "balance/event-timers,balance/recent", "--rename-state", "balance/total=limits,balance/limits=total")
	if got, want := names("swapped"), "balance/limits:value balance/total:map"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	edit("swapped", "a", "--drop", "balance/total", "--rename-operator", "balance=a")
	// A second operator.
	file := filepath.Join(t.TempDir(), "b.jsonl")
	if err := os.WriteFile(file, []byte(`{"operator":"b","state":"list","key":"x","index":0,"value":1}`), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "state", "import", file, "--from", "a", "--name", "ab", "--kind", "list", "--key-codec", "string", "--value-codec", "int64")
	edit("ab", "ba", "--rename-operator", "a=b", "--rename-operator", "b=a")
	edit("ab", "bc", "--rename-operator", "a=b", "--rename-operator", "b=c")
	if got, want := names("ba")+", "+names("bc"), "a/list:list b/limits:value, b/limits:value c/list:list"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// cluster is a broker with committed offsets of the app.
func cluster(t *testing.T, ref *offsets.ManifestRef) string {
	t.Helper()
	return guardedCluster(t, ref, nil)
}

// guardedCluster is one that lets clients with these options in.
func guardedCluster(t *testing.T, ref *offsets.ManifestRef, login []kgo.Opt, opts ...kfake.Opt) string {
	t.Helper()
	c, err := kfake.NewCluster(append(opts, kfake.NumBrokers(1), kfake.SeedTopics(4, "payments", "other"))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	addr := strings.Join(c.ListenAddrs(), ",")
	if ref == nil {
		return addr
	}
	cl, err := kgo.NewClient(append(login, kgo.SeedBrokers(addr))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	os := kadm.Offsets{}
	for p := range int32(4) {
		at := 1000*ref.Checkpoint + int64(p)
		pointer, err := offsets.Pointer{App: "payments", Instance: "host-a", Offset: at, Manifest: *ref}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		os.Add(kadm.Offset{Topic: "payments", Partition: p, At: at, LeaderEpoch: -1, Metadata: pointer})
	}
	// What another app committed in the same group is none of ours.
	foreign, err := offsets.Pointer{App: "other", Instance: "host-a", Offset: 1, Manifest: offsets.ManifestRef{Checkpoint: 99999}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	os.Add(kadm.Offset{Topic: "other", Partition: 0, At: 1, LeaderEpoch: -1, Metadata: foreign})
	if err := kadm.NewClient(cl).CommitAllOffsets(t.Context(), "payments", os); err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestWithBrokersThePointerDecides(t *testing.T) {
	_, refs := payments(t)
	brokers := cluster(t, &refs[1])
	out, stderr, err := run(t, "checkpoint", "ls", "--brokers", brokers)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(out, "\n"); !strings.HasSuffix(lines[2], "payments/0-3") || !strings.HasSuffix(lines[1], " -") || stderr != "" {
		t.Errorf("%s%s", out, stderr)
	}
	out, stderr, err = run(t, "state", "get", "--state", "total", "alice", "--brokers", brokers)
	if err != nil || !strings.Contains(out, "checkpoint 4710") || stderr != "" {
		t.Errorf("%s %s %v", out, stderr, err)
	}
	wantOut(t, mustRun(t, "savepoint", "create", "--name", "sure", "--brokers", brokers), "of checkpoint 4710")
	refused(t, []string{"state", "ls", "--brokers", brokers, "--app", "other"}, `app "payments", not of "other"`)
	refused(t, []string{"state", "ls", "--brokers", brokers, "--group", "other"}, "group other has no offset with a pointer", "nothing was ever committed")
}

func TestASavepointThatIsAStoreOfItsOwnNeedsNoPointer(t *testing.T) {
	dir, refs := payments(t)
	mustRun(t, "savepoint", "create", "--checkpoint", "4709", "--name", "kept")
	alone := filepath.Join(dir, "savepoint", "kept")
	for _, brokers := range []string{"", cluster(t, &refs[1])} {
		out, stderr, err := run(t, "state", "get", "--state", "total", "alice", "--store", alone, "--brokers", brokers)
		if err != nil || !strings.Contains(out, "500        (checkpoint 4709") || stderr != "" {
			t.Errorf("%s %s %v", out, stderr, err)
		}
	}
	wantOut(t, mustRun(t, "savepoint", "copy", "--store", alone, "--to", t.TempDir(), "--name", "copied"), " of file://"+alone+", ")
}

func TestANewestManifestThatIsDamagedAndNotCommittedIsInNobodysWay(t *testing.T) {
	dir, refs := payments(t)
	brokers := cluster(t, &refs[1])
	damage(t, filepath.Join(dir, "ckpt", refs[2].Object()+".manifest"))
	wantOut(t, mustRun(t, "state", "get", "--state", "total", "alice", "--brokers", brokers), "checkpoint 4710")
	mustRun(t, "savepoint", "create", "--name", "sure", "--brokers", brokers)
	mustRun(t, "gc", "--brokers", brokers, "--dry-run")
	refused(t, []string{"state", "ls"}, refs[2].Object(), "damaged")
}

func TestGCKeepsWhatThePointersNeed(t *testing.T) {
	dir, refs := payments(t)
	brokers := cluster(t, &refs[2])
	then := time.Now().Add(-2 * time.Hour)
	for _, kind := range []string{"ckpt", "seg"} {
		files, _ := filepath.Glob(filepath.Join(dir, kind, "*"))
		for _, f := range files {
			if err := os.Chtimes(f, then, then); err != nil {
				t.Fatal(err)
			}
		}
	}
	out := mustRun(t, "gc", "--brokers", brokers, "--retain", "1", "--dry-run")
	wantOut(t, out, "would delete ckpt/"+refs[0].Object()+".manifest", "would delete 2 objects")
	if _, err := os.Stat(filepath.Join(dir, "ckpt", refs[0].Object()+".manifest")); err != nil {
		t.Errorf("a dry run deleted: %v", err)
	}
	j := parse[map[string]any](t, mustRun(t, "gc", "--brokers", brokers, "--retain", "1", "-o", "json"))
	if len(j["deleted"].([]any)) != 2 || j["dryRun"] != false {
		t.Errorf("%v", j)
	}
	wantOut(t, mustRun(t, "checkpoint", "verify", "4711"), "is sound")
	refused(t, []string{"checkpoint", "show", "4709"}, "does not have checkpoint 4709")
	refused(t, []string{"gc", "--brokers", cluster(t, nil)}, "no offset with a pointer")
}

// point commits an offset that names a checkpoint.
func point(t *testing.T, brokers, topic string, partition int32, ref offsets.ManifestRef) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	pointer, err := offsets.Pointer{App: "payments", Instance: "host-a", Offset: 5, Manifest: ref}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	os := kadm.Offsets{}
	os.Add(kadm.Offset{Topic: topic, Partition: partition, At: 5, LeaderEpoch: -1, Metadata: pointer})
	if err := kadm.NewClient(cl).CommitAllOffsets(t.Context(), "payments", os); err != nil {
		t.Fatal(err)
	}
}

// TestGCPassesOverWhatATopicThatIsNotReadAnyMoreLeftInTheGroup has offsets of a topic that the
// newest checkpoint has no positions of.
func TestGCPassesOverWhatATopicThatIsNotReadAnyMoreLeftInTheGroup(t *testing.T) {
	_, refs := payments(t)
	gc := func(brokers string) []string {
		return []string{"gc", "--brokers", brokers, "--retain", "1", "--grace", "1ns", "-o", "json"}
	}
	deleted := func(brokers string) string {
		t.Helper()
		var names []string
		for _, o := range parse[map[string]any](t, mustRun(t, gc(brokers)...))["deleted"].([]any) {
			names = append(names, o.(map[string]any)["name"].(string))
		}
		return strings.Join(names, " ")
	}
	manifest := func(ref offsets.ManifestRef) string { return "ckpt/" + ref.Object() + ".manifest" }

	// While its checkpoint is there it is kept, as somebody might go back to it.
	brokers := cluster(t, &refs[2])
	point(t, brokers, "other", 1, refs[1])
	if got, want := deleted(brokers), manifest(refs[0]); got != want {
		t.Errorf("deleted %q, want %q", got, want)
	}
	// The app has collected it.
	point(t, brokers, "other", 1, refs[0])
	if got, want := deleted(brokers), manifest(refs[1]); got != want {
		t.Errorf("deleted %q, want %q", got, want)
	}
	wantOut(t, mustRun(t, "checkpoint", "verify", "4711"), "is sound")
	wantOut(t, fields(mustRun(t, "checkpoint", "ls", "--brokers", brokers)), "payments/0-3")
	wantOut(t, mustRun(t, "state", "get", "--state", "total", "alice", "--brokers", brokers), "checkpoint 4711")

	// That of a topic which is read may be one that a damaged store lost.
	point(t, brokers, "payments", 3, refs[0])
	refused(t, gc(brokers), manifest(refs[0]), "missing")
	lost := offsets.ManifestRef{Checkpoint: 4712}
	brokers = cluster(t, &refs[2])
	point(t, brokers, "other", 1, lost) // the newest, so nothing tells what is read
	refused(t, gc(brokers), manifest(lost), "missing")
}

func TestGCLeavesTheStoreOfAnotherOwnerAlone(t *testing.T) {
	dir, refs := payments(t)
	brokers := cluster(t, &refs[2])
	store, err := checkpoint.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	here, moved := checkpoint.Owner{Group: "payments", Cluster: "kfake"}, checkpoint.Owner{Group: "payments", Cluster: "there"}
	for _, err := range []error{
		checkpoint.ClaimOwner(t.Context(), store, "payments", here),
		checkpoint.ClaimOwner(t.Context(), store, "payments", moved, here),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	gc := []string{"gc", "--brokers", brokers, "--retain", "1", "--grace", "1ns"}
	refused(t, gc, "right cluster and --group", "Kafka cluster there", "Kafka cluster kfake")
	wantOut(t, mustRun(t, "checkpoint", "ls"), "4709") // what only reads does not ask
	if err := checkpoint.ClaimOwner(t.Context(), store, "payments", here, moved); err != nil {
		t.Fatal(err)
	}
	wantOut(t, mustRun(t, gc...), "deleted")
}

func TestTablesAreCutToTheTerminal(t *testing.T) {
	var tb table
	tb.add("A", "VALUE")
	tb.add("k\x1b[2J\n", strings.Repeat("x", 50))
	var out strings.Builder
	if err := tb.print(&out); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsRune(out.String(), 0x1b) || strings.Count(out.String(), "\n") != 2 || !strings.Contains(out.String(), strings.Repeat("x", 50)) {
		t.Errorf("%q", out.String())
	}
	for _, line := range strings.Split(strings.TrimSuffix(tb.text(30), "\n"), "\n") {
		if n := len([]rune(line)); n > 30 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
}

func TestRangesOfPartitions(t *testing.T) {
	p := func(topic string, n int32) offsets.Partition { return offsets.Partition{Topic: topic, Partition: n} }
	if got := ranges([]offsets.Partition{p("b", 3), p("a", 1), p("a", 0), p("a", 2), p("a", 5), p("b", 0)}); got != "a/0-2 a/5 b/0 b/3" {
		t.Error(got)
	}
	if got := fmt.Sprint(size(1023), " ", size(1024), " ", size(1<<30+1<<29)); got != "1023 B 1.0 KiB 1.5 GiB" {
		t.Error(got)
	}
}
