// Package lab builds small networks on one machine: hosts (network namespaces), links between them with their offload
// settings, devices and addresses, all declared in Go. It runs functions and commands inside a host, and always cleans
// up: what a killed run left is removed by the next.
//
// It needs root and the kernel, and no other program. It imports nothing else of this project, so that every test can
// use it.
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"sync"
)

// Topology declares hosts and what is between them.
type Topology struct {
	// Name is the first part of the namespaces' names, as in NAME.HOST. By default it is unique to this process.
	Name  string
	Hosts []string
	Links []Link
}

// Link is a pair of veth devices.
type Link struct {
	A, B End
	// MTU of both ends in bytes; 0 leaves the kernel's 1500.
	MTU int
	// Offloads are ethtool features, by the kernel's names, to turn on or off at both ends.
	Offloads map[string]bool
}

// End is one end of a link.
type End struct {
	Host, Device string
	Addresses    []netip.Prefix
}

// Lab is a topology that has been built.
type Lab struct {
	name  string
	mu    sync.Mutex
	hosts map[string]*Host
	state *state
}

var validName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,40}$`)

// Available says why labs cannot be built here; nil when they can.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("a lab makes network namespaces and needs root: run as root (sudo)")
	}
	return nil
}

// Build makes everything that t declares. When it fails, nothing is left.
func Build(t Topology) (*Lab, error) {
	if err := Available(); err != nil {
		return nil, fmt.Errorf("build lab: %w", err)
	}
	Sweep()
	if t.Name == "" {
		t.Name = uniqueName()
	}
	if !validName.MatchString(t.Name) {
		return nil, fmt.Errorf("build lab: name %q: want 1-40 letters, digits, - and _", t.Name)
	}
	st, err := claim(t.Name)
	if err != nil {
		return nil, fmt.Errorf("build lab: %w", err)
	}
	l := &Lab{name: t.Name, hosts: make(map[string]*Host), state: st}
	if err := l.build(t); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab %s: %w", t.Name, err), l.Close())
	}
	return l, nil
}

func (l *Lab) build(t Topology) error {
	for _, name := range t.Hosts {
		if err := l.addHost(name); err != nil {
			return fmt.Errorf("host %s: %w", name, err)
		}
	}
	for _, link := range t.Links {
		if err := l.addLink(link); err != nil {
			return fmt.Errorf("link %s.%s - %s.%s: %w", link.A.Host, link.A.Device, link.B.Host, link.B.Device, err)
		}
	}
	for _, link := range t.Links {
		for _, end := range []End{link.A, link.B} {
			if err := l.hosts[end.Host].AwaitRunning(end.Device); err != nil {
				return err
			}
		}
	}
	return nil
}

// Host returns the host called name. It panics when the topology has none: a mistake in the program.
func (l *Lab) Host(name string) *Host {
	h := l.hosts[name]
	if h == nil {
		panic(fmt.Sprintf("lab %s has no host %q", l.name, name))
	}
	return h
}

// Name returns the lab's name.
func (l *Lab) Name() string { return l.name }

// Close stops the commands that were started in the lab, and removes it.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == nil {
		return nil
	}
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, h.stopCommands())
	}
	for _, h := range l.hosts {
		errs = append(errs, h.handle.Close())
	}
	errs = append(errs, l.state.destroy())
	l.state = nil
	return errors.Join(errs...)
}

// Keep leaves the lab and its commands behind when this process ends; Remove takes them away.
func (l *Lab) Keep() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Kept = true
	return l.state.save()
}

// Remove takes away the lab called name, whoever built it.
func Remove(name string) error {
	states, err := allStates()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(states, func(s *state) bool { return s.Name == name })
	if i < 0 {
		return fmt.Errorf("remove lab: there is no lab %q", name)
	}
	return states[i].destroy()
}

// Sweep removes the labs that processes which are no more left behind, unless they were kept. What cannot be removed
// stays for the next time.
func Sweep() {
	states, err := allStates()
	if err != nil {
		return
	}
	for _, s := range states {
		if !s.Kept && !s.Owner.alive() {
			s.killInside()
			_ = s.destroy()
		}
	}
}
