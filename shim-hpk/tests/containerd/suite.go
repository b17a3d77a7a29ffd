// Package containerd pins the containerd whose own tests judge the shim: see run.sh.
package containerd

import (
	_ "github.com/containerd/containerd/v2/integration"
	_ "github.com/containerd/containerd/v2/integration/client"
)
