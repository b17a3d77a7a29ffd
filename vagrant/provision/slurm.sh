# Slurm as a site has it; for a testbed host and for an evaluation VM alike.
# shellcheck shell=bash

# slurm_conf CONTROLLER NODES CPUS MEMORY_MIB [cgroup [OPTION]]: slurm.conf for node1..nodeNODES; with `cgroup` Slurm
# puts jobs into cgroups. CONTROLLER may have an address behind it in parentheses; OPTION is a further one of the nodes.
# Advertised CPUs and memory are taken at their word (config_overrides), so that a small machine can
# show several jobs on a host. A dead node is noticed after SlurmdTimeout seconds.
slurm_conf() {
	local track=proctrack/linuxproc task=task/none
	if [ "${5:-}" = cgroup ]; then
		track=proctrack/cgroup task=task/cgroup,task/affinity
	fi
	cat <<CONF
ClusterName=hpk
SlurmctldHost=$1
SlurmUser=slurm
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
ProctrackType=$track
TaskPlugin=$task
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=30
DefMemPerCPU=$(($4 / $3))
NodeName=node[1-$2] CPUs=$3 Boards=1 SocketsPerBoard=1 CoresPerSocket=$3 ThreadsPerCore=1 RealMemory=$4${6:+ $6}
PartitionName=main Nodes=ALL Default=YES DefaultTime=01:00:00 MaxTime=1-00:00:00 State=UP
CONF
}

# slurm_cgroup_conf [cgroup]: cgroup.conf: none of Slurm's cgroup plugins, as on a site without delegated
# cgroups; or the one that fits the machine.
slurm_cgroup_conf() {
	if [ "${1:-}" = cgroup ]; then
		printf '%s\n' CgroupPlugin=autodetect ConstrainCores=yes ConstrainRAMSpace=yes
	else
		echo 'CgroupPlugin=disabled'
	fi
}

# start_munged KEY_FILE
start_munged() {
	install -o munge -g munge -m 0400 "$1" /etc/munge/munge.key
	install -d -o munge -g munge -m 0755 /run/munge
	chown munge:munge /etc/munge /var/lib/munge /var/log/munge
	setpriv --reuid munge --regid munge --clear-groups munged
}

start_slurmctld() {
	install -d -o slurm -g slurm -m 0755 /var/lib/slurm /var/log/slurm /var/lib/slurm/slurmctld
	slurmctld
}

# -b: jobs that were on this node before it booted are gone.
start_slurmd() {
	install -d -o root -g root -m 0755 /var/lib/slurm/slurmd /var/log/slurm
	slurmd -b
}
