#!/bin/bash
# sbatch tools/launch/slurm.sh configs/s1_32b.yaml mesh.fsdp=4 mesh.context=4
# Two hosts of eight GPUs, one process a GPU; JAX reads who is who from SLURM. The folder `out` must be on a shared file system.
#SBATCH --job-name=s1jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@900
#SBATCH --requeue

# SIGTERM comes 900 s before the limit: the run ends its step, writes 393 GB (32B, float32 masters and moments; `s1jax plan`
# says the bytes of another recipe) at 1 GB/s a host, reads them once for their hashes, exits 75 and is queued again.
srun --kill-on-bad-exit=1 .venv/bin/s1jax train "$@"
code=$?
[ "$code" -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
