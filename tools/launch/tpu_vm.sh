#!/bin/bash
# TPU=s1jax ZONE=us-east5-a tools/launch/tpu_vm.sh configs/s1_32b.yaml mesh.fsdp=8 mesh.context=4 out=gs://BUCKET/runs/s1_32b
# The same command on every host of a TPU slice; JAX asks the slice who is who. `out` is a bucket, or a disk that all hosts share.
# A slice that is taken away gets 30 s, too few for a save: save.every bounds what is lost. `systemctl stop` and the like
# give what they are told; 900 s are enough for 393 GB (32B with float32 moments) at 1 GB/s a host.
set -euo pipefail
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all \
  --command "cd s1jax && .venv/bin/s1jax train $(printf '%q ' "$@")"
