#!/usr/bin/env bash
# Train or evaluate on this machine:
#
#   launch/local.sh [--accelerator=cpu|cuda|tpu] [--dry-run] --config=configs/quickstart.py --workdir=runs/quickstart [...]
#
# Needs Python 3.11 or newer. Makes .venv on the first call, installs clap_jax into it,
# then runs `python -m clap_jax.main` with every other argument; what comes after -- goes
# there in any case (launch/local.sh -- --help).
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

options=(ACCELERATOR) pass_on=1
parse_arguments "$@"
choose_extras
make_environment ${extras[@]+"${extras[@]}"}
run_last "$venv/bin/python" -m clap_jax.main ${arguments[@]+"${arguments[@]}"}
