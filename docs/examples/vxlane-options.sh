#!/bin/sh
# One end of a vxlane tunnel for the harness, with choices that vxlane leaves to the scheduler, the kernel or its defaults, to find
# out what they are worth here:
#
#   vxlane-bench run --system kernel-vxlan --system 'exec:as-it-is:docs/examples/vxlane-options.sh' \
#     --system 'exec:same-core:CPU=0 docs/examples/vxlane-options.sh' --workload tcp-1,rr
#
#   TIER=udp-gso     tier (default auto)
#   QUEUES=1         device.queues (default: as vxlane chooses)
#   KERNEL_GRO=false underlay.kernel_gro (default true)
#   CPU=0            pins this end's tunnel; CPU_A and CPU_B pin one end each
#   NAPI=threaded    receives from the underlay's device on a kernel thread of its own, where it does NAPI (veth: profiles with GRO)
#   FLUSH=20000      gro_flush_timeout in nanoseconds, and napi_defer_hard_irqs 2
#
# It needs vxlane in PATH or in bin (make build). What it is told in BENCH_… is explained by vxlane-bench run --help. The device's
# settings vanish with the lab's network namespaces.
set -eu

PATH=$PWD/bin:$PATH

# set_device FILE VALUE writes to a file of the underlay's device: in a sysfs of the lab's own, as the mounted one shows the machine's devices.
set_device() {
	# shellcheck disable=SC2016
	unshare --mount sh -c 'mount -t sysfs lab /sys && echo "$2" >"/sys/class/net/$BENCH_DEVICE/$1"' sh "$1" "$2" || {
		echo "set $1 of $BENCH_DEVICE to $2: it needs a device that does NAPI, and root" >&2
		exit 1
	}
}
if [ -n "${NAPI:-}" ]; then set_device threaded 1; fi
if [ -n "${FLUSH:-}" ]; then
	set_device gro_flush_timeout "$FLUSH"
	set_device napi_defer_hard_irqs 2
fi

case $BENCH_HOST in
a) cpu=${CPU_A:-${CPU:-}} ;;
b) cpu=${CPU_B:-${CPU:-}} ;;
esac

config=$(mktemp)
tunnel=
trap 'rm -f "$config"; ${tunnel:+kill "$tunnel"}' EXIT
trap 'exit 0' TERM
cat >"$config" <<CONFIG
version: 1
tunnels:
  - tier: ${TIER:-auto}
    routes: false # those to the pods the harness adds
    device: {addresses: [$BENCH_ADDRESS], queues: ${QUEUES:-0}}
    underlay: {local: $BENCH_UNDERLAY, kernel_gro: ${KERNEL_GRO:-true}}
    peers:
      - name: peer
        endpoint: $BENCH_UNDERLAY_PEER
        allowed_ips: [${BENCH_ADDRESS_PEER%/*}/32, $BENCH_PODS_PEER]
CONFIG
${cpu:+taskset -c "$cpu"} vxlane up --config "$config" &
tunnel=$!
wait $tunnel
