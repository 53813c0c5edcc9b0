//go:build netns

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"github.com/vxlane/vxlane/bench/lab"
)

const (
	etcdCommand = "etcd-for-test" // directory, [directory of certificates]
	etcdAddress = "172.30.0.254"
	configKey   = "/coreos.com/network/config"
	leaseKeys   = "/coreos.com/network/subnets/"
)

func init() {
	extra[etcdCommand] = func() {
		if err := runEtcd(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// runEtcd is a real etcd.
func runEtcd(args []string) error {
	c := embed.NewConfig()
	c.Dir, c.LogLevel = args[0], "error"
	client := url.URL{Scheme: "http", Host: etcdAddress + ":2379"}
	if len(args) > 1 {
		client.Scheme = "https"
		c.ClientTLSInfo = transport.TLSInfo{
			CertFile: filepath.Join(args[1], "server.pem"), KeyFile: filepath.Join(args[1], "server.key"),
			TrustedCAFile: filepath.Join(args[1], "ca.pem"), ClientCertAuth: true,
		}
	}
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	e, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	return <-e.Err()
}

// etcdServer is the hub's etcd, and a client of it.
type etcdServer struct {
	c       *cluster
	network string // its configuration
	certs   string // directory of certificates; empty: no TLS
	tls     *tls.Config
	user    string
	secret  string

	command *lab.Command
	client  *clientv3.Client
}

// start runs etcd, or runs it again on the same data, and makes sure that the network's configuration is there.
func (e *etcdServer) start() {
	c := e.c
	c.t.Helper()
	args := []string{filepath.Join(c.dir, "etcd")}
	if e.certs != "" {
		args = append(args, e.certs)
	}
	cmd := exec.Command(etcdCommand, args...)
	cmd.Stderr = os.Stderr
	var err error
	e.command, err = c.hub.Start(cmd)
	c.must(err)
	if e.client == nil {
		e.connect()
	}
	e.do(func(ctx context.Context) error { _, err := e.client.Put(ctx, configKey, e.network); return err })
}

// stop ends etcd as a power cut would.
func (e *etcdServer) stop() {
	e.c.t.Helper()
	e.c.must(e.command.Signal(syscall.SIGKILL))
	_ = e.command.Wait() // it was killed
}

func (e *etcdServer) connect() {
	scheme := "http://"
	if e.tls != nil {
		scheme = "https://"
	}
	dial := grpc.WithContextDialer(func(_ context.Context, address string) (conn net.Conn, err error) {
		_, address, ok := strings.Cut(address, "//")
		if !ok {
			address = etcdAddress + ":2379"
		}
		err = e.c.hub.Run(func() error { conn, err = net.DialTimeout("tcp", address, time.Second); return err })
		return conn, err
	})
	var err error
	e.client, err = clientv3.New(clientv3.Config{
		Endpoints: []string{scheme + etcdAddress + ":2379"}, TLS: e.tls, Username: e.user, Password: e.secret, DialOptions: []grpc.DialOption{dial},
	})
	e.c.must(err)
	e.c.t.Cleanup(func() { _ = e.client.Close() })
}

// do tries something until it works.
func (e *etcdServer) do(f func(ctx context.Context) error) {
	e.c.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err = f(ctx)
		cancel()
		if err == nil {
			return
		}
	}
	e.c.t.Fatalf("etcd: %v", err)
}

// put writes a key that goes after a time to live in seconds; 0 is never.
func (e *etcdServer) put(key, value string, ttl int64) {
	e.c.t.Helper()
	e.do(func(ctx context.Context) error {
		if ttl == 0 {
			_, err := e.client.Put(ctx, key, value)
			return err
		}
		l, err := e.client.Grant(ctx, ttl)
		if err == nil {
			_, err = e.client.Put(ctx, key, value, clientv3.WithLease(l.ID))
		}
		return err
	})
}

// get returns the value of a key.
func (e *etcdServer) get(key string) (value string) {
	e.c.t.Helper()
	e.do(func(ctx context.Context) error {
		r, err := e.client.Get(ctx, key)
		if err == nil && len(r.Kvs) == 1 {
			value = string(r.Kvs[0].Value)
		}
		return err
	})
	return value
}

func (e *etcdServer) remove(key string) {
	e.c.t.Helper()
	e.do(func(ctx context.Context) error { _, err := e.client.Delete(ctx, key); return err })
}

// key returns the key of a node's lease.
func (n *member) key() string {
	return leaseKeys + strings.ReplaceAll(n.subnet.Masked().String(), "/", "-")
}

// leaseAt is the value of a lease of the udp backend.
func leaseAt(public string) string { return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null}`, public) }
