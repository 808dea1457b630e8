#!/bin/bash
#SBATCH --job-name=equitomo-reconstruct
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Train one network for each tomogram. LIST has one line "FIRST SECOND TILTS" per tomogram; names contain no blanks:
#     sbatch --array=1-$(wc -l < LIST) reconstruct.sh LIST FOLDER [OPTIONS OF equitomo reconstruct ...]

set -euo pipefail
list=$1 folder=$2
shift 2

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
read -r first second tilts < <(sed -n "${SLURM_ARRAY_TASK_ID}p" "$list")
run=$folder/$SLURM_ARRAY_TASK_ID
# A run writes this file first. It is there also if the job was killed before the first checkpoint.
if [[ -e $run/manifest.json ]]; then
    set -- --resume "$@"
fi

# Slurm sends the signal to the job steps and not to this script, so srun is needed.
status=0
srun --ntasks=1 equitomo reconstruct "$first" "$second" --tilts "$tilts" --out "$run" "$@" || status=$?
if [[ $status == 130 ]]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
