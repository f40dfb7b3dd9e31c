# Short targets; the plain Go form stands in each comment. `make help` lists them.
SHELL := /bin/bash
GO ?= go
export CGO_ENABLED := 0
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
IMAGE ?= ghcr.io/podlane/podlane:devel
LDFLAGS := -s -w -X main.version=$(VERSION)
need := $(shell sed -n 's/^go //p' go.mod)

.PHONY: build docs demo image e2e test lint bench bench-dns bench-proxy test-kubeproxy help check-go

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

check-go:
	@command -v $(GO) >/dev/null || { echo "podlane needs Go $(need) or newer: https://go.dev/dl/" >&2; exit 1; }
	@have=$$(GOTOOLCHAIN=local $(GO) env GOVERSION); have=$${have#go}; \
	if [ "$$(printf '%s\n%s\n' "$(need)" "$${have%% *}" | sort -V | head -1)" != "$(need)" ]; then \
	echo "podlane needs Go $(need) or newer, this is Go $$have: https://go.dev/dl/" >&2; exit 1; fi

build: check-go ## bin/podlane, one static file (go build ./cmd/podlane)
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '-s -w' -o cni/embedded/podlane-cni ./cmd/podlane-cni
	$(GO) build -trimpath -tags embedshim -ldflags '$(LDFLAGS)' -o bin/podlane ./cmd/podlane

demo: build ## a two-node cluster network on this machine, explained and measured; no root (go run ./cmd/podlane lab demo)
	bin/podlane lab demo

image: check-go ## bin/podlane-image.tar, an OCI archive for amd64 and arm64, by the name of the manifests; IMAGE=NAME:TAG: by another (go run ./internal/ociimage/cmd/image)
	$(GO) run ./internal/ociimage/cmd/image -version $(VERSION) -name $(IMAGE) -o bin/podlane-image.tar

e2e: check-go ## against a real kube-apiserver, and on a real two-node Kubernetes; root, 20 minutes the first time; FAST_PATH=on: with the fast path (cd test/e2e && go test ./...)
	cd test/e2e && PODLANE_E2E_FAST_PATH=$(FAST_PATH) $(GO) test -v -count=1 -timeout 60m ./...

.PHONY: scenarios
scenarios: check-go ## what machines and people do to nodes, in the lab, under a packet every 10 ms; FAST_PATH=on|off: in all of them (cd test/scenarios && go test . -scenarios)
	cd test/scenarios && $(GO) test -v -count=1 -timeout 20m . -scenarios -fast-path=$(FAST_PATH) | grep --line-buffered -v '^=== ' && exit $${PIPESTATUS[0]}

e2e-perf: check-go ## podlane perf run on that Kubernetes: every path, bad input, killed at ten points; root, 10 min (cd test/e2e && go test ./real -perf)
	cd test/e2e && PODLANE_E2E_FAST_PATH=$(FAST_PATH) $(GO) test -v -count=1 -timeout 60m -run 'TestPodlane/(not_ready|installs|perf)' ./real -perf

test: check-go ## all tests (go test ./...)
	@.ci/test

lint: check-go ## go vet, staticcheck, gofmt
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	@! git grep -nE '^(<<<<<<<|>>>>>>>) ' # what a merge left

bench: check-go ## the Go benchmarks (go test -run '^$$' -bench . ./...)
	$(GO) test -run '^$$' -bench . -benchmem ./...

bench-path: build ## what a hop costs: node to node, flannel's layouts, ours, the fast path; 20 min, root, a quiet machine (bin/podlane lab perf ...)
	bin/podlane lab perf --overlay direct+normal,vxlan+normal,direct+fast,vxlan+fast,direct+fast+lb,vxlan+fast+lb,flannel-host-gw,flannel-vxlan \
	  --tests tcp_bw,tcp_lat,udp_bw,tcp_crr --rounds $(or $(ROUNDS),20) --duration 400ms --warmup 100ms --budget $(or $(BUDGET),19m) --width 0.1% \
	  --json bin/bench-path.json --html bin/bench-path.html

.PHONY: bench-explain
bench-explain: check-go ## podlane explain with 10,000 Services of 10 endpoints: asking a running agent (200 ms wanted), and from manifests (1.5 s); root, 1 min (go test -bench Explain ./cmd/podlane)
	$(GO) test -run '^$$' -bench 'Explain' -benchtime 10x ./agent ./explain ./cmd/podlane

bench-floor: check-go ## perf's own engine beside the real qperf over loopback, 4 min, a quiet machine (go test -run '^$$' -bench Floor -benchtime 20x ./perf/qperf)
	$(GO) test -run '^$$' -bench Floor -benchtime 20x -timeout 20m ./perf/qperf

bench-aa: check-go ## 20 evaluations of one path under three names, 20 min: at most 3 may find a difference (RUNS=20 BUDGET=1m)
	$(GO) test -count=1 -v -timeout 2h -run TestAA ./perf -aa $(or $(RUNS),20) -aa-budget $(or $(BUDGET),1m)

bpf: check-go ## the fast path's programs, from their C source, with Debian's clang-14, llvm-14 and libbpf-dev (go generate ./kernel/bpf/...)
	$(GO) generate ./kernel/bpf/...

bench-proxy: check-go ## the service proxy beside kube-proxy, 30 min, root, a quiet machine (cd test/kubeproxy && go run ./cmd/bench)
	cd test/kubeproxy && $(GO) run ./cmd/bench $(BENCH_FLAGS)

test-kubeproxy: check-go ## a takeover from the real kube-proxy, root (cd test/kubeproxy && go test ./...)
	cd test/kubeproxy && $(GO) test ./...

test-dns: check-go ## podlane dns answers as CoreDNS 1.15.0 over a real kube-apiserver; its failures in the lab (cd test/dns && go test ./...)
	cd test/dns && $(GO) test -timeout 20m ./...

bench-dns: check-go ## podlane dns and CoreDNS 1.15.0 over one kube-apiserver: table, and bin/bench-dns.json (cd test/dns && go run ./bench)
	@command -v dnsperf >/dev/null || { echo "bench-dns needs dnsperf (Debian: apt-get install dnsperf)" >&2; exit 1; }
	@mkdir -p bin
	cd test/dns && $(GO) run ./bench -json ../../bin/bench-dns.json

.PHONY: oracle
HISTORIES ?= 150
SEED ?= 0
oracle: check-go ## the service proxy against kube-proxy's, packet by packet, and faults that must be found (HISTORIES=150 SEED=0: from the clock)
	cd test/oracle && $(GO) test ./packet ./world ./history && \
	$(GO) test -count=1 -timeout 60m -v -run 'Histories|Upstream|Replay|Wanted|Timeout' . -histories $(HISTORIES) -seed $(SEED) | grep -v '^=== ' && exit $${PIPESTATUS[0]}
	[ $$(id -u) != 0 ] || { cd test/oracle && $(GO) test -count=1 -timeout 30m -v -run 'Histories|Replay' . -histories 40 -seed $(SEED) -socket-lb | grep -v '^=== '; exit $${PIPESTATUS[0]}; }
	cd test/oracle && $(GO) test -count=1 -timeout 30m -v -tags oraclefault -run Faults . -histories 100 -seed $(SEED) | grep -v '^=== ' && exit $${PIPESTATUS[0]}

.PHONY: bench-cni bench-scale
bench-cni: check-go ## what a pod's start costs: the shim's CPU time, ADD alone and fifty at once (go test -run '^$$' -bench ADD ./cni)
	$(GO) test -run '^$$' -bench ADD -benchtime 20x ./cni

bench-scale: check-go ## an agent and a DNS server at 1,000 nodes and 5,000 Services over a real kube-apiserver: memory, CPU, requests; root, 5 min (cd test/e2e && go test ./scale -scale)
	cd test/e2e && $(GO) test -count=1 -v -timeout 30m ./scale -scale

docs: build ## docs/packet-path*.md anew, with the output of its commands (go run ./internal/regen)
	$(GO) run ./internal/regen docs/packet-path.md docs/packet-path.zh-CN.md
