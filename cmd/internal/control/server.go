package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/vxlane/vxlane/tunnel"
)

// Handler is a tunnel as commands see it. Errors that are *UsageError are the caller's fault.
type Handler interface {
	Status() Status
	Peers() Peers
	Stats() Stats
	Trace(TraceRequest) (Trace, error)
	// Apply replaces the set of peers with the document in data; origin names it in errors.
	Apply(origin string, data []byte) (Change, error)
	Reload(context.Context) (Change, error)
	// FDB, ChangeFDB and WatchFDB are about the forwarding database of a tunnel in Ethernet mode.
	FDB() (FDB, error)
	ChangeFDB(FDBRequest) (FDBChange, error)
	WatchFDB(context.Context) (<-chan tunnel.FDBEvent, error)
}

// UsageError is a request that cannot be right.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

const (
	maxRequest  = 64 << 20 // a set of 100,000 peers is about 10 MB
	readTimeout = 10 * time.Second
)

// Serve answers on l until ctx ends, and removes the socket.
func Serve(ctx context.Context, l net.Listener, h Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler:           routes(h),
		ReadHeaderTimeout: readTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func routes(h Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, h.Status(), nil) })
	mux.HandleFunc("GET /v1/peers", func(w http.ResponseWriter, _ *http.Request) { answer(w, h.Peers(), nil) })
	mux.HandleFunc("GET /v1/stats", func(w http.ResponseWriter, _ *http.Request) { answer(w, h.Stats(), nil) })
	mux.HandleFunc("PUT /v1/peers", func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
		if err != nil {
			answer(w, nil, &UsageError{err})
			return
		}
		change, err := h.Apply(r.URL.Query().Get("origin"), data)
		answer(w, change, err)
	})
	mux.HandleFunc("POST /v1/trace", func(w http.ResponseWriter, r *http.Request) {
		var req TraceRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&req); err != nil {
			answer(w, nil, &UsageError{err})
			return
		}
		result, err := h.Trace(req)
		answer(w, result, err)
	})
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, r *http.Request) {
		change, err := h.Reload(r.Context())
		answer(w, change, err)
	})
	mux.HandleFunc("GET /v1/fdb", func(w http.ResponseWriter, _ *http.Request) {
		result, err := h.FDB()
		answer(w, result, err)
	})
	mux.HandleFunc("POST /v1/fdb", func(w http.ResponseWriter, r *http.Request) {
		var req FDBRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&req); err != nil {
			answer(w, nil, &UsageError{err})
			return
		}
		result, err := h.ChangeFDB(req)
		answer(w, result, err)
	})
	mux.HandleFunc("GET /v1/fdb/events", func(w http.ResponseWriter, r *http.Request) { sendEvents(w, r, h) })
	return mux
}

// sendEvents sends what changes in the forwarding database, a line each, until the client goes.
func sendEvents(w http.ResponseWriter, r *http.Request, h Handler) {
	events, err := h.WatchFDB(r.Context())
	if err != nil {
		answer(w, nil, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	out := http.NewResponseController(w)
	_ = out.Flush()
	enc := json.NewEncoder(w)
	for e := range events {
		if enc.Encode(e) != nil || out.Flush() != nil {
			return
		}
	}
}

func answer(w http.ResponseWriter, body any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		var usage *UsageError
		e := Error{Error: err.Error(), Usage: errors.As(err, &usage)}
		body = e
		w.WriteHeader(map[bool]int{true: http.StatusBadRequest, false: http.StatusInternalServerError}[e.Usage])
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(body) // the client is gone: nobody to tell
}
