#!/usr/bin/env bash
# Train or evaluate on this machine:
#
#   launch/local.sh [--accelerator=cpu|cuda|tpu] [--dry-run] --config=configs/quickstart.py --workdir=runs/quickstart [...]
#
# Needs Python 3.11 or newer. Makes .venv on the first call, installs clap_jax into it,
# then runs `python -m clap_jax.main` with every other argument.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

extras=()
arguments=()
for argument in "$@"; do
  case "$argument" in
    --dry-run) dry_run=1 ;;
    --accelerator=cpu) ;;
    --accelerator=cuda | --accelerator=tpu) extras+=("${argument#*=}") ;;
    --accelerator=*) echo "--accelerator is cpu, cuda or tpu, not '${argument#*=}'" >&2; exit 2 ;;
    *) arguments+=("$argument") ;;
  esac
done

make_environment ${extras[@]+"${extras[@]}"}
run exec "$venv/bin/python" -m clap_jax.main ${arguments[@]+"${arguments[@]}"}
