#!/usr/bin/env bash
# Builds nerdctl, at the version that go.mod names, as bin/nerdctl. go.mod: `go get -tool`.
set -euo pipefail
cd "$(dirname "$0")"
CGO_ENABLED=0 exec go build -trimpath -buildvcs=false -ldflags '-s -w' -o ../../../bin/nerdctl \
    github.com/containerd/nerdctl/cmd/nerdctl
