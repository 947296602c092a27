package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"
)

// maxBody bounds a request, in bytes.
const maxBody = 64 << 10

// Handler serves the app.
func Handler(app App) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, app.Status())
	})
	mux.HandleFunc("POST /savepoint", func(w http.ResponseWriter, r *http.Request) {
		var req SavepointRequest
		if err := decode(w, r, &req); err != nil {
			refuse(w, err)
			return
		}
		made, err := app.Savepoint(r.Context(), req)
		if err != nil {
			refuse(w, err)
			return
		}
		answer(w, http.StatusOK, made)
	})
	for path, method := range map[string]string{"/status": "GET", "/savepoint": "POST"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", method)
			refuse(w, Refuse(http.StatusMethodNotAllowed, fmt.Errorf("%s takes %s, not %s", path, method, r.Method)))
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, Refuse(http.StatusNotFound, fmt.Errorf("there is no %s; there are GET /status and POST /savepoint", r.URL.Path)))
	})
	// Without this any page that an operator looks at could stop the app.
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, Refuse(http.StatusForbidden, errors.New("requests from web pages of another origin are refused: use the command weir, or curl")))
	}))
	return guard.Handler(mux)
}

func decode(w http.ResponseWriter, r *http.Request, to any) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return Refuse(http.StatusBadRequest, fmt.Errorf("the body is of type %q, want application/json", r.Header.Get("Content-Type")))
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	err := d.Decode(to)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("something follows the object")
		}
	}
	if err != nil {
		return Refuse(http.StatusBadRequest, fmt.Errorf("read the request: %w: want one JSON object with name, to and stop, of at most %d bytes", err, maxBody))
	}
	return nil
}

func refuse(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Code: http.StatusInternalServerError, Message: err.Error()}
	}
	answer(w, e.Code, e)
}

// answerTime bounds how long a client takes to read an answer.
const answerTime = 10 * time.Second

func answer(w http.ResponseWriter, code int, v any) {
	// A server's WriteTimeout would count from the request on.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTime)) // not every server can
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // the client is gone
}
