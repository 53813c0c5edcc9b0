package tunnel

// Helped reports whether a worker's second thread is at work.
func (t *Tunnel) Helped(worker int) bool { return t.workers[worker].helper.working.Load() }
