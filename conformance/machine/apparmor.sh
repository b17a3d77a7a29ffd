# What AppArmor does with HPK. Debian's kernel has no kernel.apparmor_restrict_unprivileged_userns, Ubuntu's own patch.
# shellcheck shell=bash

check_apparmor() {
	check "AppArmor denied nothing to HPK's programs" nothing_was_denied
}

nothing_was_denied() {
	local denied
	denied=$(journalctl -k -o cat --no-pager | grep -F 'apparmor="DENIED"')
	[ -z "$denied" ] || { echo "$denied" && return 1; }
}
