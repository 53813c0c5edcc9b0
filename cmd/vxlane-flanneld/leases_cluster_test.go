//go:build netns && cluster

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlane/vxlane/bench/traffic"
)

// A lease that comes, changes its address, expires or is removed is a peer that does, while packets of the others flow.
func TestLeaseChanges(t *testing.T) {
	c := newCluster(t, udpNetwork16)
	c.a.start("vxlane-flanneld")
	c.b.start("vxlane-flanneld")
	c.ping(c.a.pod, c.b.podAddr(), 56)
	const subnet, key = "10.10.200.0/24", leaseKeys + "10.10.200.0-24"
	c.etcd.put(key, leaseAt("172.30.0.77"), 0)
	c.a.awaitPeer("flannel0", subnet, "172.30.0.77:8285")
	c.etcd.put(key, leaseAt("172.30.0.78"), 0)
	c.a.awaitPeer("flannel0", subnet, "172.30.0.78:8285")
	c.etcd.remove(key)
	c.a.awaitPeer("flannel0", subnet, "")
	c.etcd.put(key, leaseAt("172.30.0.79"), 2)
	c.a.awaitPeer("flannel0", subnet, "172.30.0.79:8285")
	c.a.awaitPeer("flannel0", subnet, "") // it expired
	c.etcd.put(key, "no lease at all", 0)
	c.etcd.put(leaseKeys+"10.10.201.0-24", leaseAt("172.30.0.80"), 0)
	c.a.awaitPeer("flannel0", "10.10.201.0/24", "172.30.0.80:8285")
	c.both()
}

// A lease that is taken away ends the daemon with exit code 0, as it ends flanneld. Its next start takes another.
func TestLeaseRevoked(t *testing.T) {
	c := newCluster(t, udpNetwork16)
	c.a.start("vxlane-flanneld")
	c.b.start("vxlane-flanneld")
	old := c.b.subnet.Masked().String()
	c.etcd.remove(c.b.key())
	select {
	case <-c.b.command.Done():
	case <-time.After(patience):
		t.Fatalf("it still runs\n%s", c.b.output())
	}
	if err := c.b.command.Wait(); err != nil || !strings.Contains(c.b.output(), "Lease has been revoked. Shutting down daemon.") {
		t.Errorf("%v\n%s", err, c.b.output())
	}
	c.a.awaitPeer("flannel0", old, "")
	c.b.start("vxlane-flanneld")
	c.a.awaitPeer("flannel0", c.b.subnet.Masked().String(), "172.30.0.2:8285")
}

// etcd stops for a minute: packets flow on. Afterwards changes count again, also those of a node that came meanwhile.
func TestEtcdOutage(t *testing.T) {
	c := newCluster(t, udpNetwork16)
	c.a.start("vxlane-flanneld")
	c.b.start("vxlane-flanneld")
	c.ping(c.a.pod, c.b.podAddr(), 56)
	c.etcd.stop()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
		if _, err := traffic.Ping(c.a.pod, c.b.podAddr(), 56, 5*time.Second); err != nil {
			t.Fatalf("without etcd: %v\n%s", err, c.logs())
		}
	}
	if s := c.a.status("flannel0"); len(s.Degraded) == 0 || !strings.Contains(s.Degraded[0], "the leases cannot be watched") {
		t.Errorf("after a minute without etcd, the status says %q", s.Degraded)
	}
	c.etcd.start()
	c.etcd.put(leaseKeys+"10.10.200.0-24", leaseAt("172.30.0.77"), 0)
	for _, n := range []*member{c.a, c.b} {
		n.awaitPeer("flannel0", "10.10.200.0/24", "172.30.0.77:8285")
		select {
		case <-n.command.Done():
			t.Errorf("%s ended\n%s", n.host.Name(), n.output())
		default:
		}
	}
	c.both()
}

// What changed while a node could not reach etcd, and was compacted there, is right once it can again: a peer that went, one
// that moved and one that came. flannel's watcher keeps the first two as they were.
func TestCompaction(t *testing.T) {
	c := newCluster(t, udpNetwork16)
	c.a.start("vxlane-flanneld")
	const gone, moved, came = leaseKeys + "10.10.200.0-24", leaseKeys + "10.10.201.0-24", leaseKeys + "10.10.202.0-24"
	c.etcd.put(gone, leaseAt("172.30.0.77"), 0)
	c.etcd.put(moved, leaseAt("172.30.0.78"), 0)
	c.a.awaitPeer("flannel0", "10.10.200.0/24", "172.30.0.77:8285")
	c.a.awaitPeer("flannel0", "10.10.201.0/24", "172.30.0.78:8285")
	c.must(c.hub.SetDown("eth0")) // a's cable
	c.etcd.remove(gone)
	c.etcd.put(moved, leaseAt("172.30.0.79"), 0)
	c.etcd.put(came, leaseAt("172.30.0.80"), 0)
	c.etcd.do(func(ctx context.Context) error {
		r, err := c.etcd.client.Get(ctx, configKey)
		if err == nil {
			_, err = c.etcd.client.Compact(ctx, r.Header.Revision, clientv3.WithCompactPhysical())
		}
		return err
	})
	c.etcd.stop() // the watch's connection with it
	c.etcd.start()
	c.must(c.hub.SetUp("eth0"))
	c.a.awaitPeer("flannel0", "10.10.200.0/24", "")
	c.a.awaitPeer("flannel0", "10.10.201.0/24", "172.30.0.79:8285")
	c.a.awaitPeer("flannel0", "10.10.202.0/24", "172.30.0.80:8285")
}

// etcd with certificates for both sides, and with users.
func TestEtcdTLS(t *testing.T) {
	c := newNodes(t)
	dir := filepath.Join(c.dir, "certs")
	config := makeCertificates(t, dir)
	c.etcd = &etcdServer{c: c, network: udpNetwork16, certs: dir, tls: config}
	c.etcd.start()
	client := c.etcd.client
	c.etcd.do(func(ctx context.Context) error { _, err := client.RoleAdd(ctx, "root"); return err })
	c.etcd.do(func(ctx context.Context) error { _, err := client.UserAdd(ctx, "root", "secret"); return err })
	c.etcd.do(func(ctx context.Context) error { _, err := client.UserGrantRole(ctx, "root", "root"); return err })
	c.etcd.do(func(ctx context.Context) error { _, err := client.RoleAdd(ctx, "flannel"); return err })
	c.etcd.do(func(ctx context.Context) error {
		const prefix = "/coreos.com/network/"
		_, err := client.RoleGrantPermission(ctx, "flannel", prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite))
		return err
	})
	c.etcd.do(func(ctx context.Context) error { _, err := client.UserAdd(ctx, "flannel", "word"); return err })
	c.etcd.do(func(ctx context.Context) error { _, err := client.UserGrantRole(ctx, "flannel", "flannel"); return err })
	c.etcd.do(func(ctx context.Context) error { _, err := client.AuthEnable(ctx); return err })
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, n := range []*member{c.a, c.b} {
		n.leases = []string{
			"--etcd-endpoints=https://172.30.0.254:2379", "--etcd-cafile=" + file("ca.pem"), "--etcd-certfile=" + file("client.pem"),
			"--etcd-keyfile=" + file("client.key"), "--etcd-username=flannel", "--etcd-password=word",
		}
		n.start("vxlane-flanneld")
	}
	c.both()
}

// makeCertificates writes ca.pem, and server and client with their keys, and returns what a client needs.
func makeCertificates(t *testing.T, dir string) *tls.Config {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(dir, 0o700))
	write := func(name, kind string, der []byte) {
		t.Helper()
		must(os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	template := func(name string, ca bool) *x509.Certificate {
		serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
		must(err)
		return &x509.Certificate{
			SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IPAddresses: []net.IP{net.ParseIP(etcdAddress), net.ParseIP("127.0.0.1")},
		}
	}
	root := template("ca", true)
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	der, err := x509.CreateCertificate(rand.Reader, root, root, &rootKey.PublicKey, rootKey)
	must(err)
	write("ca.pem", "CERTIFICATE", der)
	for _, name := range []string{"server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		leaf, err := x509.CreateCertificate(rand.Reader, template("", false), root, &key.PublicKey, rootKey)
		must(err)
		write(name+".pem", "CERTIFICATE", leaf)
		text, err := x509.MarshalECPrivateKey(key)
		must(err)
		write(name+".key", "EC PRIVATE KEY", text)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key"))
	must(err)
	authority, err := x509.ParseCertificate(der)
	must(err)
	pool := x509.NewCertPool()
	pool.AddCert(authority)
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS12}
}
