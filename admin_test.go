package weir_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/admin"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state/pebble"
)

// asking returns a client of the endpoint that Run serves.
func asking(t *testing.T, app *weir.App) *admin.Client {
	t.Helper()
	c, err := admin.NewClient("http://" + app.AdminAddr())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func code(err error) int {
	if e, ok := errors.AsType[*admin.Error](err); ok {
		return e.Code
	}
	return 0
}

func TestAdminEndpointTellsTheStatusAndTakesSavepoints(t *testing.T) {
	brokers := broker(t, 2, "lines", "counts")
	store := t.TempDir()
	produce(t, brokers, "lines", words(500, 50)...)
	r := startCount(t, brokers, store, weir.Admin("localhost:0"), weir.StateBackend(pebble.Dir(t.TempDir())))
	r.waitCommit(t)
	c := asking(t, r.app)
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.App != "wordcount" || s.Instance != "a" || s.State != "running" || s.Checkpoint < 1 || s.CommittedAt == nil || s.Parallelism != 2 ||
		s.KeyGroups != weir.DefaultKeyGroups || s.Backend != "pebble" || !strings.Contains(s.Store, store) || s.Restored == nil || s.Restored.Checkpoint != 0 {
		t.Errorf("the status is %+v, restored %+v", s, s.Restored)
	}
	made, err := c.Savepoint(t.Context(), admin.SavepointRequest{Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	if made.Name != "one" || made.Objects == 0 || made.Bytes == 0 || made.Created.IsZero() || !strings.Contains(made.Store, store) {
		t.Errorf("the savepoint is %+v", made)
	}
	elsewhere := t.TempDir()
	if made, err = c.Savepoint(t.Context(), admin.SavepointRequest{Name: "one", To: elsewhere}); err != nil || !strings.Contains(made.Store, elsewhere) {
		t.Errorf("to another store: %+v, %v", made, err)
	}
	for _, bad := range []struct {
		r    admin.SavepointRequest
		code int
		text string
	}{
		{admin.SavepointRequest{Name: "one"}, http.StatusConflict, "choose another one"},
		{admin.SavepointRequest{Name: ".x"}, http.StatusBadRequest, `".x"`},
		{admin.SavepointRequest{}, http.StatusBadRequest, "savepoint name"},
		{admin.SavepointRequest{Name: "two", To: "gopher://x"}, http.StatusBadRequest, "gopher"},
	} {
		if _, err := c.Savepoint(t.Context(), bad.r); code(err) != bad.code || !strings.Contains(err.Error(), bad.text) {
			t.Errorf("%+v: code %d, %v", bad.r, code(err), err)
		}
	}
	addr := r.app.AdminAddr()
	made, err = c.Savepoint(t.Context(), admin.SavepointRequest{Name: "last", Stop: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
	if _, _, err := checkpoint.OpenSavepoint(t.Context(), mustOpen(t, store), "last"); err != nil {
		t.Errorf("the savepoint of the stop: %v", err)
	}
	if l, err := net.Listen("tcp", addr); err != nil {
		t.Errorf("Run has returned, and something still listens: %v", err)
	} else {
		l.Close()
	}

	// The service's own server lives on.
	own := httptest.NewServer(r.app.AdminHandler())
	defer own.Close()
	if c, err = admin.NewClient(own.URL); err != nil {
		t.Fatal(err)
	}
	if s, err := c.Status(t.Context()); err != nil || s.State != "stopped" || s.Checkpoint < 1 {
		t.Errorf("after Run: %+v, %v", s, err)
	}
	if _, err := c.Savepoint(t.Context(), admin.SavepointRequest{Name: "late"}); code(err) != http.StatusServiceUnavailable {
		t.Errorf("a savepoint of an app that stopped: %v", err)
	}
}

func mustOpen(t *testing.T, url string) checkpoint.Store {
	t.Helper()
	s, err := checkpoint.OpenStore(url)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// startServed starts an app with an admin endpoint and waits for its first commit.
func startServed(t *testing.T, store checkpoint.Store) *liveCount {
	t.Helper()
	brokers := broker(t, 1, "lines", "counts")
	produce(t, brokers, "lines", words(100, 10)...)
	r := startCount(t, brokers, "mem://", weir.Store(store), weir.Admin("127.0.0.1:0"))
	r.waitCommit(t)
	return r
}

// slowStore lets nothing of a savepoint through until it is told to.
type slowStore struct {
	checkpoint.Store
	begun, goOn chan struct{}
}

func (s *slowStore) Put(ctx context.Context, name string, data []byte) error {
	if strings.HasPrefix(name, "savepoint/") {
		select {
		case s.begun <- struct{}{}:
		default:
		}
		select {
		case <-s.goOn:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.Store.Put(ctx, name, data)
}

// Run doesn't return, and so take the process down, while the savepoint is copied for which
// it was stopped.
func TestRunWaitsForTheSavepointThatStoppedIt(t *testing.T) {
	store := &slowStore{checkpoint.NewMem(), make(chan struct{}, 1), make(chan struct{})}
	r := startServed(t, store)
	made := make(chan error, 1)
	c := asking(t, r.app)
	go func() {
		_, err := c.Savepoint(context.Background(), admin.SavepointRequest{Name: "last", Stop: true})
		made <- err
	}()
	<-store.begun
	select {
	case err := <-r.done:
		t.Fatalf("Run returned %v before the savepoint was made", err)
	case <-time.After(100 * time.Millisecond):
	}
	if s := r.app.Status(); s.State != "stopped" {
		t.Errorf("meanwhile it is %s", s.State)
	}
	close(store.goOn)
	if err := <-made; err != nil {
		t.Error(err)
	}
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

// Nor does it if the service asks by itself, or by a handler of its own server.
func TestRunWaitsForTheSavepointThatStoppedItWhoeverAsked(t *testing.T) {
	for name, ask := range map[string]func(context.Context, *weir.App) error{
		"StopWithSavepoint": func(ctx context.Context, app *weir.App) error {
			_, err := app.StopWithSavepoint(ctx, "", "last")
			return err
		},
		"AdminHandler": func(ctx context.Context, app *weir.App) error {
			req := httptest.NewRequestWithContext(ctx, http.MethodPost, "http://x/savepoint", strings.NewReader(`{"name":"last","stop":true}`))
			req.Header.Set("Content-Type", "application/json")
			res := httptest.NewRecorder()
			app.AdminHandler().ServeHTTP(res, req)
			if res.Code != http.StatusOK {
				return errors.New(res.Body.String())
			}
			return nil
		},
	} {
		for _, how := range []string{"complete", "given up", "given up, and the store is stuck"} {
			giveUp, stuck := how != "complete", strings.Contains(how, "stuck")
			t.Run(name+"/"+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, cl, kafkaOptions := inVirtualTime(t, "in", "out")
					if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Value: []byte("a:1")}).FirstErr(); err != nil {
						t.Fatal(err)
					}
					store := &slowStore{checkpoint.NewMem(), make(chan struct{}, 1), make(chan struct{})}
					var used checkpoint.Store = store
					if stuck {
						used = deafStore{store}
						defer close(store.goOn)
					}
					var app *weir.App
					r := start(t, "app", c.ListenAddrs(), func(a *weir.App) { app = a; sums(same)(a) }, weir.Store(used), weir.KafkaOptions(kafkaOptions...))
					await(r, 1, any1[event.CheckpointCommitted])
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					made := make(chan error, 1)
					go func() { made <- ask(ctx, app) }()
					<-store.begun
					synctest.Wait()
					select {
					case <-r.done:
						t.Errorf("Run returned %v before the savepoint was made", r.err)
					default:
					}
					if s := app.Status(); s.State != "stopped" {
						t.Errorf("meanwhile it is %s", s.State)
					}
					if giveUp {
						cancel()
					} else {
						close(store.goOn)
					}
					if err := <-made; (err != nil) != giveUp {
						t.Errorf("the savepoint: %v", err)
					}
					if err := r.wait(); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// What can be known before is no reason to have stopped the app for nothing.
func TestStopWithASavepointThatCannotBeMadeDoesNotStop(t *testing.T) {
	r := startServed(t, checkpoint.NewMem())
	c := asking(t, r.app)
	if _, err := c.Savepoint(t.Context(), admin.SavepointRequest{Name: "last"}); err != nil {
		t.Fatal(err)
	}
	broken := faultstore.Wrap(checkpoint.NewMem())
	broken.Before(func(context.Context, faultstore.Op, string) error { return errors.New("access denied") })
	scheme := "broken" + strings.ToLower(rand.Text())
	checkpoint.RegisterScheme(scheme, func(string) (checkpoint.Store, error) { return broken, nil })
	for _, bad := range []struct {
		to, text string
		code     int
	}{
		{"", "choose another one", http.StatusConflict},
		{scheme + "://there", "access denied", http.StatusInternalServerError},
	} {
		_, err := c.Savepoint(t.Context(), admin.SavepointRequest{Name: "last", To: bad.to, Stop: true})
		if code(err) != bad.code {
			t.Fatalf("to %q: code %d, %v", bad.to, code(err), err)
		}
		wantError(t, err, "savepoint last", bad.text, "the app was not stopped")
	}
	if s := r.app.Status(); s.State != "running" {
		t.Errorf("the app is %s", s.State)
	}
	if _, err := c.Savepoint(t.Context(), admin.SavepointRequest{Name: "another", Stop: true}); err != nil {
		t.Error(err)
	}
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

// A request that comes to its end when the app has stopped already does not wait for the
// savepoint that another one makes, and does not hold up Run.
func TestSecondStopIsAnsweredWhileTheFirstMakesItsSavepoint(t *testing.T) {
	store := &slowStore{checkpoint.NewMem(), make(chan struct{}, 1), make(chan struct{})}
	r := startServed(t, store)
	second, err := net.Dial("tcp", r.app.AdminAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	answers := bufio.NewReader(second)
	// When the server wants the body the handler has it.
	if _, err := io.WriteString(second, "POST /savepoint HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 27\r\nExpect: 100-continue\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if res, err := http.ReadResponse(answers, nil); err != nil || res.StatusCode != http.StatusContinue {
		t.Fatal(res, err)
	}
	made := make(chan error, 1)
	c := asking(t, r.app)
	go func() {
		_, err := c.Savepoint(context.Background(), admin.SavepointRequest{Name: "last", Stop: true})
		made <- err
	}()
	<-store.begun
	for begun := time.Now(); ; time.Sleep(time.Millisecond) { // until Run has begun to end the endpoint
		l, err := net.Dial("tcp", r.app.AdminAddr())
		if err != nil {
			break
		}
		l.Close()
		if time.Since(begun) > deadline {
			t.Fatal("the endpoint still takes connections")
		}
	}
	if _, err := io.WriteString(second, `{"name":"more","stop":true}`); err != nil {
		t.Fatal(err)
	}
	_ = second.SetReadDeadline(time.Now().Add(deadline / 3))
	res, err := http.ReadResponse(answers, nil)
	if err != nil {
		t.Errorf("no answer while another savepoint is made: %v", err)
	} else if b, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%s %s", res.Status, b)
	}
	close(store.goOn)
	if err := <-made; err != nil {
		t.Error(err)
	}
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

func TestAdminEndpointThatCannotListenIsAnErrorOfRun(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	app := weir.New("wordcount", weir.Brokers(broker(t, 1, "lines", "counts")...), weir.CheckpointStore("mem://"), weir.Drain(), weir.Admin(l.Addr().String()))
	wordCount(app)
	wantError(t, app.Run(t.Context()), "admin endpoint", l.Addr().String(), "weir.Admin", "WEIR_ADMIN")
	wantErrors(t, weir.New("a", weir.Admin("8471")).Validate(), `weir.Admin("8471")`, "host:port")
}

func TestStatusOfStandbyAndBeforeRun(t *testing.T) {
	brokers := broker(t, 2, "in", "out")
	app := weir.New("app", weir.Parallelism(3))
	if s := app.Status(); s.State != "not started" || s.Checkpoint != 0 || s.Parallelism != 3 || s.Backend != "memory" || s.Restored != nil {
		t.Errorf("before Run: %+v", s)
	}
	store := checkpoint.NewMem()
	active := start(t, "app", brokers, sums(same), weir.Store(store), weir.InstanceID("first"))
	produce(t, brokers, "in", "a:1")
	await(active, 1, any1[event.CheckpointCommitted])
	var standby *weir.App
	r := start(t, "app", brokers, func(a *weir.App) { sums(same)(a); standby = a }, weir.Store(store), weir.InstanceID("second"))
	awaitMembers(t, brokers, "app", 2)
	for begun := time.Now(); standby.Status().State != "standby"; time.Sleep(time.Millisecond) {
		if time.Since(begun) > deadline {
			t.Fatalf("the second instance is %s", standby.Status().State)
		}
	}
	made := make(chan error, 1)
	go func() { // waits until the app is active here
		_, err := standby.Savepoint(t.Context(), "", "standby")
		made <- err
	}()
	active.stop()
	await(r, 1, any1[event.Restored])
	for begun := time.Now(); standby.Status().State != "running"; time.Sleep(time.Millisecond) {
		if time.Since(begun) > deadline {
			t.Fatalf("the second instance is %s", standby.Status().State)
		}
	}
	if s := standby.Status(); s.Restored == nil || s.Restored.Checkpoint == 0 || s.Restored.How != "read" || s.Checkpoint < s.Restored.Checkpoint || s.CommittedAt == nil { // the savepoint may be there
		t.Errorf("after taking over: %+v", s)
	}
	if err := <-made; err != nil {
		t.Error(err)
	}
}

// pipes is a listener for connections in memory.
type pipes struct {
	accept chan net.Conn
	closed chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error {
	close(p.closed)
	return nil
}

func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// servesPipe serves a connection until the test ends, and returns the client's end.
func servesPipe(t *testing.T, h http.Handler) net.Conn {
	srv, l := weir.AdminServer(h), pipes{make(chan net.Conn), make(chan struct{})}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(l) // until it is closed
	}()
	client, server := net.Pipe()
	l.accept <- server
	t.Cleanup(func() {
		client.Close()
		srv.Close()
		<-served
	})
	return client
}

// Clients that neither finish their requests nor read the answers would pile up.
func TestAdminEndpointGivesUpClientsThatStandStill(t *testing.T) {
	for _, c := range []struct {
		name, sends string
		reads       bool
	}{
		{"body that does not end", "POST /savepoint HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", true},
		{"body that nobody asked for", "GET /status HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", true},
		{"headers that do not end", "GET /status HTTP/1.1\r\nHost: x\r\n", true},
		{"answer that is not read", "GET /status HTTP/1.1\r\nHost: x\r\n\r\n", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := servesPipe(t, weir.New("app").AdminHandler())
				if _, err := io.WriteString(client, c.sends); err != nil {
					t.Fatal(err)
				}
				if !c.reads {
					time.Sleep(time.Minute)
				}
				_ = client.SetReadDeadline(time.Now().Add(time.Minute - time.Second)) // before it counts as idle
				b, err := io.ReadAll(client)
				if err != nil || !c.reads && len(b) > 0 {
					t.Errorf("the connection is open still: read %q, %v", b, err)
				}
			})
		})
	}
}

// hours is an app whose savepoints take long.
type hours struct{}

func (hours) Status() admin.Status { return admin.Status{} }

func (hours) Savepoint(ctx context.Context, r admin.SavepointRequest) (admin.Savepoint, error) {
	select {
	case <-time.After(3 * time.Hour):
		return admin.Savepoint{Name: r.Name}, nil
	case <-ctx.Done():
		return admin.Savepoint{}, ctx.Err()
	}
}

func TestAdminEndpointWaitsForALongSavepoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := servesPipe(t, admin.Handler(hours{}))
		r := bufio.NewReader(client)
		for range 2 { // over one connection
			if _, err := io.WriteString(client, "POST /savepoint HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{\"name\":\"a\"}"); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(res.Body); res.StatusCode != http.StatusOK || err != nil {
				t.Fatal(res.Status, string(b), err)
			}
		}
	})
}

// hung opens and closes nothing before it is told to.
type hung struct {
	lookup.Source[string, string]
	begun, goOn chan struct{}
}

func (s hung) Open(ctx context.Context) (lookup.Client[string, string], error) {
	s.wait()
	return s.Source.Open(ctx)
}

func (s hung) wait() {
	s.begun <- struct{}{}
	<-s.goOn
}

// waitingSink is a write-ahead sink whose connection takes as long to open and to close.
type waitingSink struct {
	*ahead
	hung
}

func (s waitingSink) Open(env sink.Env) (sink.Writer[string], error) { return s.ahead.Open(env) }

func (s waitingSink) Applier(env sink.ApplierEnv) (sink.Applier, error) {
	s.wait()
	a, err := s.ahead.Applier(env)
	return waitingApplier{a, s.hung}, err
}

type waitingApplier struct {
	sink.Applier
	hung
}

func (a waitingApplier) Close() error {
	a.wait()
	return a.Applier.Close()
}

// Who looks after the app asks for its status just when something hangs.
func TestStatusDoesNotWaitForWhatIsOpenedAndClosed(t *testing.T) {
	s := hung{upper(func() {}), make(chan struct{}), make(chan struct{})}
	to := waitingSink{&ahead{to: newReceiver()}, s}
	brokers := broker(t, 1, "in", "out")
	var app *weir.App
	r := start(t, "app", brokers, func(a *weir.App) {
		app = a
		in := weir.From(a, "in", source.Values("in", codec.String))
		out := weir.Lookup(in, "ask", s, beforeColon, joined)
		weir.To(out, "ahead", sink.Sink[string](to))
	}, weir.Store(checkpoint.NewMem()), weir.Parallelism(1))
	for _, doing := range []string{"opening the sink", "opening what is asked", "closing the sink"} {
		if doing == "closing the sink" {
			await(r, 1, any1[event.Restored])
			r.stop()
		}
		<-s.begun
		told := make(chan weir.Status, 1)
		go func() { told <- app.Status() }()
		select {
		case <-told:
		case <-time.After(deadline / 3):
			t.Errorf("%s: no status", doing)
		}
		s.goOn <- struct{}{}
	}
	if err := r.wait(); err != nil {
		t.Error(err)
	}
}

// Requests of all kinds at once, while the app fails, begins anew and stops.
func TestAdminEndpointUnderLoad(t *testing.T) {
	brokers := broker(t, 1, "lines", "counts")
	store := checkpoint.NewMem()
	app := weir.New("wordcount", weir.Brokers(brokers...), weir.Store(store), weir.InstanceID("a"),
		weir.CheckpointEvery(5*time.Millisecond), fast, weir.Admin("127.0.0.1:0"))
	stumblingCount(app, func(word string) bool { return word == "stumble" })
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- app.Run(ctx) }()
	produce(t, brokers, "lines", "a")
	consume(t, brokers, "counts", 1)
	c := asking(t, app)
	var (
		group sync.WaitGroup
		same  atomic.Int64 // savepoints of one name that were made
	)
	for i := range 40 {
		group.Go(func() {
			if s, err := c.Status(ctx); err != nil || s.App != "wordcount" {
				t.Errorf("status: %+v, %v", s, err)
			}
		})
		group.Go(func() {
			switch _, err := c.Savepoint(ctx, admin.SavepointRequest{Name: "same"}); {
			case err == nil:
				same.Add(1)
			case code(err) != http.StatusConflict:
				t.Errorf("a savepoint of a name that others want: %v", err)
			}
		})
		group.Go(func() {
			if _, err := c.Savepoint(ctx, admin.SavepointRequest{Name: fmt.Sprint("own-", i)}); err != nil {
				t.Errorf("a savepoint: %v", err)
			}
		})
		group.Go(func() {
			gone, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Duration(i)*time.Millisecond, cancel)
			_, _ = c.Savepoint(gone, admin.SavepointRequest{Name: fmt.Sprint("gone-", i)}) // made or not
			cancel()
		})
		if i == 20 {
			produce(t, brokers, "lines", "stumble", "b")
		}
	}
	group.Wait()
	if n := same.Load(); n != 1 {
		t.Errorf("%d savepoints have one name", n)
	}
	list, err := checkpoint.ListSavepoints(ctx, store)
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	for _, s := range list {
		if !strings.HasPrefix(s.Name, "gone-") {
			made++
			m, view, err := checkpoint.OpenSavepoint(ctx, store, s.Name)
			if err == nil {
				err = checkpoint.Verify(ctx, view, m, nil)
			}
			if err != nil || s.Objects != len(m.Segments)+1 {
				t.Errorf("savepoint %+v: %v", s, err)
			}
		}
	}
	if made != 41 {
		t.Errorf("%d savepoints, want 41", made)
	}
	stops := make(chan error, 3)
	for range cap(stops) {
		go func() {
			_, err := c.Savepoint(ctx, admin.SavepointRequest{Name: "last", Stop: true})
			stops <- err
		}()
	}
	made = 0
	for range cap(stops) {
		if <-stops == nil {
			made++
		}
	}
	if err := <-done; err != nil || made != 1 {
		t.Errorf("Run returned %v, %d savepoints of the stop", err, made)
	}
	buf := make([]byte, 1<<22)
	if all := string(buf[:runtime.Stack(buf, true)]); strings.Contains(all, "(*Job).Savepoint") || strings.Contains(all, ".forsake") || strings.Contains(all, "weir/admin.") {
		t.Errorf("goroutines are left:\n%s", all)
	}
}

// A page from elsewhere in an operator's browser must not stop the app.
func TestAdminHandlerRefusesWhatIsNoRequestOfItsOwn(t *testing.T) {
	h := weir.New("app").AdminHandler()
	for _, c := range []struct {
		method, path, body, contentType, site string
		code                                  int
		text                                  string
	}{
		{"GET", "/status", "", "", "", 200, ""},
		{"GET", "/", "", "", "", 404, "POST /savepoint"},
		{"GET", "/savepoint", "", "", "", 405, "takes POST"},
		{"POST", "/status", "", "", "", 405, "takes GET"},
		{"POST", "/savepoint", `{"name":"x"}`, "text/plain", "", 400, "want application/json"},
		{"POST", "/savepoint", `{"name":"x"}`, "application/json", "cross-site", 403, "use the command"},
		{"POST", "/savepoint", `{"name":"x"}`, "application/json", "", 503, "app app: savepoint x: the app is not running: weir savepoint create"},
		{"POST", "/savepoint", `{"nmae":"x"}`, "application/json", "", 400, "want one JSON object with name, to and stop"},
		{"POST", "/savepoint", ``, "application/json", "", 400, "want one JSON object"},
		{"POST", "/savepoint", `null`, "application/json", "", 400, "savepoint name"},
		{"POST", "/savepoint", `[]`, "application/json", "", 400, "want one JSON object"},
		{"POST", "/savepoint", `{"name":1}`, "application/json", "", 400, "want one JSON object"},
		{"POST", "/savepoint", `{"name":"x"} {}`, "application/json", "", 400, "something follows"},
		{"POST", "/savepoint", `{"name":"` + strings.Repeat("x", 1<<17) + `"}`, "application/json", "", 400, "at most 65536 bytes"},
	} {
		r := httptest.NewRequest(c.method, c.path, bytes.NewReader([]byte(c.body)))
		r.Header.Set("Content-Type", c.contentType)
		if c.site != "" {
			r.Header.Set("Sec-Fetch-Site", c.site)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		b, _ := io.ReadAll(w.Result().Body)
		if w.Code != c.code || w.Header().Get("Content-Type") != "application/json" || !bytes.HasPrefix(b, []byte("{")) || !bytes.Contains(b, []byte(c.text)) {
			t.Errorf("%s %s %.40s: %d %s", c.method, c.path, c.body, w.Code, b)
		}
	}
}
