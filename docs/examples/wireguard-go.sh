#!/bin/sh
# One end of a wireguard-go tunnel for the harness:
#
#   vxlane-bench run --system kernel-vxlan --system exec:wireguard-go:docs/examples/wireguard-go.sh --workload tcp-1
#
# It needs wireguard-go (go install golang.zx2c4.com/wireguard@latest makes it, under the name wireguard) and wg (Debian:
# wireguard-tools) in PATH. What it is told in BENCH_… is explained by vxlane-bench run --help.
set -eu

# Keys for a lab on one machine, not for anything else.
key_a=YNqHbfBQKaGvzefSSnXxXOcdkJYdSg5PLRzFXL2Gtk4=
key_b=oK56DE9Ue9zK76rAc8pBl6opph+1v36lm7cXXsQKrEE=
case $BENCH_HOST in
a) own=$key_a peer=$key_b ;;
b) own=$key_b peer=$key_a ;;
esac

# The control sockets of both ends are in one directory, so the devices have different names.
device=wg-$BENCH_HOST
wireguard-go -f "$device" &
tunnel=$!
until [ -S "/var/run/wireguard/$device.sock" ]; do
	kill -0 $tunnel || exit 1
	sleep 0.01
done
private=$(mktemp)
trap 'rm -f "$private"; kill $tunnel' EXIT
trap 'exit 0' TERM
echo "$own" >"$private"
wg set "$device" private-key "$private" listen-port 51820 peer "$(echo "$peer" | wg pubkey)" \
	endpoint "$BENCH_UNDERLAY_PEER:51820" allowed-ips "${BENCH_ADDRESS_PEER%/*}/32,$BENCH_PODS_PEER"
ip address add "$BENCH_ADDRESS" dev "$device"
ip link set "$device" mtu $((BENCH_MTU - 80)) up
wait $tunnel
