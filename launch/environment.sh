# Sourced by the launch scripts: makes .venv beside the package and installs it there.
#
#   parse_arguments "$@"
#   make_environment EXTRA...      e.g.  make_environment cuda test
#
# Versions that were tested together are pinned in launch/constraints.txt.
# A finished installation leaves a stamp, so that the next start takes no time.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"

# Print a command; run it unless --dry-run was given.
run() {
  echo "+ $*" >&2
  [ "${dry_run:-0}" = 1 ] || "$@"
}

# Sort the arguments of a script into `extras`, `dry_run` and `arguments` (the rest).
parse_arguments() {
  local argument
  extras=() arguments=()
  for argument in "$@"; do
    case "$argument" in
      --dry-run) dry_run=1 ;;
      --accelerator=cpu) ;;
      --accelerator=cuda | --accelerator=tpu) extras+=("${argument#*=}") ;;
      --accelerator=*)
        echo "--accelerator is cpu, cuda or tpu, not '${argument#*=}'" >&2
        exit 2
        ;;
      *) arguments+=("$argument") ;;
    esac
  done
}

# The first Python of at least 3.11 on the PATH, or the one named by PYTHON.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "No Python of 3.11 or newer was found; install one or set PYTHON=/path/to/python." >&2
  return 1
}

make_environment() {
  local extras stamp python
  extras=$(IFS=,; echo "$*")
  stamp="$venv/.installed-$(cat "$root/setup.cfg" "$root/launch/constraints.txt" | cksum | cut -d' ' -f1)-${extras:-cpu}"
  [ -e "$stamp" ] && return
  python=$(find_python)
  [ -x "$venv/bin/python" ] || run "$python" -m venv "$venv"
  run "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c "$root/launch/constraints.txt" -e "$root${extras:+[$extras]}"
  [ "${dry_run:-0}" = 1 ] || touch "$stamp"
}
