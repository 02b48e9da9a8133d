#!/usr/bin/env bash
# Train on one box with CUDA GPUs, one process for all of them:
#
#   launch/gpu.sh [options] -- --config=configs/laion_htsat_roberta.py --workdir=runs/laion [...]
#
#   --memory-fraction=0.92   of each GPU's memory, taken at the start
#   --max-restarts=100       runs again so often when it was told to stop and has saved
#   --no-install             .venv is ready
#   --dry-run                shows what would be run, touches nothing
#
# CUDA_VISIBLE_DEVICES picks GPUs. XLA_FLAGS are kept, and win over those set here.
# Ctrl-C or SIGTERM saves and ends with status 75; the same command goes on from there.
# A process that is killed (status 137: often for want of memory) is not run again.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

options=(MEMORY_FRACTION MAX_RESTARTS) switches=(NO_INSTALL)
parse_arguments "$@"
[ ${#words[@]} = 0 ] || fail "unexpected '${words[0]}': flags of clap_jax.main come after --"
[ ${#arguments[@]} -gt 0 ] || fail "nothing to run: give clap_jax.main's flags after --"
require_number MAX_RESTARTS
: "${MEMORY_FRACTION:=${XLA_CLIENT_MEM_FRACTION:-${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}}}"
[[ $MEMORY_FRACTION =~ ^(0?\.[0-9]*[1-9][0-9]*|1(\.0*)?)$ ]] ||
  fail "--memory-fraction is a share, above 0 and at most 1, found '$MEMORY_FRACTION'"

# The wheels are for CUDA 13, which needs this driver.
oldest_driver=580
require_tool nvidia-smi "install NVIDIA's driver ($oldest_driver or newer)"
gpus=$(run nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv,noheader) ||
  fail "nvidia-smi sees no GPU: $gpus" 1
echo "$gpus"
if [ -z "$dry_run" ]; then
  driver=${gpus#*, *, }
  driver=${driver%%.*}
  [[ $driver =~ ^[0-9]+$ ]] || fail "nvidia-smi sees no GPU: $gpus" 1
  [ "$driver" -ge $oldest_driver ] ||
    fail "the driver is of version $driver; CUDA 13 needs $oldest_driver or newer" 1
fi

[ -n "${NO_INSTALL:-}" ] || make_environment cuda
# Collectives run beside the computation that does not wait for them.
flags="--xla_gpu_enable_latency_hiding_scheduler=true${XLA_FLAGS:+ $XLA_FLAGS}"
# (The older name of the second variable must not stand beside it.)
run_until_done env -u XLA_PYTHON_CLIENT_MEM_FRACTION "XLA_FLAGS=$flags" \
  "XLA_CLIENT_MEM_FRACTION=$MEMORY_FRACTION" "$venv/bin/python" -m clap_jax.main "${arguments[@]}"
