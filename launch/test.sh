#!/usr/bin/env bash
# Run the tests:
#
#   launch/test.sh [--accelerator=cpu|cuda|tpu] [--dry-run] [pytest arguments, e.g. tests/audio -k resample]
#
# Needs Python 3.11 or newer. Makes .venv on the first call and installs the test extra.
# Real audio and parity oracles are found through CLAP_JAX_TEST_DATA and
# CLAP_JAX_TEST_ORACLES, or in ../shared/data and ../shared/oracles.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

options=(ACCELERATOR) pass_on=1
parse_arguments "$@"
choose_extras
make_environment ${extras[@]+"${extras[@]}"} test
run cd "$root"
# All of them in one process for each core; a few suffice, each takes up to 6 GB.
[ ${#arguments[@]} -gt 0 ] || arguments=(
  --numprocesses=auto --maxprocesses=4 --dist=loadfile
  --cov --cov-report=term --cov-fail-under=85
)
run_last "$venv/bin/python" -m pytest "${arguments[@]}"
