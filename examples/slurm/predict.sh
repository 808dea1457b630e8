#!/bin/bash
#SBATCH --job-name=equitomo-predict
#SBATCH --array=1-10
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#
# Apply the network of a run to all tomograms of a table, in ten parts. Repeat the command to retry failed tomograms:
#     sbatch predict.sh TABLE RUN FOLDER [OPTIONS OF equitomo predict ...]

set -euo pipefail
table=$1 run=$2 folder=$3
shift 3

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
equitomo predict --table "$table" --run "$run" --out "$folder" \
    --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
