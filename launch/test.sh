#!/usr/bin/env bash
# Run the tests:
#
#   launch/test.sh [--accelerator=cpu|cuda|tpu] [--dry-run] [pytest arguments, e.g. tests/audio -k resample]
#
# Needs Python 3.11 or newer. Makes .venv on the first call and installs the test extra.
# Real audio and parity oracles are found through CLAP_JAX_TEST_DATA and
# CLAP_JAX_TEST_ORACLES, or in ../shared/data and ../shared/oracles.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

parse_arguments "$@"
make_environment ${extras[@]+"${extras[@]}"} test
cd "$root"
if [ ${#arguments[@]} -gt 0 ]; then
  run exec "$venv/bin/python" -m pytest "${arguments[@]}"
else
  run exec "$venv/bin/python" -m pytest --cov --cov-report=term --cov-fail-under=85
fi
