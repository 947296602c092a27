package docs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/sink/redis"
	"github.com/weirstream/weir/source"
)

// PageView is a page that a user looked at; Profile is what is known of a user.
type (
	PageView struct{ User, Page, Country string }
	Profile  struct{ Country string }
)

func viewsWithCountry(visits weir.Stream[PageView], where redis.Options) weir.Stream[PageView] {
	profiles := redis.Get(where, func(user string) string { return "profile:" + user }, codec.JSON[Profile]())
	return weir.Lookup(visits, "profile", profiles, func(v PageView) string { return v.User },
		func(v PageView, p Profile, found bool) (PageView, error) {
			if !found {
				return v, weir.DeadLetter(errors.New("a visit of nobody"))
			}
			v.Country = p.Country
			return v, nil
		}, lookup.Cache(100_000, time.Minute))
}

// profileService asks a service over HTTP.
func profileService(base string) lookup.Source[string, Profile] {
	return lookup.Each("the profile service", func(ctx context.Context, user string) (p Profile, found bool, err error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/profiles/"+url.PathEscape(user), nil)
		if err != nil {
			return p, false, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return p, false, err // if it is one of the network, it is tried again
		}
		defer resp.Body.Close()
		switch {
		case resp.StatusCode == http.StatusNotFound:
			return p, false, nil
		case resp.StatusCode != http.StatusOK:
			return p, false, weir.Retry(errors.New(resp.Status))
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return p, false, weir.Retry(err) // the connection is gone: no fault of the key
		}
		return p, true, json.Unmarshal(body, &p)
	})
}

var viewCodec = codec.JSON[PageView]()

// wantViews runs an app that adds countries to visits.
func wantViews(t *testing.T, add func(weir.Stream[PageView]) weir.Stream[PageView], want ...PageView) {
	t.Helper()
	brokers := cluster(t, "visits", "visits-out", "dead")
	produce(t, brokers, "visits", `{"User":"alice","Page":"/"}`, `{"User":"nobody","Page":"/"}`, `{"User":"bob","Page":"/a"}`)
	app := weir.New("visits", weir.Brokers(brokers...), weir.Store(checkpoint.NewMem()), weir.DeadLetters("dead"), weir.Drain())
	out := add(weir.From(app, "visits", source.Values("visits", viewCodec)))
	weir.To(out, "out", kafka.Values("visits-out", kafka.NoKey, viewCodec))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := app.Run(ctx); err != nil {
		t.Fatal(err)
	}
	var got []PageView
	for _, r := range committed(t, brokers, "visits-out") {
		v, err := viewCodec.Decode(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, v)
	}
	slices.SortFunc(got, func(a, b PageView) int { return len(b.User) - len(a.User) })
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if n := len(committed(t, brokers, "dead")); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}

var viewsWanted = []PageView{{"alice", "/", "pt"}, {"bob", "/a", "no"}}

func TestGuidesLookupInRedisWorks(t *testing.T) {
	s := redistest.Shared(t)
	for user, profile := range map[string]string{"alice": `{"Country":"pt"}`, "bob": `{"Country":"no"}`} {
		if err := s.Client(t).Set(t.Context(), "shop:profile:"+user, profile, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	where := redis.Options{Addrs: []string{s.Addr}, Prefix: "shop:"}
	wantViews(t, func(in weir.Stream[PageView]) weir.Stream[PageView] { return viewsWithCountry(in, where) }, viewsWanted...)
}

func TestGuidesLookupOverHTTPWorks(t *testing.T) {
	fails, cut := 2, false
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		country := map[string]string{"/profiles/alice": "pt", "/profiles/bob": "no"}[r.URL.Path]
		switch {
		case r.URL.Path == "/profiles/alice" && fails > 0:
			fails--
			http.Error(w, "not now", http.StatusServiceUnavailable)
		case r.URL.Path == "/profiles/bob" && !cut:
			cut = true
			conn, buf, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			body := `{"Country":"no"}`
			fmt.Fprintf(buf, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body[:len(body)/2])
			buf.Flush()
			conn.Close()
		case country == "":
			http.NotFound(w, r)
		default:
			json.NewEncoder(w).Encode(Profile{country})
		}
	}))
	defer s.Close()
	wantViews(t, func(in weir.Stream[PageView]) weir.Stream[PageView] {
		return weir.Lookup(in, "profile", profileService(s.URL), func(v PageView) string { return v.User }, func(v PageView, p Profile, found bool) (PageView, error) {
			if !found {
				return v, weir.DeadLetter(errors.New("a visit of nobody"))
			}
			v.Country = p.Country
			return v, nil
		})
	}, viewsWanted...)
	if !cut {
		t.Error("no connection was cut")
	}
}
