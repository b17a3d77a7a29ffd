// Package cri pins the cri-tools whose critest judges the shim under containerd's CRI plugin: see suites.sh.
package cri

import _ "sigs.k8s.io/cri-tools/pkg/validate"
