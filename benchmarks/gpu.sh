#!/usr/bin/env bash
# The smoke test (`megatron-entropic doctor --gpu-smoke`), all GPU correctness checks, then all GPU benchmarks, on a machine with one
# GPU. The checks and benchmarks need PyTorch, Triton and NumPy alone, and no network; verl, Liger-Kernel and Megatron-Core are
# measured beside ours where they are installed. The smoke test needs the project's environment and is left out elsewhere.
#   benchmarks/gpu.sh [FOLDER]        FOLDER gets gpu.log and the JSON of smoke test and benchmarks; default: benchmarks/results
#   PYTHON=/path/to/python            the interpreter that has PyTorch; default: python3
# Without a usable GPU it stops at once. A step that fails does not keep the others from running: the failed ones are named at the
# end, with exit code 1.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
results=${1:-benchmarks/results}
failed=()
unset TRITON_INTERPRET
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

step() { # step NAME COMMAND...
  local name=$1 code=0
  shift
  echo
  echo "== $name: $*"
  local start=$SECONDS
  "$@" || code=$?
  if [ "$code" -ne 0 ]; then
    echo "FAILED at step '$name' (exit code $code, after $((SECONDS - start)) s): $*"
    failed+=("$name")
    return "$code"
  fi
  echo "== $name: done in $((SECONDS - start)) s"
}

benchmark() { # benchmark NAME JSON OPTIONS...
  step "benchmark of token statistics, $1" "$python" -m benchmarks.token_statistics --device cuda --json "$results/$2" "${@:3}"
}

main() {
  step "device and versions" "$python" -m benchmarks.gpu_device || return 1
  if "$python" -c 'import megatron.core, psutil, pydantic, transformers' 2> /dev/null; then
    step "smoke test" "$python" -m megatron_entropic.cli doctor --gpu-smoke --json "$results/gpu_smoke.json"
  else
    echo "the smoke test is left out: $python does not have the project's environment (megatron-core, psutil, pydantic, transformers)"
  fi
  step "kernels against their definition" "$python" -m tests.entropy.kernel_checks --device cuda
  step "real sizes, and two tensor ranks" "$python" -m tests.entropy.gpu_checks
  benchmark "whole vocabulary" token_statistics_gpu.json
  benchmark "a rank's share of a 70B model" token_statistics_gpu_share.json --tokens 8192 --vocab 16032 --hidden 8192 --dtypes bfloat16
  echo
  if [ "${#failed[@]}" -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    return 1
  fi
  echo "all GPU checks passed; results are in $results"
}

mkdir -p "$results" && main 2>&1 | tee "$results/gpu.log"
