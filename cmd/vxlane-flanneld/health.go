package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// health answers /healthz, that the daemon runs, and /readyz, that subnet.env is written and rules are in place.
type health struct{ ready atomic.Bool }

func (h *health) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("flanneld is running"))
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !h.ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte("flanneld is not ready yet"))
			return
		}
		_, _ = w.Write([]byte("flanneld is ready"))
	})
	return mux
}

// listen opens the endpoint; nil when port is 0.
func (h *health) listen(ip string, port int) (net.Listener, error) {
	if port <= 0 {
		return nil, nil
	}
	l, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("serve healthz: %w: choose another address with --healthz-ip and --healthz-port", err)
	}
	return l, nil
}

// serve answers until ctx ends.
func (h *health) serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{Handler: h.handler(), ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve healthz: %w", err)
	}
	return nil
}
