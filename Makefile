# One Makefile for people and CI: `make help` lists the targets.
SHELL := /bin/bash
# Where images are pushed to, such as myregistry.io/user: `REGISTRY=… make` builds and pushes them.
REGISTRY ?=
.DEFAULT_GOAL := $(if $(REGISTRY),push,programs)
ARCH := $(shell uname -m)
GOARCH := $(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(ARCH)))
export CARGO_BUILD_TARGET := $(ARCH)-unknown-linux-musl
# `make PROFILE=dev …` trades speed of the programs for speed of the build.
PROFILE ?= release
OUT := $(or $(CARGO_TARGET_DIR),target)/$(CARGO_BUILD_TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
PROGRAMS := cni-hpk hpk-net-daemon containerd-shim-hpk-v2 hpk-pause hpk-kubelet hpk-logger hpktainer hpk-bubble hpk-conformance hpk-manual
# What a user needs of them: the others are for building and testing.
SHIPPED := hpk-bubble hpk-net-daemon cni-hpk containerd-shim-hpk-v2 hpk-pause hpk-kubelet hpk-logger hpktainer
STEP := scripts/step

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.PHONY: deps
deps: ## install what building and testing needs (Debian 12, root)
	@scripts/deps

.PHONY: deps-build
deps-build:
	@scripts/deps build

.PHONY: programs
programs: deps-build ## our programs for this machine, static, in bin/
	@$(STEP) "build our programs ($(PROFILE))" env -u MAKEFLAGS cargo build --quiet --locked --workspace --bins --profile $(PROFILE)
	@scripts/install-binaries $(OUT) bin $(PROGRAMS)

# The host's own too in bin/: what follows is built from those, and `make test` needs no others.
.PHONY: binaries
binaries: programs control-plane ## all programs for amd64 and arm64, static, in bin/linux-*; this machine's in bin/
	@scripts/binaries amd64 $(SHIPPED)
	@scripts/binaries arm64 $(SHIPPED)

.PHONY: control-plane
control-plane: deps-build ## Kubernetes, Flannel and CoreDNS from their Go modules, in bin/
	@images/control-plane/build.sh

.PHONY: roots
roots: deps ## the Debian roots of bubble and testbed
	@images/bubble/build.sh --root
	@conformance/testbed rootfs

# Side by side: each leaves a core idle at times. (Cargo would take MAKEFLAGS for the promise of a
# jobserver that it was not handed.)
.PHONY: parts
parts: deps
	@$(MAKE) --no-print-directory -j3 programs control-plane roots

.PHONY: sif
sif: parts ## the bubble's image for this machine, bin/hpk-bubble.sif
	@images/bubble/build.sh
	@images/pause/build.sh

# For users; `make test` wants a tenth of that work, which is `sif`.
IMAGES := hpk-pause hpk-bubble hpktainer-base hpk-builder
.PHONY: images
images: binaries ## our images for amd64 and arm64 as OCI archives, in bin/images (IMAGES="hpk-pause …")
	@images/release.sh $(IMAGES)

.PHONY: images-local
images-local: programs control-plane roots ## the same for this machine's architecture alone
	@scripts/binaries $(GOARCH) $(SHIPPED)
	@HPK_ARCHES=$(GOARCH) images/release.sh $(IMAGES)

# What is pushed is what dist-online pins.
.PHONY: push
push: registry images ## those, to REGISTRY
	@images/push.sh "$(REGISTRY)" $(IMAGES)
ifneq ($(filter hpk-bubble,$(IMAGES)),)
	@scripts/pin "$(REGISTRY)" >bin/.hpk-bubble.ref.new && mv bin/.hpk-bubble.ref.new bin/hpk-bubble.ref
endif

.PHONY: registry
registry:
	@[ -n "$(REGISTRY)" ] || { echo 'make push: which registry? REGISTRY=registry.example.org/me make' >&2; exit 2; }

.PHONY: test-release
test-release: images testbed ## those through a registry, beside buildah's build of the Containerfiles, and run
	@images/test-release.sh $(IMAGES)
	@bin/hpk-conformance test shipped

.PHONY: dist
dist: sif ## the tarball that a user unpacks as ~/hpk, in dist/
	@$(STEP) "make the tarball" scripts/dist $(SHIPPED)

.PHONY: dist-airgapped
dist-airgapped: sif images ## and one with our images and a mirror list, for sites without the internet
	@IMAGES="$(IMAGES)" $(STEP) "make the tarballs" scripts/dist --air-gapped $(SHIPPED)

.PHONY: dist-online
dist-online: push ## one without the bubble's image, which the first job fetches from REGISTRY
	@$(STEP) "make the tarball" scripts/dist --online $(SHIPPED)

# HPK_SSH="ssh -F FILE" names another ssh, or options of it.
.PHONY: develop
develop: IMAGES := hpk-pause hpk-bubble
develop: images-local ## copy programs and images for this architecture over ssh to HOSTS="node1 user@host2 …"
	@$(MAKE) --no-print-directory develop-copy

.PHONY: develop-copy
develop-copy:
	@scripts/develop "$(SHIPPED)" "hpk-bubble hpk-pause" $(HOSTS)

.PHONY: test-images
test-images: parts ## the images that the testbed's registry serves
	@images/test-images/build.sh

.PHONY: testbed
testbed: sif test-images ## bring the testbed up
	@$(STEP) "testbed up" conformance/testbed up --nodes 3

.PHONY: lint
lint: ## rustfmt, clippy, and the Vagrantfile
	@scripts/deps lint
	@$(STEP) "rustfmt" cargo fmt --all --check
	@cd vagrant && VAGRANT_DOTFILE_PATH=../target/vagrant ../$(STEP) "vagrant validate" vagrant validate --ignore-provider >/dev/null
	@$(STEP) "clippy" cargo clippy --quiet --locked --workspace --all-targets --profile $(PROFILE) -- -D warnings

.PHONY: unit
unit: deps ## unit tests: no privileges needed
	@$(STEP) "unit tests" cargo test --quiet --locked --workspace --profile $(PROFILE)

.PHONY: kernel
kernel: deps programs ## tests on the real kernel, in namespaces of their own
	@scripts/kernel-tests --profile $(PROFILE)

.PHONY: test-arm64
test-arm64: programs control-plane ## the programs for arm64 under qemu's user mode, beside this machine's
	@scripts/binaries arm64 $(SHIPPED)
	@$(STEP) "programs for arm64" scripts/test-arm64 $(SHIPPED) hpk-control-plane cnitool

.PHONY: test-reproducible
test-reproducible: ## build twice, in two folders with two homes of cargo and Go, and compare (REPRODUCE="arm64 PROGRAM…")
	@scripts/test-reproducible $(or $(REPRODUCE),amd64 $(SHIPPED))

.PHONY: test-programs
test-programs: deps ## tests that run on the testbed's hosts, in bin/
	@$(STEP) "build the shim's pod tests" env -u MAKEFLAGS scripts/install-test pod bin/hpk-shim-pod-test --profile $(PROFILE)

.PHONY: system
system: IMAGES := hpk-pause hpk-bubble
system: testbed test-programs images-local ## the whole system on the testbed, case by case
	@IMAGES="$(IMAGES)" $(STEP) "make the tarballs" scripts/dist --air-gapped $(SHIPPED)
	@bin/hpk-conformance test

# The reference first: a failure of its own would say nothing about the shim.
.PHONY: test-containerd
test-containerd: testbed ## the suites of others (docs/containerd-suite.md) on the runc shim, then on ours
	@$(STEP) "build containerd's client suite" shim-hpk/tests/containerd/build.sh
	@$(STEP) "build critest, containerd's CRI suite and a kubelet" shim-hpk/tests/cri/build.sh
	@$(STEP) "build nerdctl" shim-hpk/tests/nerdctl/build.sh
	@$(STEP) "build containerd 1.7" shim-hpk/tests/containerd-1.7/build.sh
	@on() { conformance/testbed exec -u root node1 -- /hpk/shim-hpk/tests/"$$@"; }; \
	for runtime in runc hpk; do \
	    on containerd/run.sh io.containerd.$$runtime.v2 && on cri/suites.sh critest $$runtime && \
	    on cri/suites.sh integration $$runtime && on cri/kubelet.sh $$runtime && \
	    on nerdctl/run.sh $$runtime || exit 1; \
	done; \
	on containerd-1.7/run.sh hpk

.PHONY: test
test: ## everything: unit, kernel and whole-system tests
	@$(MAKE) --no-print-directory lint unit kernel system

.PHONY: bench
bench: bench-net bench-shim bench-pods bench-pull ## all benchmarks, into docs/bench/ (two hours; a quiet machine)

# BENCH="--only WORD --repeats N …" picks; NOTE is said with the figures.
.PHONY: bench-net
bench-net: testbed ## the pod network beside stock plugins and a kernel VXLAN
	@bin/hpk-conformance bench net --output docs/bench $(if $(NOTE),--note "$(NOTE)") $(BENCH)

.PHONY: bench-shim
bench-shim: testbed ## the shim beside containerd-shim-runc-v2
	@bin/hpk-conformance bench shim --output docs/bench $(if $(NOTE),--note "$(NOTE)") $(BENCH)

.PHONY: bench-pods
bench-pods: testbed ## a node's pods beside a stock kubelet, containerd and runc
	@$(STEP) "build a stock kubelet" shim-hpk/tests/cri/build.sh kubelet
	@bin/hpk-conformance bench pods --output docs/bench $(if $(NOTE),--note "$(NOTE)") $(BENCH)

.PHONY: bench-pull
bench-pull: testbed ## pulls and bursts beside skopeo with mksquashfs, and Apptainer (an hour)
	@bin/hpk-conformance bench pull --output docs/bench $(if $(NOTE),--note "$(NOTE)") $(BENCH)

.PHONY: site
site: deps-build ## the documentation as a site, target/site
	@scripts/site

.PHONY: fuzz
fuzz: deps ## feed rubbish to the network plugin's parsers and to SPDY's, FUZZ_SECONDS (20) each
	@scripts/fuzz

.PHONY: demo
demo: ## a cluster on the testbed, with a small application
	@scripts/demo

.PHONY: e2e
e2e: sif test-images
	@conformance/e2e/build.sh
	@conformance/e2e/images.sh
	@conformance/metrics-server/build.sh
	@$(STEP) "testbed up" conformance/testbed up --nodes 3

.PHONY: test-e2e
test-e2e: e2e ## Kubernetes' own end-to-end suite, what is about nodes, judged by docs/conformance.md
	@bin/hpk-conformance test kubectl_top
	@bin/hpk-conformance e2e

# What a certified cluster passes: the tests that are to run alone too, which ginkgo does so at the end.
.PHONY: test-conformance
test-conformance: e2e ## all of that suite's [Conformance], judged by docs/conformance.md
	@bin/hpk-conformance e2e --focus '\[Conformance\]' --skip '\[Flaky\]' --out target/conformance

# A Debian that boots, with systemd, cgroup v2 and AppArmor, by qemu without KVM: docs/machine.md.
.PHONY: test-machine
test-machine: dist test-images ## the main job on one virtual machine (a quarter of an hour to an hour; not in `test`)
	@$(STEP) "build the cgroups' kernel tests" env -u MAKEFLAGS scripts/install-test hpk-cgroup/lib bin/hpk-cgroup-test --profile $(PROFILE)
	@conformance/machine/run.sh

.PHONY: deny
deny: ## licences, sources and duplicate crates (needs cargo-deny)
	@cargo deny check bans licenses sources

.PHONY: down
down: ## take the testbed down
	@conformance/testbed down

.PHONY: clean
clean: ## remove what was built in this checkout
	@cargo clean --quiet; rm -rf bin dist
