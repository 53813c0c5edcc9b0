# make build   the binaries, in bin/
# make demo    a tunnel between two hosts on this machine (root)
# make test    everything that is checked; its parts can be run alone, see "test" below
# make docs    write the generated references in docs/ anew
# make bench   tunnels side by side, a small set (root, less than five minutes); the report is in $(BENCH_OUT)
# make bench-full   soak, then each system, workload and profile (root, days); Ctrl-C keeps what was measured
# make soak    a thousand million numbered UDP packets through each tier: none lost its place, came twice or damaged; then TCP (root, six hours)
# make bench-micro   Go benchmarks of the packet path, for benchstat

GO       ?= go
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMANDS := $(notdir $(wildcard cmd/vxlane*))
# Inputs for each fuzz target. A duration would do, but the go command now and then takes its own deadline for a failure.
FUZZTIME ?= 30000x
COUNT    ?= 6
# Millions of packets for each tier.
SOAK     ?= 1000
# Where make bench and make bench-full put their results.
BENCH_OUT ?= bench-results
# The harness can hold flannel's real C proxy where that can be built: cgo, on amd64.
COMMA    := ,
FLANNEL  := $(shell test "$$($(GO) env GOARCH)" = amd64 && command -v gcc >/dev/null && echo flannel)
ARCHES   := arm64 arm riscv64 ppc64le s390x
# What make cross builds for.
KINDS    := arm64 arm s390x
# Packages with tests in namespaces.
NAMESPACED := $(sort $(dir $(shell grep -rl '^//go:build netns' --include=*_test.go .)))
# Tags of all tests there are, but for those that need flannel's proxy.
RINGS    := netns,cluster,kube
WITH_FLANNEL := ./bench/system ./cmd/vxlane-flanneld
COMMIT   := $(shell git describe --always --exclude '*' --dirty 2>/dev/null || echo unknown)
CLI      := github.com/vxlane/vxlane/cmd/internal/cli
LDFLAGS  := -X $(CLI).buildVersion=$(VERSION) -X $(CLI).buildCommit=$(COMMIT)

.PHONY: build demo test format vet staticcheck arch unit fuzz netns cluster kube foreign ovs packages cross cross-all docs bench bench-full soak bench-build bench-micro clean

build:
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(COMMANDS))

demo: build
	@./bin/vxlane demo

test: format vet staticcheck arch unit fuzz netns

format:
	@out="$$(gofmt -l .)"; test -z "$$out" || { echo "run gofmt -w on:" $$out; exit 1; }

vet:
	$(GO) vet -tags $(RINGS) ./...
	$(if $(FLANNEL),CGO_ENABLED=1 $(GO) vet -tags $(RINGS)$(COMMA)flannel $(WITH_FLANNEL))

staticcheck:
	$(GO) tool staticcheck -tags $(RINGS) ./...
	$(if $(FLANNEL),CGO_ENABLED=1 $(GO) tool staticcheck -tags $(RINGS)$(COMMA)flannel $(WITH_FLANNEL))

# Who may import whom; cmd/vxlane/arch_test.go has the rules.
arch:
	$(GO) test -run '^TestArchitecture' ./cmd/vxlane

# vxlane-flanneld is built of etcd's and Kubernetes' clients, minutes more with -race; its own threads are those of packages tested here.
unit:
	$(GO) test -race $$($(GO) list ./... | grep -v '/vxlane-flanneld$$\|/flannel/nodes$$')
	$(GO) test ./cmd/vxlane-flanneld ./routing/flannel/nodes

# Every fuzz target for a moment; crashers are kept in testdata/fuzz and become tests.
fuzz:
	@set -e; log=$$(mktemp); trap "rm -f $$log" EXIT; for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "fuzz $$pkg $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg >"$$log" 2>&1 || { cat "$$log"; exit 1; }; \
	  done; \
	done

# Real devices, real sockets and the kernel's own vxlan, in network namespaces. Needs root; says so and is skipped without.
netns:
	@test "$$(id -u)" = 0 || echo "netns: skipped: network namespaces need root (sudo make netns)"
	@test "$$(id -u)" != 0 || $(GO) test -tags netns -count=1 -p 2 -timeout 12m $(filter ./bench/% %-bench/,$(NAMESPACED))
	@test "$$(id -u)" != 0 || $(GO) test -tags netns -count=1 -p 1 -timeout 12m $(filter-out ./bench/% %-bench/,$(NAMESPACED))
	$(if $(FLANNEL),@test "$$(id -u)" != 0 || CGO_ENABLED=1 $(GO) test -tags netns$(COMMA)flannel -count=1 -run '^(TestSystems|TestMixedCluster)' $(WITH_FLANNEL))

# Clusters of vxlane-flanneld: etcd with TLS, outages, thousands of leases, pods behind rules of iptables and nftables, flannel's own nodes
# beside ours. Needs root, and the programs that packages names.
cluster: packages
	CGO_ENABLED=$(if $(FLANNEL),1,0) $(GO) test -tags netns$(COMMA)cluster$(if $(FLANNEL),$(COMMA)flannel) -count=1 -timeout 20m ./cmd/vxlane-flanneld
	$(GO) test -tags netns$(COMMA)cluster -count=1 -run '^TestPodToPod$$' ./cmd/vxlane

# The same with leases in a real Kubernetes API server, and flannel's own flanneld on the other node: both are built here, each with
# modules of its own (five minutes, then cached).
kube: packages bin/peers
	$(GO) test -tags netns$(COMMA)kube -count=1 -timeout 15m -run '^(TestKube|TestManifests|TestRecord|TestDouble)' ./cmd/vxlane-flanneld -peers $(CURDIR)/bin/peers

PEERS := kube-apiserver=k8s.io/kubernetes/cmd/kube-apiserver flanneld=github.com/flannel-io/flannel helm=helm.sh/helm/v3/cmd/helm kustomize=sigs.k8s.io/kustomize/kustomize/v5
bin/peers: $(wildcard cmd/vxlane-flanneld/peers/*/go.mod)
	@mkdir -p $@
	@for p in $(PEERS); do echo "build $${p%%=*}"; (cd cmd/vxlane-flanneld/peers/$${p%%=*} && CGO_ENABLED=$$(test $${p%%=*} = flanneld && echo 1 || echo 0) $(GO) build -o $(CURDIR)/$@/$${p%%=*} $${p#*=}) || exit 1; done
	@touch $@

# Open vSwitch's userspace datapath as the other end: a VXLAN that shares no code with the kernel's, nor with this one.
ovs: packages
	$(GO) test -tags netns -count=1 -run '^TestOpenVSwitch$$' ./cmd/vxlane

# One foreign architecture runs: what parses bytes, and the daemon as far as flags go.
foreign: packages
	GOARCH=arm64 CGO_ENABLED=0 $(GO) test -count=1 -exec qemu-aarch64-static ./encap ./routing ./routing/flannel ./cmd/vxlane-flanneld -skip '^Test(Scripts|Manifest|Dockerfiles)'
	GOARCH=arm64 CGO_ENABLED=0 $(GO) build -o bin/arm64/ ./cmd/vxlane-flanneld ./cmd/vxlane
	qemu-aarch64-static bin/arm64/vxlane-flanneld --version
	qemu-aarch64-static bin/arm64/vxlane version

# Programs of Debian's that the rings above need.
packages:
	@for p in iptables nft:nftables tcpdump ping:iputils-ping qemu-aarch64-static:qemu-user-static ovs-vswitchd:openvswitch-switch; do command -v $${p%%:*} >/dev/null || missing="$$missing $${p#*:}"; done; \
	test -z "$$missing" || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }

# The code is Linux's, not one architecture's: one of 64 bits, one of 32, one that is big-endian, without vxlane-flanneld, which holds
# etcd's and Kubernetes' clients, a minute and more for each architecture.
cross:
	@for arch in $(KINDS); do echo "build for $$arch"; for c in $(filter-out vxlane-flanneld,$(COMMANDS)); do GOARCH=$$arch CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/$$c || exit 1; done; done

# All binaries for all architectures; CI runs it.
cross-all:
	@for arch in $(ARCHES); do echo "build all for $$arch"; GOARCH=$$arch CGO_ENABLED=0 $(GO) build -o /dev/null $(addprefix ./cmd/,$(COMMANDS)) || exit 1; done

docs:
	$(GO) test -run '^TestGeneratedDocs' ./cmd/vxlane ./cmd/vxlane-bench -update

bench-build: build
	$(if $(FLANNEL),CGO_ENABLED=1 $(GO) build -trimpath -tags flannel -ldflags '$(LDFLAGS)' -o bin/ ./cmd/vxlane-bench)

bench: bench-build
	./bin/vxlane-bench run --quick --out $(BENCH_OUT)

bench-full: bench-build soak
	./bin/vxlane-bench run --system all --workload all --profile all --out $(BENCH_OUT)

soak:
	$(GO) test -tags netns -count=1 -timeout 0 -run '^TestAMillionPackets$$' -v ./cmd/vxlane -soak $(SOAK)

bench-micro:
	$(GO) test -run '^$$' -bench . -benchmem -count $(COUNT) ./encap ./routing ./tunnel

clean:
	rm -rf bin
