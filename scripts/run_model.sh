#!/usr/bin/env bash
# Runs train.py in one process or in several, on this machine or on several: `lookback run`, out of
# a checkout; see --help.
#
# usage: scripts/run_model.sh --data_path DIR [--np R] [--hosts HOST:SLOTS,...] [options]
#
# Uses this checkout's .venv; without one (in the container), the python3 in PATH.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=$root/.venv/bin/python
[[ -x $python ]] || python=python3
exec "$python" "$root/cli.py" run "$@"
