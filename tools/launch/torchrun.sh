#!/bin/bash
# On each of two hosts: HOST=a NODE=0 tools/launch/torchrun.sh configs/s1_32b.yaml mesh.fsdp=4 mesh.context=4 out=/shared/runs/s1_32b
# For clusters that start everything by torchrun; its variables say who is who (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT),
# JAX listens one port above. torchrun kills its processes 30 s after a SIGTERM of its own, so send SIGTERM to one of the
# processes instead and give them 900 s (393 GB of a 32B at 1 GB/s a host, and the hashes): all save and exit 75.
set -euo pipefail
: "${HOST:?the first host}" "${NODE:?number of this host, from 0}"
exec torchrun --no-python --nnodes "${NODES:-2}" --nproc-per-node "${PROCESSES:-8}" --node-rank "$NODE" \
  --master-addr "$HOST" --master-port "${PORT:-29400}" .venv/bin/s1jax train "$@"
