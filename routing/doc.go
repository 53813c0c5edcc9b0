// Package routing knows who is where: peers, the immutable snapshots they are looked up in, and the table whose one
// atomic pointer the dataplane reads. Sources turn a control plane into whole snapshots: routing/static a file and the
// control socket. The package never imports the dataplane.
package routing
