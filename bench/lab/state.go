package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// stateDir holds a file for each lab, so that what a killed run left can be told from what is in use.
const stateDir = "/run/vxlane-lab"

// state is what is known of a lab outside the process that built it.
type state struct {
	Name      string    `json:"name"`
	Owner     process   `json:"owner"`
	Kept      bool      `json:"kept"`
	Hosts     []string  `json:"hosts"` // names of namespaces
	Processes []process `json:"processes"`

	mu sync.Mutex
}

// process identifies a process for good: process ids are used again.
type process struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // in clock ticks after boot, proc_pid_stat(5)
}

var labs atomic.Int32

func uniqueName() string { return fmt.Sprintf("vxlab-%d-%d", os.Getpid(), labs.Add(1)) }

func identify(pid int) process { return process{pid, startTime(pid)} }

// startTime returns field 22 of /proc/PID/stat, empty when there is no such process or it is dead.
func startTime(pid int) string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	// The name in field 2 may hold anything; fields are counted after its closing bracket.
	_, rest, ok := strings.Cut(string(data[strings.LastIndexByte(string(data), ')'):]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}

func (p process) alive() bool { return p.Start != "" && startTime(p.PID) == p.Start }

// stop ends the process: SIGTERM, and SIGKILL when that is not enough.
func (p process) stop(grace time.Duration) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if !p.alive() {
			return
		}
		_ = unix.Kill(p.PID, sig) // it may just have ended
		for deadline := time.Now().Add(grace); p.alive() && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// claim makes the state file for a new lab, complete from the start.
func claim(name string) (*state, error) {
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return nil, err
	}
	s := &state{Name: name, Owner: identify(os.Getpid())}
	next, err := s.write()
	if err != nil {
		return nil, err
	}
	err = os.Link(next, s.path())
	if errors.Is(err, os.ErrExist) {
		err = fmt.Errorf("a lab called %s is there already; remove it first", name)
	}
	return s, errors.Join(err, os.Remove(next))
}

func (s *state) path() string { return filepath.Join(stateDir, s.Name+".json") }

func (s *state) save() error {
	next, err := s.write()
	if err != nil {
		return err
	}
	return os.Rename(next, s.path())
}

// write writes the state beside its file and returns where.
func (s *state) write() (string, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	next := fmt.Sprintf("%s.%d", s.path(), os.Getpid())
	return next, os.WriteFile(next, data, 0o644)
}

func (s *state) addHost(namespace string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Hosts = append(s.Hosts, namespace)
	return s.save()
}

func (s *state) addProcess(pid int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Processes = append(s.Processes, identify(pid))
	return s.save()
}

// logPath is where the output of a host's commands can be kept for as long as the lab is there.
func (s *state) logPath(namespace string) string { return filepath.Join(stateDir, namespace+".log") }

func (s *state) forget() error {
	var errs []error
	for _, path := range append([]string{s.path()}, s.logPaths()...) {
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *state) logPaths() []string {
	paths := make([]string, len(s.Hosts))
	for i, namespace := range s.Hosts {
		paths[i] = s.logPath(namespace)
	}
	return paths
}

// killInside ends every process in the lab's namespaces, those too that went into the background.
func (s *state) killInside() {
	for _, namespace := range s.Hosts {
		home, err := os.Stat(filepath.Join(namespaceDir, namespace))
		if err != nil {
			continue // removed meanwhile
		}
		pids, _ := processesIn(home) // what cannot be listed stays
		for _, pid := range pids {
			identify(pid).stop(stopGrace)
		}
	}
}

// destroy ends the lab's processes and removes its namespaces. The lab is forgotten only once all of it is gone, so that
// what failed is tried again by the next sweep.
func (s *state) destroy() error {
	for _, p := range s.Processes {
		p.stop(stopGrace)
	}
	var errs []error
	for _, namespace := range s.Hosts {
		errs = append(errs, deleteNamespace(namespace))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.forget()
}

func allStates() ([]*state, error) {
	paths, err := filepath.Glob(filepath.Join(stateDir, "*.json"))
	if err != nil {
		return nil, err
	}
	var states []*state
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // removed meanwhile
		}
		s := new(state)
		if json.Unmarshal(data, s) == nil && s.path() == path {
			states = append(states, s)
		}
	}
	return states, nil
}
