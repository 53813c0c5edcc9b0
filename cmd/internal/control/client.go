package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/vxlane/vxlane/tunnel"
)

// Client speaks to one tunnel.
type Client struct {
	path string
	http http.Client
}

const timeout = 30 * time.Second

// NewClient returns a client for the socket at path.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: http.Client{Timeout: timeout, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status asks what the tunnel is and how it is.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// Peers asks for the set of peers in force.
func (c *Client) Peers(ctx context.Context) (p Peers, err error) {
	return p, c.do(ctx, http.MethodGet, "/v1/peers", nil, &p)
}

// Stats asks for the counters.
func (c *Client) Stats(ctx context.Context) (s Stats, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/stats", nil, &s)
}

// Apply replaces the set of peers; origin names data in errors.
func (c *Client) Apply(ctx context.Context, origin string, data []byte) (ch Change, err error) {
	return ch, c.do(ctx, http.MethodPut, "/v1/peers?origin="+url.QueryEscape(origin), bytes.NewReader(data), &ch)
}

// Trace asks what would happen to a packet.
func (c *Client) Trace(ctx context.Context, req TraceRequest) (t Trace, err error) {
	body, err := json.Marshal(req)
	if err != nil {
		return t, err
	}
	return t, c.do(ctx, http.MethodPost, "/v1/trace", bytes.NewReader(body), &t)
}

// Reload has the configuration file read again.
func (c *Client) Reload(ctx context.Context) (ch Change, err error) {
	return ch, c.do(ctx, http.MethodPost, "/v1/reload", nil, &ch)
}

// FDB asks for the forwarding database.
func (c *Client) FDB(ctx context.Context) (f FDB, err error) {
	return f, c.do(ctx, http.MethodGet, "/v1/fdb", nil, &f)
}

// ChangeFDB changes the forwarding database.
func (c *Client) ChangeFDB(ctx context.Context, req FDBRequest) (ch FDBChange, err error) {
	body, err := json.Marshal(req)
	if err != nil {
		return ch, err
	}
	return ch, c.do(ctx, http.MethodPost, "/v1/fdb", bytes.NewReader(body), &ch)
}

// WatchFDB calls f with each change of the forwarding database until ctx ends or the tunnel does.
func (c *Client) WatchFDB(ctx context.Context, f func(tunnel.FDBEvent) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vxlane/v1/fdb/events", nil)
	if err != nil {
		return err
	}
	endless := http.Client{Transport: c.http.Transport}
	resp, err := endless.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return refusal(resp)
	}
	for dec := json.NewDecoder(resp.Body); ; {
		var e tunnel.FDBEvent
		switch err := dec.Decode(&e); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("the tunnel ended: %w", err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
}

func (c *Client) do(ctx context.Context, method, path string, body io.Reader, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://vxlane"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return refusal(resp)
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read answer from %s: %w", c.path, err)
	}
	return nil
}

func refusal(resp *http.Response) error {
	var e Error
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Error == "" {
		return fmt.Errorf("the tunnel answered %s: is it of another version?", resp.Status)
	}
	if e.Usage {
		return &UsageError{errors.New(e.Error)}
	}
	return errors.New(e.Error)
}

// explain says what it means that a socket could not be reached.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("connect to %s: %w: start a tunnel with vxlane up", c.path, ErrNotRunning)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("connect to %s: %w: only the tunnel's owner may; try with sudo", c.path, os.ErrPermission)
	}
	return fmt.Errorf("connect to %s: %w", c.path, err)
}
