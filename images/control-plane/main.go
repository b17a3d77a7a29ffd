// Command hpk-control-plane is every Go program a bubble runs, linked into one static binary:
// Kubernetes' control plane and kube-proxy, flanneld and CoreDNS, each as released, chosen by the
// name it is called by or by its first argument.
//
// Layout:
//   - main.go: the table of programs and the choice among them.
//   - coredns.go: which CoreDNS plugins are linked in.
//   - flanneld/: written at build time by build.sh from Flannel's own main program, which, being
//     a package main, can't be imported.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	_ "time/tzdata" // for the time zones of CronJobs

	"github.com/coredns/coredns/coremain"
	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"

	"hpk.io/control-plane/flanneld"
)

var programs = map[string]func(){
	"kube-apiserver":          kubernetes(apiserver.NewAPIServerCommand),
	"kube-controller-manager": kubernetes(controllermanager.NewControllerManagerCommand),
	"kube-scheduler":          kubernetes(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
	"kube-proxy":              kubernetes(proxy.NewProxyCommand),
	"flanneld":                flanneld.Main,
	"coredns":                 coremain.Run,
}

// CoreDNS puts its flags into Go's global set when linked, and kube-proxy offers that whole set as
// its own, so that CoreDNS's -version would hide Kubernetes'.
var corednsFlags = map[string]bool{"conf": true, "dns.port": true, "p": true, "pidfile": true,
	"plugins": true, "quiet": true, "version": true}

func kubernetes(command func() *cobra.Command) func() {
	return func() {
		global := flag.NewFlagSet(os.Args[0], flag.ExitOnError)
		flag.VisitAll(func(f *flag.Flag) {
			if !corednsFlags[f.Name] {
				global.Var(f.Value, f.Name, f.Usage)
			}
		})
		flag.CommandLine = global
		os.Exit(cli.Run(command()))
	}
}

func main() {
	name := filepath.Base(os.Args[0])
	if _, known := programs[name]; !known && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		name = os.Args[0]
	}
	run, known := programs[name]
	if !known {
		names := make([]string, 0, len(programs))
		for n := range programs {
			names = append(names, n)
		}
		sort.Strings(names)
		fmt.Fprintf(os.Stderr, "hpk-control-plane: %q is none of its programs; usage: hpk-control-plane %s ARGS…\n",
			name, strings.Join(names, "|"))
		os.Exit(2)
	}
	run()
}
