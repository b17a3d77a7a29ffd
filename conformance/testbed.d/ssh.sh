# The hosts' sshd, and how user hpc logs in there: from another host, and from this machine.
# shellcheck shell=bash

# One host key for all hosts, made once a testbed, and what this machine's ssh must know: no link leads from it to the
# hosts, so its way there is `testbed exec`.
write_ssh_site() {
	local dir=$STATE/site/ssh machine=$STATE/ssh
	if [[ ! -e $dir/host_key ]]; then
		mkdir -p "$dir"
		ssh-keygen -q -t ed25519 -N '' -C hpk-testbed -f "$dir/host_key"
	fi
	echo "* $(<"$dir/host_key.pub")" >"$dir/known_hosts"
	mkdir -p -m 0700 "$machine"
	cat >"$machine/config" <<CONF
Host *
	User hpc
	IdentityFile $STATE/home/hpc/.ssh/id_ed25519
	IdentitiesOnly yes
	UserKnownHostsFile $dir/known_hosts
	StrictHostKeyChecking yes
	ProxyCommand env HPK_TESTBED_STATE=$STATE $CHECKOUT/conformance/testbed exec -u root login -- nc %h %p
CONF
}

# ~hpc/.ssh, as ssh-keygen and ssh-copy-id would leave it; a user's own is left alone.
write_user_ssh() {
	local user=$1 id=$2 home=$STATE/home/$1
	if [[ -e $home/.ssh ]]; then
		return
	fi
	install -d -m 0700 "$home/.ssh"
	ssh-keygen -q -t ed25519 -N '' -C "$user" -f "$home/.ssh/id_ed25519"
	install -m 0600 "$home/.ssh/id_ed25519.pub" "$home/.ssh/authorized_keys"
	install -m 0600 "$STATE/site/ssh/known_hosts" "$home/.ssh/known_hosts"
	chown -R "$id:$id" "$home/.ssh"
}
