package main

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// explainDevice adds what helps in a pod to an error of the TUN device.
func explainDevice(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w; in a pod: mount the node's /dev/net/tun with a hostPath volume of type CharDevice, and load the driver on the node (modprobe tun)", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w; in a pod: capability NET_ADMIN, and /dev/net/tun among the devices that the runtime allows (a device plugin, or privileged: true)", err)
	}
	return err
}
