package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Client asks a [Handler]. It may be used by many goroutines.
type Client struct {
	base string
	http *http.Client
}

// NewClient returns a client of the handler at a URL such as http://localhost:8471.
func NewClient(at string) (*Client, error) {
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("admin endpoint %q: want a URL such as http://localhost:8471", at)
	}
	return &Client{base: strings.TrimSuffix(at, "/"), http: &http.Client{}}, nil
}

// statusTimeout is how long an app may take to say where it stands; tests shorten it.
var statusTimeout = 10 * time.Second

// Status asks where the app stands. It waits ten seconds at most: a process that is stopped
// accepts connections and never answers.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return s, c.do(ctx, http.MethodGet, "/status", nil, &s)
}

// Savepoint asks for a savepoint and waits for it, for as long as ctx lasts. Errors are
// *Error if the app answered. Whoever gives up waiting cancels the savepoint, though not
// the stop that was asked for with it.
func (c *Client) Savepoint(ctx context.Context, r SavepointRequest) (s Savepoint, err error) {
	return s, c.do(ctx, http.MethodPost, "/savepoint", r, &s)
}

func (c *Client) do(ctx context.Context, method, path string, body, to any) error {
	var b io.Reader
	if body != nil {
		j, err := json.Marshal(body)
		if err != nil {
			return err
		}
		b = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, b)
	if err != nil {
		return err
	}
	if b != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the app: %w: does it run, with its admin endpoint there (weir.Admin, WEIR_ADMIN)?", err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("ask the app: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		e := &Error{}
		if json.Unmarshal(raw, e) != nil || e.Message == "" {
			return fmt.Errorf("%s%s answers %s: is that the admin endpoint of an app?", c.base, path, res.Status)
		}
		e.Code = res.StatusCode
		return e
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return fmt.Errorf("%s%s answers with something else: %w", c.base, path, err)
	}
	return nil
}
