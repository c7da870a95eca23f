#!/usr/bin/env bash
# Installs what the cluster tests need beyond the Python environment: Debian's SLURM and munge (run with files of their own,
# never as services of this machine), shellcheck, iproute2 and iptables. Does nothing when all of it is there.
set -euo pipefail

have_all() {
    local program
    for program in slurmctld slurmd munged shellcheck ip iptables; do
        command -v "$program" >/dev/null || return 1
    done
}

if have_all; then exit 0; fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# RUNLEVEL=1: the packages' services are not started; the tests start daemons of their own.
RUNLEVEL=1 apt-get install -y -qq --no-install-recommends slurm-wlm munge shellcheck iproute2 iptables
have_all
