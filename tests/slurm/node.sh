#!/usr/bin/env bash
# First process of an emulated node, in namespaces of its own (processes, network, mounts, host name): `node.sh NAME DIR`.
# When it is killed, the kernel kills every process of the node, as when a machine loses power.
set -euo pipefail
name=$1 dir=$2
hostname "$name"
mount --bind "$dir/hosts" /etc/hosts
mkdir -p "$dir/local"
mount --bind "$dir/private-$name" "$dir/local" # the same path on every node, another folder on each
slurmd -D -N "$name" -f "$dir/slurm.conf" >"$dir/log/slurmd-$name.out" 2>&1 &
wait # and reap what loses its parent
