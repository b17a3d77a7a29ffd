# A control plane of one, its keys, and daemons in the background; sourced by swap.sh and by
# shim-hpk/tests/cri/kubelet.sh. Wants $DIR (with log/ and pid/), $CONTROL_PLANE, $node_ip, $cluster_ip.
# shellcheck shell=bash

# daemon NAME CMD…
daemon() {
  local name=$1; shift
  setsid "$@" >"$DIR/log/$name.log" 2>&1 </dev/null &
  echo $! >"$DIR/pid/$name"
}

ca() {
  openssl ecparam -name prime256v1 -genkey -noout -out ca.key 2>/dev/null
  openssl req -x509 -new -key ca.key -days 2 -subj /CN=swap-ca -out ca.crt 2>/dev/null
  openssl genrsa -out sa.key 2048 2>/dev/null
}

# cert NAME SUBJECT [SAN]
cert() {
  openssl ecparam -name prime256v1 -genkey -noout -out "$1.key" 2>/dev/null
  openssl req -new -key "$1.key" -subj "$2" -out "$1.csr" 2>/dev/null
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out "$1.crt" \
    -extfile <(printf 'extendedKeyUsage=serverAuth,clientAuth\n%s' "${3:+subjectAltName=$3}") 2>/dev/null
}

kubeconfig() {
  kubectl config --kubeconfig="$1.conf" set-cluster swap --server=https://127.0.0.1:6443 \
    --certificate-authority="$PWD/ca.crt" --embed-certs >/dev/null
  kubectl config --kubeconfig="$1.conf" set-credentials me --client-certificate="$PWD/$1.crt" \
    --client-key="$PWD/$1.key" --embed-certs >/dev/null
  kubectl config --kubeconfig="$1.conf" set-context swap --cluster=swap --user=me >/dev/null
  kubectl config --kubeconfig="$1.conf" use-context swap >/dev/null
}

# pki FOLDER: keys of the control plane, of an administrator, and of the node node1.
pki() {
  mkdir -p "$1"; cd "$1"
  ca
  cert apiserver /CN=kube-apiserver "DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:$node_ip,IP:$cluster_ip"
  cert kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
  cert admin /O=system:masters/CN=admin
  cert node /O=system:nodes/CN=system:node:node1 "DNS:node1,IP:$node_ip"
  for who in admin node; do kubeconfig $who; done
  chmod 600 ./*.key ./*.conf
}

# Returns when the API server answers; its keys are in $DIR/pki.
control_plane() {
  daemon etcd etcd --data-dir "$DIR/etcd" --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync
  cd "$DIR/pki"
  daemon apiserver "$CONTROL_PLANE" kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
    --secure-port=6443 --advertise-address=$node_ip --service-cluster-ip-range=10.43.0.0/16 \
    --tls-cert-file=apiserver.crt --tls-private-key-file=apiserver.key --client-ca-file=ca.crt \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=sa.key \
    --service-account-signing-key-file=sa.key --authorization-mode=Node,RBAC \
    --enable-admission-plugins=NodeRestriction --kubelet-client-certificate=kubelet-client.crt \
    --kubelet-client-key=kubelet-client.key --kubelet-certificate-authority=ca.crt \
    --kubelet-preferred-address-types=InternalIP
  await 30 "the API server" kubectl --kubeconfig="$DIR/pki/admin.conf" get --raw /readyz
  daemon controller-manager "$CONTROL_PLANE" kube-controller-manager --kubeconfig=admin.conf \
    --service-account-private-key-file=sa.key --root-ca-file=ca.crt --leader-elect=false \
    --use-service-account-credentials --controllers='*'
  daemon scheduler "$CONTROL_PLANE" kube-scheduler --kubeconfig=admin.conf --leader-elect=false
}
