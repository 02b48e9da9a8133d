#!/usr/bin/env bash
# Train or evaluate on this machine:
#
#   launch/local.sh [--accelerator=cpu|cuda|tpu] [--dry-run] --config=configs/quickstart.py --workdir=runs/quickstart [...]
#
# Needs Python 3.11 or newer. Makes .venv on the first call, installs clap_jax into it,
# then runs `python -m clap_jax.main` with every other argument.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

parse_arguments "$@"
make_environment ${extras[@]+"${extras[@]}"}
run exec "$venv/bin/python" -m clap_jax.main ${arguments[@]+"${arguments[@]}"}
