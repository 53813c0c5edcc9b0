# make build   the binaries, in bin/
# make demo    a tunnel between two hosts on this machine (root)
# make test    everything that is checked; its parts can be run alone, see "test" below
# make docs    write the generated references in docs/ anew
# make bench-micro   Go benchmarks of the packet path, for benchstat

GO       ?= go
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMANDS := $(notdir $(wildcard cmd/vxlane*))
FUZZTIME ?= 3s
COUNT    ?= 6

.PHONY: build demo test format vet staticcheck arch unit fuzz netns cross docs bench-micro clean

build:
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '-X github.com/vxlane/vxlane/cmd/internal/cli.buildVersion=$(VERSION)' -o bin/ $(addprefix ./cmd/,$(COMMANDS))

demo: build
	@./bin/vxlane demo

test: format vet staticcheck arch unit fuzz netns cross

format:
	@out="$$(gofmt -l .)"; test -z "$$out" || { echo "run gofmt -w on:" $$out; exit 1; }

vet:
	$(GO) vet ./...
	$(GO) vet -tags netns ./...

staticcheck:
	$(GO) tool staticcheck -tags netns ./...

# Who may import whom; cmd/vxlane/arch_test.go has the rules.
arch:
	$(GO) test -run '^TestArchitecture' ./cmd/vxlane

unit:
	$(GO) test -race ./...

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
	@test "$$(id -u)" != 0 || $(GO) test -tags netns -count=1 -p 1 -timeout 12m ./...

# The code is Linux's, not one architecture's.
cross:
	@for arch in arm64 arm riscv64 s390x; do echo "build for $$arch"; GOARCH=$$arch CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/vxlane || exit 1; done

docs:
	$(GO) test -run '^TestGeneratedDocs' ./cmd/vxlane -update

bench-micro:
	$(GO) test -run '^$$' -bench . -benchmem -count $(COUNT) ./encap ./routing ./tunnel

clean:
	rm -rf bin
