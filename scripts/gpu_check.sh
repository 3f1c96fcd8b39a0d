#!/usr/bin/env bash
# Everything that only a GPU can answer, in at most 8 minutes: one JSON, written after every
# measurement, and a table. Each step has a time limit of its own.
#
# usage: scripts/gpu_check.sh --output FILE.json [--movielens DIR] [--seconds N] [--only STEP,...]
#        scripts/gpu_check.sh --rehearse --output FILE.json     every step, tiny, on this CPU
#
# Steps: device, equality, throughput, profile, sok, auc. Uses this checkout's .venv;
# without one (in the container), the python3 in PATH. benchmarks/gpu.md has the targets.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
case ${1-} in
  -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
esac
python=$root/.venv/bin/python
[[ -x $python ]] || python=python3
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2} TF_FORCE_GPU_ALLOW_GROWTH=true
export CUDA_MODULE_LOADING=LAZY
exec "$python" -m lookback.scripts.gpu.check "$@"
