#!/bin/bash
# On each host: FIRST=a:8476 COUNT=2 INDEX=0 tools/launch/by_hand.sh configs/s1_32b.yaml mesh.fsdp=4 mesh.context=4 out=/shared/runs/s1_32b
# No scheduler: one process a host, each told where the first one listens, how many there are, and which it is.
# To stop, send SIGTERM to one; all save and exit 75. Give them 900 s (393 GB of a 32B at 1 GB/s a host, and the hashes).
set -euo pipefail
export JAX_COORDINATOR_ADDRESS=${FIRST:?host:port of process 0} JAX_NUM_PROCESSES=${COUNT:?} JAX_PROCESS_ID=${INDEX:?}
exec .venv/bin/s1jax train "$@"
