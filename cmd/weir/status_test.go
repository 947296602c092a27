package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/weirstream/weir/admin"
)

// fakeApp answers what it was told to, and notes what it was asked.
type fakeApp struct {
	status admin.Status
	asked  []admin.SavepointRequest
	err    error
}

func (a *fakeApp) Status() admin.Status { return a.status }

func (a *fakeApp) Savepoint(_ context.Context, r admin.SavepointRequest) (admin.Savepoint, error) {
	a.asked = append(a.asked, r)
	return admin.Savepoint{Name: r.Name, Store: "file:///backups", Objects: 3, Bytes: 2048, Created: taken}, a.err
}

func serveFake(t *testing.T, a *fakeApp) string {
	t.Helper()
	a.status = admin.Status{App: "payments", Instance: "host-a", State: "running", Checkpoint: 4711, CommittedAt: &taken, Age: 3.2,
		Parallelism: 4, KeyGroups: 128, Backend: "pebble", Store: "file:///var/lib/payments", Restarts: 1,
		Restored: &admin.Restored{Checkpoint: 4000, How: "caught up", Segments: 5, Entries: 90, Took: 0.25},
		Sinks: []admin.Sink{
			{Operator: "totals", Applied: 4711, Latency: 0.012},
			{Operator: "board", Applied: 4700, Latency: 0.5, PendingCheckpoints: 11, PendingBytes: 2048, PendingAge: 1.5, Error: "redis is unavailable"},
		}}
	srv := httptest.NewServer(admin.Handler(a))
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestStatusShowsWhereARunningAppStands(t *testing.T) {
	url := serveFake(t, &fakeApp{})
	out := mustRun(t, "status", "--admin", url)
	for _, want := range []string{"payments", "host-a", "running", "checkpoint 4711, 3s ago", "checkpoint 4000, caught up, 90 entries in 250ms", "4 of 128 key-groups", "pebble", "file:///var/lib/payments",
		"sink totals", "applied checkpoint 4711, 12ms after it was made\n", "sink board", "applied checkpoint 4700, 500ms after it was made; 11 checkpoints and 2.0 KiB are pending, for 1.5s; redis is unavailable"} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	var s admin.Status
	if err := json.Unmarshal([]byte(mustRun(t, "status", "--admin", url, "-o", "json")), &s); err != nil || s.Checkpoint != 4711 || s.Restored == nil {
		t.Errorf("as JSON: %+v, %v", s, err)
	}
	refused(t, []string{"status"}, "--admin")
	refused(t, []string{"status", "--admin", "localhost:8471"}, "http://localhost:8471")
	refused(t, []string{"status", "--admin", url + "/elsewhere"}, "/elsewhere/status")
	refused(t, []string{"status", "--admin", url, "-o", "xml"}, "xml")
	other := httptest.NewServer(http.NotFoundHandler())
	refused(t, []string{"status", "--admin", other.URL}, "404", "is that the admin endpoint of an app?")
	other.Close()
	refused(t, []string{"status", "--admin", other.URL}, "refused", "does it run", "WEIR_ADMIN")
}

func TestSavepointIsCreatedByARunningApp(t *testing.T) {
	t.Setenv("WEIR_STORE", "") // the app knows where
	app := &fakeApp{}
	url := serveFake(t, app)
	out := mustRun(t, "savepoint", "create", "payments", "--admin", url, "--name", "before-v2", "--to", "file:///backups", "--stop")
	if want := (admin.SavepointRequest{Name: "before-v2", To: "file:///backups", Stop: true}); len(app.asked) != 1 || app.asked[0] != want {
		t.Errorf("asked for %+v", app.asked)
	}
	if out != "savepoint before-v2 in file:///backups: 2.0 KiB of app payments, which stopped, 3 objects\n" {
		t.Errorf("printed %q", out)
	}
	refused(t, []string{"savepoint", "create", "other", "--admin", url, "--name", "x"}, `runs app "payments", not "other"`)
	refused(t, []string{"savepoint", "create", "--app", "other", "--admin", url, "--name", "x", "--stop"}, `runs app "payments", not "other"`)
	refused(t, []string{"savepoint", "create", "payments", "--app", "other", "--admin", url, "--name", "x", "--stop"}, `runs app "payments", not "other"`)
	refused(t, []string{"savepoint", "create", "--group", "other", "--admin", url, "--name", "x"}, "leave --group out")
	refused(t, []string{"savepoint", "create", "--tls", "--admin", url, "--name", "x"}, "leave --tls out")
	refused(t, []string{"savepoint", "create", "--admin", url, "--name", ".x"}, "--name")
	refused(t, []string{"savepoint", "create", "--admin", url, "--name", "x", "--checkpoint", "7"}, "leave --checkpoint out")
	refused(t, []string{"savepoint", "create", "--name", "x", "--stop"}, "--admin")
	if len(app.asked) != 1 {
		t.Errorf("asked for %+v", app.asked[1:])
	}
	app.err = admin.Refuse(http.StatusConflict, errors.New("there is one of that name"))
	refused(t, []string{"savepoint", "create", "--admin", url, "--name", "x"}, "there is one of that name")
}
