#!/usr/bin/env bash
# Runs one process of a job on its share of its machine's cores. launch.py has horovodrun
# start this on every machine, once for each process.
#
# usage: start_rank.sh cores|none COMMAND [ARGUMENT...]
#
# cores: of the cores that this shell may use, ordered so that the threads of a core and the cores
# of a socket lie side by side, process i of n gets the i-th of n equal parts; with fewer cores than
# processes, all share all. none: the command runs where this shell may.
#
# The command stays a child of this shell: horovodrun gives children of what it started 5 s to end,
# but stops and kills that process itself.
set -euo pipefail

bind=$1
shift
local_rank=${HOROVOD_LOCAL_RANK:?"expected to be started by horovodrun"}
local_size=${HOROVOD_LOCAL_SIZE:?"expected to be started by horovodrun"}

allowed_cores() { # one a line, neighbours together
  local list range cpu topology
  list=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)
  for range in ${list//,/ }; do
    for ((cpu = ${range%-*}; cpu <= ${range#*-}; cpu++)); do
      topology=/sys/devices/system/cpu/cpu$cpu/topology
      printf '%s %s %s\n' "$(cat "$topology/physical_package_id" 2> /dev/null || echo 0)" \
        "$(cat "$topology/core_id" 2> /dev/null || echo "$cpu")" "$cpu"
    done
  done | sort -n -k1,1 -k2,2 -k3,3 | cut -d ' ' -f 3
}

if [[ $bind == cores ]]; then
  mapfile -t cores < <(allowed_cores)
  count=${#cores[@]}
  if ((count >= local_size)); then
    first=$((local_rank * count / local_size))
    share=("${cores[@]:first:(local_rank + 1) * count / local_size - first}")
    set -- taskset --cpu-list "$(IFS=,; echo "${share[*]}")" "$@"
  fi
fi

# How run_model.sh learns where to leave word for the processes: training/parallel/job_store.py.
if [[ -n ${LOOKBACK_ANNOUNCEMENT:-} ]]; then
  printf '%s %s %s\n' "$LOOKBACK_ANNOUNCEMENT" "$HOROVOD_GLOO_RENDEZVOUS_ADDR" \
    "$HOROVOD_GLOO_RENDEZVOUS_PORT"
fi

exec 3>&2 2> /dev/null # bash would report a killed child
"$@" 2>&3 3>&- &
child=$!
trap 'kill -TERM "$child" || true' TERM INT HUP
status=0
wait "$child" || status=$?
while kill -0 "$child"; do # a signal ended the waiting, not the child
  status=0
  wait "$child" || status=$?
done
exit "$status"
