#!/bin/sh
# Where the time goes while one workload runs: what perf saw of each thread of the tunnel beside what the harness counted (CPU for a
# gigabyte, system calls for a packet, context switches). The profiles in docs/decisions are made so:
#
#   docs/examples/profile.sh vxlane-tunnel-gso no-udp-gso tcp-1 [FUNCTIONS]
#
# A share is of all that both cores did in four seconds; that of a function includes what it calls. FUNCTIONS is how many are shown of
# each thread (default 40). It needs root, perf (Debian: linux-perf) and make bench-build.
set -eu

if [ $# -lt 3 ]; then
	sed -n '2,9s/^# \{0,1\}//p' "$0"
	exit 2
fi
PATH=$PWD/bin:$PATH
dir=$(mktemp -d)
bench=
trap 'rm -rf "$dir"; ${bench:+kill "$bench" 2>/dev/null} || :' EXIT

vxlane-bench run --system "$1" --profile "$2" --workload "$3" --repeat 1 --duration 8s --out "$dir/report" >"$dir/log" 2>&1 &
bench=$!
sleep 3.5 # the lab is built and traffic flows
perf record --all-cpus --call-graph fp --freq 1500 --output "$dir/perf.data" -- sleep 4 >"$dir/perf.log" 2>&1 || {
	cat "$dir/perf.log" >&2
	exit 1
}
wait "$bench" || {
	cat "$dir/log" >&2
	exit 1
}
bench=

show() { perf report --input "$dir/perf.data" --call-graph none --stdio "$@" 2>/dev/null | sed '/^#/d; /^ *$/d'; }

# The harness's table, turned: a name and a value on each line.
awk -F'|' '/^\| system \|/ { split($0, name) } /^\| [a-z]/ && $3 ~ /^ 1 $/ { for (i = 5; i < NF; i++) print name[i] ":" $i }' "$dir/report/report.md"
echo
show --no-children --sort pid,comm | head -8
for thread in $(show --no-children --sort pid,comm | awk '$2 ~ /:(vxlane|flannel|kworker|ksoftirqd|wireguard)/ && $1 + 0 > 5 { sub(/:.*/, "", $2); print $2 }' | head -4); do
	printf '\nthread %s\n' "$thread"
	show --children --sort pid,sym | grep " $thread:" | sed "s/ $thread:[^ ]*  *//" | head -"${4:-40}"
done
