# shellcheck shell=bash
# Sourced by the launch scripts: options, --dry-run, restarts, and the .venv beside the
# package. Written for every bash from 3.2 (macOS) on.
#
#   options=(NAME ZONE) switches=(SPOT) variables=(NAME)
#   parse_arguments "$@"               --name=x sets NAME, --spot sets SPOT=1
#   make_environment EXTRA...          e.g.  make_environment cuda test
#   run COMMAND...                     shown, and run unless --dry-run was given
#   run_until_done COMMAND...          again while it ends with status 75
#
# Versions that were tested together are pinned in launch/constraints.txt.
# A finished installation leaves a stamp, so that the next start takes no time.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
# What clap_jax.main ends with when it was told to stop: all is saved, run me again.
# (Also: 0 done, 1 an error that it has told, 2 wrong flags. 128 and more, in a shell, is
# a signal: it was killed, or ended itself by SIGABRT as another host was gone.)
saved_status=75
# What worker.sh ends with when its `stop` was called: not to be run again.
# shellcheck disable=SC2034  # read by scripts
stopped_status=3
# What it ends with when it does not start the command: again would be no better.
# shellcheck disable=SC2034  # read by scripts
refused_status=4

options=() switches=() variables=() extras=() words=() arguments=() environment=()
create_with=() connect_with=()
dry_run='' pass_on=''

# End with a sentence. Status 2, as for wrong flags, unless another is given.
fail() {
  echo "${0##*/}: $1" >&2
  exit "${2:-2}"
}

# Put `$1` with every `$2` replaced by `$3` into `replaced`. (The shell's own
# substitution treats quotes, & and \ differently from version to version.)
replace() {
  local rest=$1
  replaced=
  while [[ $rest == *"$2"* ]]; do
    replaced+=${rest%%"$2"*}$3
    rest=${rest#*"$2"}
  done
  replaced+=$rest
}

# The arguments as one line that every POSIX shell, here or behind ssh, reads back as
# exactly these arguments.
quoted() {
  local word line=
  for word in "$@"; do
    case "$word" in
      '' | *[!A-Za-z0-9_./:=,@%+-]*)
        replace "$word" "'" "'\\''"
        word="'$replaced'"
        ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Show a command on standard error and run it; with --dry-run only show it, on standard
# output, so that the output is a script.
run() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
  else
    echo "+ $(quoted "$@")" >&2
    "$@"
  fi
}

# `run` as the last act of a script: the command takes the place of the shell.
run_last() {
  [ -n "$dry_run" ] || echo "+ $(quoted "$@")" >&2
  if [ -n "$dry_run" ]; then quoted "$@"; else exec "$@"; fi
}

# Tell what happens next: a comment of the script that --dry-run prints.
note() {
  if [ -n "$dry_run" ]; then echo "# $1"; else echo "$1" >&2; fi
}

# Run a command in the background and wait for it: SIGTERM and SIGINT go on to it as
# SIGTERM, which is when clap_jax.main saves. Its status, and the number of signals in
# `signals`.
run_child() {
  local child='' seen=-1 now status=127
  signals=0
  trap 'signals=$((signals + 1)); [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :' TERM INT
  "$@" &
  child=$!
  [ "$signals" = 0 ] || kill -TERM "$child"
  # A signal ends `wait`, not the command: wait again.
  while [ "$seen" != "$signals" ]; do
    seen=$signals now=0
    wait "$child" || now=$?
    [ "$now" = 127 ] || status=$now
  done
  trap - TERM INT
  return "$status"
}

# Run a command, and again while it ends with status 75, at most MAX_RESTARTS times.
# Whoever signals this shell wants it to end: then there is no other time. A command that
# is alone on its machine and ends by a signal ends this too: no other host took it along,
# so somebody killed it, or it took more memory than there is, and would again.
run_until_done() {
  local status restarts=0 most=${MAX_RESTARTS:-100}
  if [ -n "$dry_run" ]; then
    note "again while this ends with status $saved_status (saved), at most $most times:"
    quoted "$@"
    return
  fi
  while :; do
    echo "+ $(quoted "$@")" >&2
    status=0
    run_child "$@" || status=$?
    [ "$status" = "$saved_status" ] && [ "$signals" = 0 ] || return "$status"
    restarts=$((restarts + 1))
    [ "$restarts" -le "$most" ] ||
      fail "stopped and saved for the ${restarts}th time; --max-restarts is $most" "$status"
    echo "Stopped and saved; runs again ($restarts of at most $most)." >&2
  done
}

# The comment at the head of the script.
show_help() {
  local line
  while IFS= read -r line; do
    case "$line" in
      '#!'* | '#SBATCH'*) ;;
      '#'*) line=${line#\#} && echo "${line# }" ;;
      *) break ;;
    esac
  done <"$0"
}

# Sort the arguments of a script. Before `--`: --help, --dry-run, --some-name=value for
# SOME_NAME in `options`, --some-name for one in `switches`, and plain words (to `words`).
# Only those in `variables` may come from the environment instead.
# Of options, ENV adds to `environment`, *_WITH to `*_with`. After `--`: `arguments`,
# untouched. What is unknown goes there as well if `pass_on` is set, and is an error
# otherwise.
parse_arguments() {
  local argument name known known_switches=" ${switches[*]-} "
  for name in ${options[@]+"${options[@]}"} ${switches[@]+"${switches[@]}"}; do
    [[ " ${variables[*]-} " == *" $name "* ]] || printf -v "$name" %s ''
  done
  while [ $# -gt 0 ]; do
    argument=$1
    shift
    case "$argument" in
      --)
        arguments+=("$@")
        return
        ;;
      --help)
        show_help
        exit 0
        ;;
      --dry-run) dry_run=1 ;;
      --*)
        name=${argument%%=*}
        name=$(printf %s "${name#--}" | tr 'a-z-' 'A-Z_')
        known=" ${options[*]-} "
        if [[ $argument == *=* && $known == *" $name "* ]]; then
          set_option "$name" "${argument#*=}"
        elif [[ $argument != *=* && $known_switches == *" $name "* ]]; then
          printf -v "$name" 1
        elif [[ $known == *" $name "* ]]; then
          fail "$argument lacks its value: $argument=..."
        elif [[ $known_switches == *" $name "* ]]; then
          fail "${argument%%=*} takes no value, found '$argument'"
        elif [ -n "$pass_on" ]; then
          arguments+=("$argument")
        else
          fail "unknown option $argument (--help lists them; flags of clap_jax.main come after --)"
        fi
        ;;
      *)
        if [ -n "$pass_on" ]; then arguments+=("$argument"); else words+=("$argument"); fi
        ;;
    esac
  done
}

set_option() {
  case "$1" in
    ENV)
      [[ $2 =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env is NAME=VALUE, not '$2'"
      environment+=("$2")
      ;;
    CREATE_WITH) create_with+=("$2") ;;
    CONNECT_WITH) connect_with+=("$2") ;;
    *) printf -v "$1" %s "$2" ;;
  esac
}

# The extra of setup.cfg for ACCELERATOR, to `extras`.
choose_extras() {
  case "${ACCELERATOR:-cpu}" in
    cpu) ;;
    cuda | tpu) extras+=("$ACCELERATOR") ;;
    *) fail "--accelerator is cpu, cuda or tpu, not '$ACCELERATOR'" ;;
  esac
}

# Each of these variables must have a value, from the environment or by option.
require() {
  local name option
  for name in "$@"; do
    option=$(printf %s "$name" | tr 'A-Z_' 'a-z-')
    [ -n "${!name:-}" ] || fail "$name is not set: give --$option=... or export $name=..."
  done
}

# Each of these variables, if set, must be a name or an address, without spaces or quotes.
require_plain() {
  local name
  for name in "$@"; do
    [[ ${!name:-x} =~ ^[A-Za-z0-9._:/@-]+$ ]] ||
      fail "$name may have letters, digits and . _ : / @ - only, found '${!name}'"
  done
}

# Each of these variables, if set, must be a whole number.
require_number() {
  local name
  for name in "$@"; do
    [[ ${!name:-0} =~ ^[0-9]+$ ]] || fail "$name must be a whole number, found '${!name}'"
  done
}

# A program that this script runs. Not needed to show what would be run.
require_tool() {
  [ -n "$dry_run" ] || command -v "$1" >/dev/null || fail "$1 was not found: $2" 1
}

# The workdir among `arguments`, to `workdir`; it must be there, on storage that outlives
# machines: the absolute path of a mount that all of them share.
require_shared_workdir() {
  local argument previous=
  workdir=
  for argument in ${arguments[@]+"${arguments[@]}"}; do
    case "$argument" in
      --workdir=* | -workdir=*) workdir=${argument#*=} ;;
      *) case "$previous" in --workdir | -workdir) workdir=$argument ;; esac ;;
    esac
    previous=$argument
  done
  case "$workdir" in
    /*) ;;
    '') fail "--workdir=... is missing after --: machines come and go, only what is in it stays" ;;
    *://*) fail "--workdir is a folder: mount the bucket (gcsfuse) and give the path there, not '$workdir'" ;;
    *) fail "--workdir must be on storage that all machines share, the absolute path of a mount; found '$workdir'" ;;
  esac
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

# Make .venv and install clap_jax there, with these extras.
make_environment() {
  local extras sum stamp python
  extras=$(IFS=,; echo "$*")
  sum=$(cat "$root/setup.cfg" "$root/launch/constraints.txt" | cksum)
  stamp="$venv/.installed-${sum%% *}-${extras:-cpu}"
  [ -e "$stamp" ] && return
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    run "$python" -m venv "$venv"
  fi
  run "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c "$root/launch/constraints.txt" -e "$root${extras:+[$extras]}"
  [ -n "$dry_run" ] || touch "$stamp"
}
