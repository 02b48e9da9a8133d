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
#   launch/slurm.sh [options] [options of sbatch] -- \
#     --config=configs/laion_htsat_roberta.py --workdir=/shared/laion [...]
#   launch/slurm.sh --nodes=4 --gpus-per-node=8 --time=24:00:00 -- --config=...
#
#   --nodes=1 --gpus-per-node=8
#   --per-node            one process for a node instead of one for each GPU
#   --logs=logs           folder of the logs: one of the job, one of each process
#   --max-restarts=100    is queued again so often when it has saved, or was killed
#   --no-install          .venv is ready (it must be on storage that all nodes share)
#   --dry-run             shows what would be run, touches nothing
#
# Installs .venv here and submits itself. Two minutes before its time ends, or when it is
# preempted, every process gets SIGTERM, saves and ends with status 75; the job then goes
# back into the queue and continues. So it does where processes were killed and none failed.
# scancel ends it for good. Inside an allocation (salloc, or `sbatch [options of sbatch]
# launch/slurm.sh -- ...`) it runs at once: on all of it, or on so much of it as is said.
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

# Which part of an allocation to use, where that was said, to `step`. (The count of tasks
# goes along, or srun would keep to that of the allocation.)
choose_part() {
  local nodes=${NODES:-${SLURM_JOB_NUM_NODES:-1}} tasks
  [ -n "${NODES:-}${GPUS_PER_NODE:-}${PER_NODE:-}" ] || return 0
  require_number NODES GPUS_PER_NODE
  tasks=${GPUS_PER_NODE:-${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}}
  [ -z "${PER_NODE:-}" ] || tasks=1
  [ -n "$tasks" ] ||
    fail "this allocation does not tell its GPUs: give --gpus-per-node=... or --per-node"
  step+=("--nodes=$nodes" "--ntasks=$((10#$nodes * 10#$tasks))" "--ntasks-per-node=$tasks")
  [ -z "${GPUS_PER_NODE:-}" ] || step+=("--gpus-per-node=$GPUS_PER_NODE")
}

# The first status in srun's messages with which a task failed by its own fault: not that
# of one that saved, or was killed. Nothing if there is none.
own_failure() {
  local code
  while read -r code; do
    code=${code##* }
    [ "$code" = "$saved_status" ] || [ "$code" -ge 128 ] || break
    code=
  done < <(grep -oE 'Exited with exit code [0-9]+' <<<"$1")
  echo "${code:-}"
}

# In the job: one process a task. Of tasks that end, all others get time to save as well
# (a task is not killed because another one failed), but not for ever.
# srun ends with the highest status: 75 where all saved; 134 or 137 where a host was lost
# and the others aborted. Where one task failed by its own fault (1), and the others then
# ended with one of these, it is the messages that say so.
train() {
  local messages failed status=0 restarts=${SLURM_RESTART_COUNT:-0} step
  require_tool srun "this is not a Slurm job"
  require_number MAX_RESTARTS
  [ ${#sbatch_options[@]} = 0 ] ||
    fail "${sbatch_options[0]} is for sbatch, but this is inside an allocation already"
  step=(srun --kill-on-bad-exit=0 --wait=300 --gpu-bind=none --open-mode=append)
  step+=("--output=$LOGS/%x-%j-%t.log")
  # srun does not take this one over from sbatch.
  [ -z "${SLURM_CPUS_PER_TASK:-}" ] || step+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
  choose_part
  step+=("$venv/bin/python" -m clap_jax.main "${arguments[@]}")
  run mkdir -p "$LOGS"
  if [ -n "$dry_run" ]; then
    run "${step[@]}"
    note "if this ends with status $saved_status (saved) or 128 and more (killed), at most $MAX_RESTARTS times:"
    run scontrol requeue "$SLURM_JOB_ID"
    return
  fi
  messages=$(run "${step[@]}" 2>&1 | tee >(cat >&2)) || status=$?
  [ "$status" = "$saved_status" ] || [ "$status" -ge 128 ] || return "$status"
  failed=$(own_failure "$messages")
  [ -z "$failed" ] ||
    fail "a task failed with exit code $failed, the others were stopped by that" "$failed"
  [ "$restarts" -lt "$MAX_RESTARTS" ] ||
    fail "stopped, status $status, but --max-restarts is $MAX_RESTARTS" "$status"
  echo "Stopped, status $status; goes back into the queue ($((restarts + 1)) of at most $MAX_RESTARTS)." >&2
  run scontrol requeue "$SLURM_JOB_ID" ||
    fail "this job cannot be queued again: start it anew, it goes on from what it saved" "$status"
}

if [ -n "${SLURM_JOB_ID:-}" ]; then train; else submit; fi
