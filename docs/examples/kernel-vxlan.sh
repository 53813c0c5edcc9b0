#!/bin/sh
# The kernel's vxlan device as one end of a tunnel for the harness, to measure the other end alone: vxlane sends, then receives.
#
#   vxlane-bench run --system kernel-vxlan --workload tcp-1 \
#     --system 'exec:sends:docs/examples/vxlane-options.sh;;docs/examples/kernel-vxlan.sh' \
#     --system 'exec:receives:docs/examples/kernel-vxlan.sh;;docs/examples/vxlane-options.sh'
#
# What it is told in BENCH_… is explained by vxlane-bench run --help. The device vanishes with the lab.
set -eu

ip link add vxlan1 type vxlan id 1 local "$BENCH_UNDERLAY" remote "$BENCH_UNDERLAY_PEER" dstport 8472 dev "$BENCH_DEVICE"
ip address add "$BENCH_ADDRESS" dev vxlan1
ip link set vxlan1 up
