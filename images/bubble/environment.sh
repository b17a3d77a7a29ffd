# shellcheck shell=sh
# Sourced by Apptainer before anything that runs in the bubble: what a person who enters it finds.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export CNI_PATH=/opt/cni/bin NETCONFPATH=/etc/cni/net.d
export CONTAINER_RUNTIME=apptainer
# The bubble's own cluster goes before whatever the host's environment names.
if [ -r /var/lib/hpk/kubeconfig ]; then
    export KUBECONFIG=/var/lib/hpk/kubeconfig
elif [ -z "${KUBECONFIG:-}" ] && [ -r "$HOME/.hpk/kubeconfig" ]; then
    export KUBECONFIG="$HOME/.hpk/kubeconfig"
fi
