#!/bin/bash
# HOSTS=a:8,b:8 tools/launch/mpirun.sh configs/s1_32b.yaml mesh.fsdp=4 mesh.context=4 out=/shared/runs/s1_32b
# Open MPI, one process a GPU. Process 0 is on the first host; from version 5 on Open MPI does not say so itself.
# On SIGTERM to mpirun the processes get 900 s: enough to end a step, write 393 GB (32B with float32 moments) at 1 GB/s
# a host, and hash them.
set -euo pipefail
: "${HOSTS:?host:processes, separated by commas}"
first=${HOSTS%%[:,]*}
exec mpirun --host "$HOSTS" --mca odls_base_sigkill_timeout 900 -x PATH -x JAX_COORDINATOR_ADDRESS="$first:${PORT:-8476}" \
  .venv/bin/s1jax train "$@"
