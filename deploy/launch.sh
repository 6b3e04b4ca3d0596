#!/usr/bin/env bash
# One Ray cluster for the length of one command, where a batch system starts the same command on every node:
#
#   launch.sh paramdelta-dist merge s3://models/recipe.yaml --engine ray
#
# The first node starts Ray's head, waits for the others, runs the command and ends with its exit code. The others join and
# end with 0 when the head is gone: whether the work is done is for the first node to say. Only processes started here are ended.
#
# Which node this is, AWS Batch, Google Cloud Batch, SkyPilot and Slurm (srun) say. What may be set:
#
#   PDD_PORT             port of Ray's head, 6379
#   PDD_START_SECONDS    how long nodes wait for each other, 900; the first node then goes on with those that came, the others end with 75
#   PDD_NODE_IP          address of this node, where Ray would take the wrong one
#   RAY_AUTH_TOKEN       the same secret on every node; without it, whoever reaches the first node's port can run code
#   PDD_RAY_ARGUMENTS    more arguments of `ray start`: "--temp-dir /scratch/ray --num-cpus 8"
set -euo pipefail

PORT=${PDD_PORT:-6379}
START_SECONDS=${PDD_START_SECONDS:-900}
OBJECT_STORE_BYTES=268435456 # no weights pass through it; Ray's own default is 30 % of the memory
TEMPORARY_FAILURE=75

export RAY_USAGE_STATS_ENABLED=${RAY_USAGE_STATS_ENABLED:-0}
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
if [[ -n ${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-} ]]; then
  export RAY_AUTH_MODE=token
else # said, because Ray decides it for each process by what it finds in ~/.ray
  export RAY_AUTH_MODE=disabled
fi
export RAY_gcs_rpc_server_reconnect_timeout_s=${RAY_gcs_rpc_server_reconnect_timeout_s:-30} # how long the other nodes outlive the head

say() { printf 'launch: %s\n' "$*" >&2; }

answers() { timeout 5 bash -c ": <>/dev/tcp/$1/$PORT" 2>/dev/null; }

address_of() { # of a host, whose name may not be known yet while machines start
  local found end=$((SECONDS + START_SECONDS))
  until found=$(getent ahostsv4 "$1" | awk 'NR == 1 {print $1}') && [[ -n $found ]]; do
    ((SECONDS < end)) || { say "no address is known of $1"; exit "$TEMPORARY_FAILURE"; }
    sleep 1
  done
  echo "$found"
}

# Sets first (yes or no), nodes (how many) and head (the first node's address; empty where only the first node asks).
find_place() {
  if [[ -n ${AWS_BATCH_JOB_NODE_INDEX:-} ]]; then
    nodes=$AWS_BATCH_JOB_NUM_NODES
    head=${AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS:-}
    [[ $AWS_BATCH_JOB_NODE_INDEX == "$AWS_BATCH_JOB_MAIN_NODE_INDEX" ]] && first=yes || first=no
  elif [[ -n ${BATCH_HOSTS_FILE:-} ]]; then # the order of its lines is all that the nodes agree on
    nodes=$(grep --count . "$BATCH_HOSTS_FILE")
    head=$(address_of "$(head -n 1 "$BATCH_HOSTS_FILE")")
    [[ " ${PDD_NODE_IP:-$(hostname -I)} " == *" $head "* ]] && first=yes || first=no
  elif [[ -n ${SKYPILOT_NODE_RANK:-} ]]; then
    nodes=$SKYPILOT_NUM_NODES
    head=$(head -n 1 <<<"$SKYPILOT_NODE_IPS")
    [[ $SKYPILOT_NODE_RANK == 0 ]] && first=yes || first=no
  elif [[ -n ${SLURM_PROCID:-} ]]; then
    nodes=$SLURM_NTASKS
    head=$(address_of "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)")
    [[ $SLURM_PROCID == 0 ]] && first=yes || first=no
  else
    nodes=1 head='' first=yes
  fi
}

start_ray() { # in the background; its pid is in $ray
  local extra
  read -ra extra <<<"${PDD_RAY_ARGUMENTS:-}"
  ray start --block --object-store-memory="$OBJECT_STORE_BYTES" ${PDD_NODE_IP:+--node-ip-address="$PDD_NODE_IP"} "$@" "${extra[@]}" >&2 &
  ray=$!
}

end_ray() {
  kill -TERM "$ray" 2>/dev/null || true
  wait "$ray" 2>/dev/null || true
}

finished() { # waits for a process through signals that traps handle meanwhile; returns its exit code
  local code
  while true; do
    code=0
    wait "$1" || code=$?
    kill -0 "$1" 2>/dev/null || return "$code"
  done
}

wait_for_nodes() {
  python3 - "$1" "$nodes" "$START_SECONDS" <<'PYTHON' >&2
import sys, time
import ray

address, wanted, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
end, told = time.monotonic() + seconds, 0
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted and time.monotonic() < end:
    if there != told:
        print(f"launch: {there} of {wanted} nodes", file=sys.stderr, flush=True)
    told = there
    time.sleep(1)
if there < wanted:
    print(f"launch: only {there} of {wanted} nodes came in {seconds:.0f} s; going on with these", file=sys.stderr)
PYTHON
}

lead() {
  local address code=0
  export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # when the head ends, there is nobody left to drain for
  PDD_NODE_IP=${PDD_NODE_IP:-$(python3 -c 'import ray.util; print(ray.util.get_node_ip_address())')}
  address=$PDD_NODE_IP:$PORT
  start_ray --head --port="$PORT" --include-dashboard=false
  trap end_ray EXIT
  trap 'exit 143' TERM INT HUP
  until answers "$PDD_NODE_IP"; do
    kill -0 "$ray" 2>/dev/null || { say "Ray's head did not start"; exit "$TEMPORARY_FAILURE"; }
    sleep 0.5
  done
  wait_for_nodes "$address" || { say "Ray's head at $address cannot be joined"; exit "$TEMPORARY_FAILURE"; }
  RAY_ADDRESS=$address "$@" &
  trap 'kill -TERM '$!' 2>/dev/null' TERM INT HUP # the command ends in good order and says how
  finished $! || code=$?
  say "the command ended with $code"
  exit "$code"
}

follow() {
  local end=$((SECONDS + START_SECONDS))
  until answers "$head"; do
    ((SECONDS < end)) || { say "no answer from the first node at $head:$PORT in $START_SECONDS s"; exit "$TEMPORARY_FAILURE"; }
    sleep 2
  done
  start_ray --address="$head:$PORT"
  trap 'kill -TERM "$ray" 2>/dev/null' TERM INT HUP # Ray tells the head that this node leaves
  finished "$ray" || true
  if answers "$head"; then
    say "Ray ended here while the first node goes on"
    exit "$TEMPORARY_FAILURE"
  fi
  say "the first node is gone; its exit code is the result"
}

[[ $# -gt 0 ]] || { say "usage: launch.sh COMMAND [ARGUMENT...]"; exit 2; }
find_place
if [[ $first == yes ]]; then
  lead "$@"
else
  follow
fi
