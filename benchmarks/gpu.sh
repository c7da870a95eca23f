#!/usr/bin/env bash
# All GPU correctness checks, then all GPU benchmarks, on a bare machine with one GPU, PyTorch and Triton (nothing else is needed).
#   benchmarks/gpu.sh [FOLDER]        FOLDER gets gpu.log and the benchmarks' JSON; default: benchmarks/results
#   PYTHON=/path/to/python            the interpreter that has PyTorch; default: python3
# Stops at the first step that fails, says which, and exits with its code.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
results=${1:-benchmarks/results}
mkdir -p "$results"
exec > >(tee "$results/gpu.log") 2>&1
unset TRITON_INTERPRET
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1

step() { # step NAME COMMAND...
  local name=$1 code=0
  shift
  echo
  echo "== $name: $*"
  local start=$SECONDS
  "$@" || code=$?
  if [ "$code" -ne 0 ]; then
    echo "FAILED at step '$name' (exit code $code): $*" >&2
    exit "$code"
  fi
  echo "== $name: done in $((SECONDS - start)) s"
}

step "device and versions" "$python" -m benchmarks.gpu_device
step "kernels against their definition" "$python" -m tests.entropy.kernel_checks --device cuda
step "real sizes, and two tensor ranks" "$python" -m tests.entropy.gpu_checks
step "benchmark of token statistics" "$python" benchmarks/token_statistics.py --device cuda --json "$results/token_statistics_gpu.json"
echo
echo "all GPU checks passed; results are in $results"
