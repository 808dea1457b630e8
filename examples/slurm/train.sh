#!/bin/bash
#SBATCH --job-name=equitomo-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=96G
#SBATCH --time=12:00:00
# Two minutes before the time limit, every task saves a checkpoint and ends, and the job goes back into the queue.
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Train one network for all tomograms of a table, with one task for each GPU:
#     sbatch train.sh TABLE RUN [OPTIONS OF equitomo train ...]

set -euo pipefail
table=$1 run=$2
shift 2

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# A run writes this file first. It is there also if the job was killed before the first checkpoint.
if [[ -e $run/manifest.json ]]; then
    set -- --resume "$@"
fi

status=0
# A task that fails ends the others without help. Slurm must not kill stopped tasks that are still saving.
srun --kill-on-bad-exit=0 equitomo train --table "$table" --out "$run" "$@" || status=$?
# Status 130 means that the training was stopped and has saved a checkpoint.
if [[ $status == 130 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
