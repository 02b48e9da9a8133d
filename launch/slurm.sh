#!/usr/bin/env bash
#SBATCH --job-name=clap_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Train on CUDA nodes under Slurm:
#
#   launch/slurm.sh [options] [options of sbatch] -- --config=configs/laion_htsat_roberta.py --workdir=/shared/laion [...]
#   launch/slurm.sh --nodes=4 --gpus-per-node=8 --time=24:00:00 --partition=gpu -- --config=...
#
#   --nodes=1 --gpus-per-node=8
#   --per-node            one process for a node instead of one for each GPU
#   --logs=logs           folder of the logs: one of the job, one of each process
#   --max-restarts=100    is queued again so often when it was told to stop and has saved
#   --no-install          .venv is ready (it must be on storage that all nodes share)
#   --dry-run             shows what would be run, touches nothing
#
# Installs .venv here and submits itself. Two minutes before its time ends, or when it is
# preempted, every process gets SIGTERM, saves and ends with status 75; the job then goes
# back into the queue and continues. scancel ends it for good. Inside an allocation (salloc,
# or `sbatch [options of sbatch] launch/slurm.sh -- ...`) it runs at once.
set -euo pipefail
# The batch script is a copy of this file somewhere else: look where it came from.
here=$(dirname "${BASH_SOURCE[0]}")
[ -e "$here/environment.sh" ] || here="${CLAP_JAX_ROOT:-${SLURM_SUBMIT_DIR:-.}}/launch"
# shellcheck source=launch/environment.sh
source "$here/environment.sh" || {
  echo "slurm.sh: launch/ was not found: submit from the repository or set CLAP_JAX_ROOT" >&2
  exit 2
}

options=(NODES GPUS_PER_NODE LOGS MAX_RESTARTS) switches=(PER_NODE NO_INSTALL) pass_on=1
# Options of sbatch are what is left before --.
sbatch_options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  sbatch_options+=("$1")
  shift
done
parse_arguments ${sbatch_options[@]+"${sbatch_options[@]}"}
sbatch_options=(${arguments[@]+"${arguments[@]}"})
arguments=("${@:2}")
[ $# -gt 1 ] || fail "nothing to run: give clap_jax.main's flags after --"
: "${LOGS:=logs}" "${MAX_RESTARTS:=100}"

# On the login node: install, submit.
submit() {
  local tasks job
  : "${NODES:=1}" "${GPUS_PER_NODE:=8}"
  require_number NODES GPUS_PER_NODE MAX_RESTARTS
  require_tool sbatch "run this where jobs are submitted"
  tasks=$GPUS_PER_NODE
  [ -z "${PER_NODE:-}" ] || tasks=1
  job=("--nodes=$NODES" "--gpus-per-node=$GPUS_PER_NODE" "--ntasks-per-node=$tasks")
  job+=(--signal=TERM@120 --requeue --open-mode=append "--output=$LOGS/%x-%j.log")
  [ -n "${NO_INSTALL:-}" ] || make_environment cuda
  run mkdir -p "$LOGS"
  run env "CLAP_JAX_ROOT=$root" sbatch "${job[@]}" \
    ${sbatch_options[@]+"${sbatch_options[@]}"} "$root/launch/slurm.sh" \
    "--logs=$LOGS" "--max-restarts=$MAX_RESTARTS" -- "${arguments[@]}"
}

# In the job: one process a task. Of tasks that end, all others get time to save as well
# (a task is not killed because another one failed), but not for ever.
# srun ends with the highest status: where one task failed by its own fault (1) and the
# others then saved and ended (75), it is the messages that say so.
train() {
  local messages failed status=0 restarts=${SLURM_RESTART_COUNT:-0} cpus=() step
  require_tool srun "this is not a Slurm job"
  # srun does not take this one over from sbatch.
  [ -z "${SLURM_CPUS_PER_TASK:-}" ] || cpus=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
  run mkdir -p "$LOGS"
  step=(srun --kill-on-bad-exit=0 --wait=300 --gpu-bind=none --open-mode=append)
  step+=("--output=$LOGS/%x-%j-%t.log" ${cpus[@]+"${cpus[@]}"})
  step+=("$venv/bin/python" -m clap_jax.main "${arguments[@]}")
  if [ -n "$dry_run" ]; then
    run "${step[@]}"
    note "if this ends with status $saved_status (saved), and at most $MAX_RESTARTS times:"
    run scontrol requeue "$SLURM_JOB_ID"
    return
  fi
  messages=$(run "${step[@]}" 2>&1 | tee >(cat >&2)) || status=$?
  [ "$status" = "$saved_status" ] || return "$status"
  failed=$(grep -oE 'Exited with exit code [0-9]+' <<<"$messages" | grep -vE " $saved_status\$" | head -n 1) || :
  [ -z "$failed" ] || fail "a task failed, the others have saved: ${failed#Exited with }" "${failed##* }"
  [ "$restarts" -lt "$MAX_RESTARTS" ] ||
    fail "stopped and saved, but --max-restarts is $MAX_RESTARTS" "$status"
  echo "Stopped and saved; goes back into the queue ($((restarts + 1)) of at most $MAX_RESTARTS)." >&2
  run scontrol requeue "$SLURM_JOB_ID" ||
    fail "saved, but this job cannot be queued again: start it anew, it goes on" "$status"
}

if [ -n "${SLURM_JOB_ID:-}" ]; then train; else submit; fi
