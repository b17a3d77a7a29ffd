#!/usr/bin/env bash
# Builds containerd's client suite, at the version that go.mod names, as bin/containerd-client-test.
set -euo pipefail
cd "$(dirname "$0")"
CGO_ENABLED=0 exec go test -c -trimpath -ldflags '-s -w' -o ../../../bin/containerd-client-test \
    github.com/containerd/containerd/v2/integration/client
