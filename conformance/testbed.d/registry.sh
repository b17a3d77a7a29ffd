# The registry's certificate and content, and how containerd and HPK find it.
# shellcheck shell=bash

readonly REGISTRY=registry.hpk.test:5000

# CA and server certificate, made once a testbed.
write_registry_site() {
	local pki=$STATE/site/pki names registry
	write_registry_conf
	write_containerd_conf
	if [[ -e $pki/server.crt ]]; then
		return
	fi
	mkdir -p "$pki"
	names=DNS:registry.hpk.test
	for registry in "${REGISTRY_ALIASES[@]}"; do
		names+=,DNS:$registry
	done
	(
		umask 077
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
			-subj '/CN=HPK testbed CA' -addext keyUsage=critical,keyCertSign,cRLSign \
			-keyout "$pki/ca.key" -out "$pki/ca.crt"
		openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=registry.hpk.test' \
			-keyout "$pki/server.key" -out "$pki/server.csr"
		openssl x509 -req -in "$pki/server.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -days 3650 \
			-extfile <(echo "subjectAltName=$names"; echo 'extendedKeyUsage=serverAuth') \
			-out "$pki/server.crt"
	) 2>"$STATE/log/pki.log" || die "openssl failed: $(<"$STATE/log/pki.log")"
	chmod 0644 "$pki/ca.crt"
}

write_registry_conf() {
	cat >"$STATE/site/registry.yml" <<'YAML'
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: /var/lib/docker-registry}
  delete: {enabled: true}
http:
  addr: :5000
  tls: {certificate: /run/testbed/site/pki/server.crt, key: /run/testbed/site/pki/server.key}
YAML
}

# For the stock containerd: ctr --hosts-dir /etc/containerd/certs.d, and its CRI plugin by default.
write_containerd_conf() {
	local dir=$STATE/site/containerd/certs.d registry
	for registry in docker.io registry.k8s.io ghcr.io quay.io; do
		mkdir -p "$dir/$registry"
		printf '[host."https://%s"]\n  capabilities = ["pull", "resolve"]\n' "$REGISTRY" >"$dir/$registry/hosts.toml"
	done
}

# ~USER/.hpk with K3s's form of mirrors; a user's own file is left alone.
write_user_registries() {
	local user=$1 id=$2 home=$STATE/home/$1 registry
	if [[ -e $home/.hpk/registries.yaml ]]; then
		return
	fi
	install -d -o "$id" -g "$id" -m 0700 "$home/.hpk"
	install -o "$id" -g "$id" -m 0600 "$STATE/site/pki/ca.crt" "$home/.hpk/registry-ca.crt"
	{
		echo "mirrors:"
		for registry in docker.io registry.k8s.io ghcr.io quay.io; do
			printf '  %s:\n    endpoint:\n      - https://%s\n' "$registry" "$REGISTRY"
		done
		echo "configs:"
		printf '  "%s":\n    tls:\n      ca_file: /home/%s/.hpk/registry-ca.crt\n' "$REGISTRY" "$user"
	} | install -o "$id" -g "$id" -m 0600 /dev/stdin "$home/.hpk/registries.yaml"
}

# Gives the registry what the sets of images in the cache name, as far as they have been built.
push_images() {
	local set
	for set in test-images metrics-server e2e-images; do
		push_set "$HPK_CACHE/$set/current"
	done
}

# push_set DIR: pushes what DIR/images.list names: lines of an OCI layout's directory, relative to
# the list, a tab, and REPOSITORY:TAG. What the registry has already is left out.
push_set() {
	local current list layout name digest
	current=$(readlink -f "$1") || return 0
	list=$current/images.list
	if [[ ! -e $list ]]; then
		return 0
	fi
	[[ $current == "$(readlink -f "$HPK_CACHE")"/* ]] || die "$current is outside $HPK_CACHE"
	while IFS=$'\t' read -r layout name; do
		[[ -n $name && $layout != \#* ]] || continue
		digest=$(jq -er '.manifests[0].digest' "$current/$layout/index.json") ||
			die "$current/$layout is no OCI layout"
		if [[ $(registry_digest "$name") != "$digest" ]]; then
			push_image "/run/testbed/cache/${current#"$(readlink -f "$HPK_CACHE")"/}/$layout" "$name"
		fi
	done <"$list"
}

# Digest of the manifest that the registry has under REPOSITORY:TAG; empty when it has none.
registry_digest() {
	in_host registry curl --silent --head --max-time 10 \
		-H 'Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json' \
		"https://$REGISTRY/v2/${1%:*}/manifests/${1##*:}" |
		tr -d '\r' | sed -n 's/^docker-content-digest: //Ip'
}

push_image() {
	local log
	log=$(in_host registry skopeo copy --quiet --insecure-policy --all --preserve-digests \
		"oci:$1" "docker://$REGISTRY/$2" </dev/null 2>&1) || die "can't push $2: $log"
}
