#!/usr/bin/env bash
# A merge as a Slurm job: sbatch cluster/slurm.sh recipe.yaml
# From the folder with cluster/ and deploy/, on a file system that every node sees, with paramdelta-dist in PATH there
# (a virtual environment: source its activate before sbatch).
#SBATCH --job-name=paramdelta
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=paramdelta-%j.log
set -euo pipefail

[[ $# -ge 1 ]] || { echo "usage: sbatch slurm.sh RECIPE [OPTION of merge...]" >&2; exit 2; }

# Other people's jobs may be on these machines' network, and on these machines before and after: a port, a secret and a folder of our own.
export PDD_PORT=$((20000 + SLURM_JOB_ID % 10000))
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN
folder=/tmp/paramdelta-$SLURM_JOB_ID
export PDD_RAY_ARGUMENTS="--num-cpus=$SLURM_CPUS_PER_TASK --temp-dir=$folder"

code=0
# srun is told the cores again: since Slurm 22.05 it does not take them from sbatch, and without them a task is bound to one.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=120 deploy/launch.sh paramdelta-dist merge "$1" --engine ray "${@:2}" || code=$?
srun --ntasks-per-node=1 rm -rf "$folder" || true

# 75 means: try again later. The same job begins again, with what is finished kept; three times at most.
if [[ $code == 75 && ${SLURM_RESTART_COUNT:-0} -lt 3 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
