#!/usr/bin/env bash
# Sourced by the sbatch files, with $root: sets $python, and what it needs to import the code that lies in $root.
# shellcheck disable=SC2154  # root is the sourcing script's
made=.venv  # of a checkout; `make env-gpu` leaves its mark when it is done
[[ -e $root/.venv-gpu/.installed ]] && made=.venv-gpu
python=${ENTROPIC_PYTHON:-$root/$made/bin/python}
if ! command -v "$python" >/dev/null && [[ $root == *-packages ]]; then
    python=$root/../../../bin/python  # of the environment that the code is installed in
fi
command -v "$python" >/dev/null || python=python3
if [[ $root != *-packages ]]; then
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1
