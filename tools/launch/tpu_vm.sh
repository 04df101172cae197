#!/bin/bash
# TPU=s1jax ZONE=us-east5-a tools/launch/tpu_vm.sh configs/s1_32b.yaml mesh.fsdp=8 mesh.context=4 out=/mnt/runs/s1_32b
# The same command on every host of a TPU slice; JAX asks the slice who is who. `out` must be on a disk that all hosts share.
set -euo pipefail
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all \
  --command "cd s1jax && .venv/bin/s1jax train $(printf '%q ' "$@")"
