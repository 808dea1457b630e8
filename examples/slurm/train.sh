#!/bin/bash
#SBATCH --job-name=equitomo-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=96G
#SBATCH --time=12:00:00
# Two minutes before the time is up every task is told to save and end, and the job goes back into the queue.
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# One network for all tomograms of a table, one task for each GPU:
#     sbatch train.sh TABLE RUN [OPTIONS OF equitomo train ...]

set -euo pipefail
table=$1 run=$2
shift 2

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# What a run leaves first: it may have been killed before its first checkpoint.
if [[ -e $run/manifest.json ]]; then
    set -- --resume "$@"
fi

status=0
# A task that fails ends the others by itself. Of those that were stopped Slurm is to kill none that is still closing.
srun --kill-on-bad-exit=0 equitomo train --table "$table" --out "$run" "$@" || status=$?
# 130 is the status of a training that was stopped and saved.
if [[ $status == 130 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
