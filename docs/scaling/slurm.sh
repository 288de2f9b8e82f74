#!/bin/bash
#SBATCH --job-name=nadir
#SBATCH --array=1-8
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --requeue

# A part of the manifest for each task of the array. A task that is killed and queued again goes on where it was.
set -euo pipefail
exec nadir generate --manifest prompts.parquet --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
    --model models/my-sd --batch 8 --output pictures/
