#!/bin/sh
# node.sh WORK BIN ADDR: the first process of a cluster, in new namespaces for
# processes, mounts, network, host name and IPC: makes them a machine of its own
# and goes on as `pause node`. WORK is the cluster's folder, which the node knows
# as /run/kube, so that paths, those of sockets above all, are short. ADDR is the
# node's address.
set -eu
work=$1 bin=$2 addr=$3

mount --make-rprivate /
mount -t proc proc /proc

# What containerd, CNI plugins and kubelet write at places they do not let one
# choose stays in here.
mkdir -p "$work/lib/upper" "$work/lib/work"
mount -t overlay overlay -o "lowerdir=/var/lib,upperdir=$work/lib/upper,workdir=$work/lib/work" /var/lib
mount -t tmpfs -o mode=755 tmpfs /var/log
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/kube /run/netns /run/lock
mount --bind "$work" /run/kube

# The kubelet sets these for the whole machine unless they are as it wants them.
sysctl() {
	[ -e "/proc/sys/$1" ] || return 0
	echo "$2" >"/run/kube/sysctl.$(basename "$1")"
	mount --bind "/run/kube/sysctl.$(basename "$1")" "/proc/sys/$1"
}
sysctl vm/overcommit_memory 1
sysctl vm/panic_on_oom 0
sysctl kernel/panic 10
sysctl kernel/panic_on_oops 1
sysctl kernel/keys/root_maxkeys 1000000
sysctl kernel/keys/root_maxbytes 25000000
mount --make-rshared / # pods take their volumes' later mounts from here

# The default route is for service addresses, which need one before they are
# translated; there is nothing at its end.
hostname node1
ip link set lo up
ip link add node0 type veth peer name nowhere
ip addr add "$addr/24" dev node0
ip link set node0 up
ip link set nowhere up
ip route add 10.96.0.0/16 dev node0

exec "$bin/pause" node
