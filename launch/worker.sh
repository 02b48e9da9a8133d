#!/usr/bin/env bash
# The part of tpu_vm.sh that runs on each TPU VM (Linux):
#
#   launch/worker.sh install                        .venv with the tpu extra
#   launch/worker.sh run [--shared=DIR] -- COMMAND  starts COMMAND, or joins it if it runs
#   launch/worker.sh running                        fails where nothing runs
#   launch/worker.sh result                         fails, and says so, where the last run did
#   launch/worker.sh stop | status | logs
#
# COMMAND goes on when the connection that started it is lost; `run` with the same COMMAND
# then joins it: it shows the log and ends with COMMAND's status. --shared is checked not
# to be on this machine's own disk. State is kept in .run beside the package.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
state="$root/.run"

# TPU VMs come with an older Python: then one is installed beside it, for .venv.
install() {
  local uv
  if [ ! -x "$venv/bin/python" ] && ! find_python >/dev/null 2>&1; then
    uv="$HOME/.clap_jax_uv"
    run python3 -m pip install --quiet --disable-pip-version-check \
      -c "$root/launch/constraints.txt" --target "$uv" uv
    run env PYTHONPATH="$uv" python3 -m uv python install --quiet 3.11
    [ -n "$dry_run" ] || PYTHON=$(PYTHONPATH="$uv" python3 -m uv python find 3.11)
    export PYTHON
  fi
  make_environment tpu
}

# Is the command of this folder running? (A process number alone may be somebody else's.)
is_running() {
  local process
  process=$(cat "$state/process" 2>/dev/null) || return 1
  tr '\0' '\n' 2>/dev/null <"/proc/$process/cmdline" | grep -qxF supervise
}

# A mount that all workers share, not this machine's disk.
check_shared() {
  local place=$1 kind
  while [ ! -e "$place" ]; do place=$(dirname "$place"); done
  kind=$(findmnt --noheadings --output FSTYPE --target "$place")
  case "$kind" in
    ext[234] | xfs | btrfs | overlay | tmpfs | squashfs | zfs)
      # So that `result` knows of it.
      mkdir -p "$state"
      echo "$refused_status" >"$state/status"
      fail "$1 is on $(hostname)'s own disk ($kind), which goes when the machine goes: mount shared storage there" "$refused_status"
      ;;
  esac
}

# (The process must not hold the lock under which it is started.)
start() {
  local process
  rm -f "$state/status" "$state/stopped"
  [ ! -e "$state/log" ] || mv "$state/log" "$state/log.before"
  quoted "$@" >"$state/command"
  : >"$state/log"
  # In a session of its own, so that no hang-up of this one reaches it.
  setsid nohup "$root/launch/worker.sh" supervise -- "$@" \
    >>"$state/log" 2>&1 </dev/null 9>&- &
  process=$!
  echo "$process" >"$state/process"
  # Others know it as running by its name, which it has not from the first moment.
  until is_running || ! kill -0 "$process" 2>/dev/null; do sleep 0.05; done
}

supervise() {
  local status=0
  run_child "$@" || status=$?
  echo "$status" >"$state/status.new"
  mv "$state/status.new" "$state/status"
}

start_or_join() {
  local lines=+1
  [ $# -gt 0 ] || fail "nothing to run: the command comes after --"
  mkdir -p "$state"
  # Of two that come at the same time, one starts and the other joins.
  exec 9>"$state/lock"
  flock 9
  if is_running; then
    [ "$(cat "$state/command")" = "$(quoted "$@")" ] ||
      fail "$(hostname) runs another command; stop it first: $(cat "$state/command")" "$refused_status"
    echo "$(hostname): runs already, joined." >&2
    lines=20
  else
    [ -z "${SHARED:-}" ] || check_shared "$SHARED"
    start "$@"
  fi
  exec 9>&-
  tail --lines="$lines" --sleep-interval=0.5 --follow --pid="$(cat "$state/process")" "$state/log"
  [ -e "$state/status" ] ||
    fail "the command ended without a status, killed; out of memory?" 137
  [ ! -e "$state/stopped" ] || return "$stopped_status"
  return "$(cat "$state/status")"
}

# What runs here saves and ends; wait until it has.
stop() {
  local process
  is_running || { echo "$(hostname): nothing runs." >&2 && return; }
  process=$(cat "$state/process")
  touch "$state/stopped"
  kill -TERM "$process" || : # it may have ended by itself
  while is_running; do sleep 0.5; done
  echo "$(hostname): stopped, status $(cat "$state/status")." >&2
}

# The status of the last run, if it is one of failure: not of a run that saved, or was
# killed, and can go on. In words as well: ssh has failures of its own.
result() {
  local status
  status=$(cat "$state/status" 2>/dev/null) || return 0
  case "$status" in 0 | "$saved_status") return ;; esac
  [ "$status" -lt 128 ] || return 0
  echo "$(hostname): the run failed with status $status"
  return "$status"
}

show_status() {
  if is_running; then
    echo "$(hostname): runs $(cat "$state/command")"
  elif [ -e "$state/status" ]; then
    echo "$(hostname): ended with status $(cat "$state/status")"
  else
    echo "$(hostname): nothing was run"
  fi
}

options=(SHARED)
parse_arguments "$@"
case "${words[*]-}" in
  install) install ;;
  run) start_or_join ${arguments[@]+"${arguments[@]}"} ;;
  supervise) supervise "${arguments[@]}" ;;
  running) is_running ;;
  result) result ;;
  stop) stop ;;
  status) show_status ;;
  logs) run_last tail --lines=100 --follow=name --retry "$state/log" ;;
  *) fail "expected install, run, running, result, stop, status or logs, found '${words[*]-}'" ;;
esac
