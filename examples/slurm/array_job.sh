#!/bin/bash
# The same without anything that submits: an array job whose tasks each run a part of the grid on one store.
#   sbatch array_job.sh runs/cluster.toml
#SBATCH --array=1-8
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
leukemia-dl benchmark "$1" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
