#!/usr/bin/env bash
# Builds the former containerd, which speaks Task API v2 only, at the version that go.mod names, its
# ctr and its runc shim (2.x's answers with version 3, which it refuses), into bin/containerd-1.7. go.mod: `go get -tool`.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p ../../../bin/containerd-1.7
CGO_ENABLED=0 exec go build -trimpath -buildvcs=false -tags no_btrfs -ldflags '-s -w' -o ../../../bin/containerd-1.7/ \
    github.com/containerd/containerd/cmd/containerd github.com/containerd/containerd/cmd/ctr \
    github.com/containerd/containerd/cmd/containerd-shim-runc-v2
