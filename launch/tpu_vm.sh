#!/usr/bin/env bash
# Train on a Cloud TPU slice that is asked for as a queued resource:
#
#   launch/tpu_vm.sh all --name=clap --zone=us-west4-a --project=mine --spot -- \
#     --config=configs/laion_htsat_roberta.py --workdir=/mnt/shared/clap [...]
#
#   create    asks for the slice and waits until it is active; goes on if it is there
#   install   this repository's HEAD (or --ref) and .venv, to every worker
#   run       clap_jax.main on every worker; after a preemption the slice is created and
#             installed again and the run goes on. Joins a run that is going on
#   status, logs, stop, delete
#   all       create, install, run; and delete when the run is complete
#
#   --name= --zone= --project=
#   --accelerator-type=v5litepod-256
#   --runtime-version=             default: the one for that type
#                                  (these five also as variables: NAME=clap, ZONE=...)
#   --spot | --reserved            default: on demand
#   --ref=REF [--repository=URL]   clone this instead of copying HEAD
#   --prepare=COMMAND              shell command for every worker, e.g. a mount: at
#                                  installation, and before each run
#   --env=NAME=VALUE               for the run; may be repeated
#   --worker=0                     of `logs`
#   --timeout-seconds=86400 --poll-seconds=30 --max-restarts=100
#   --create-with=FLAG             one more flag of gcloud's create; may be repeated
#   --connect-with=FLAG            ... of its ssh and scp, e.g. --connect-with=--internal-ip
#   --keep                         `all` does not delete
#   --dry-run                      shows what would be run, touches nothing
#
# --workdir must be on a mount that all workers share and that outlives them (Filestore, or
# a bucket through gcsfuse): --prepare makes it. Needs gcloud, signed in. Ctrl-C leaves the
# workers running: `run` joins them again, `stop` has them save and end.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

options=(NAME ZONE PROJECT ACCELERATOR_TYPE RUNTIME_VERSION REF REPOSITORY PREPARE ENV
  WORKER TIMEOUT_SECONDS POLL_SECONDS MAX_RESTARTS CREATE_WITH CONNECT_WITH)
switches=(SPOT RESERVED KEEP)
variables=(NAME ZONE PROJECT ACCELERATOR_TYPE RUNTIME_VERSION)
parse_arguments "$@"

# Which software a type of slice starts with.
default_runtime() {
  case "$ACCELERATOR_TYPE" in
    v5lite*-* | v5e-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) fail "no runtime version is known for $ACCELERATOR_TYPE: give --runtime-version=..." ;;
  esac
}

queued_resources() { # VERB [FLAGS]
  # shellcheck disable=SC2153  # set by option
  run gcloud compute tpus queued-resources "$1" "$NAME" "${@:2}" "${where[@]}"
}

# State of the queued resource; nothing if there is none.
resource_state() {
  gcloud compute tpus queued-resources list "${where[@]}" \
    "--filter=name~/queuedResources/$NAME\$" "--format=value(state.state)"
}

# State of the slice itself, which knows of a preemption first; nothing if it is gone.
slice_state() {
  gcloud compute tpus tpu-vm list "${where[@]}" \
    "--filter=name~/nodes/$NAME\$" "--format=value(state)"
}

# ready | absent | failed | lost | waiting, of both together. Fails where this cannot be known.
state() {
  local resource slice
  resource=$(resource_state) || return
  case "$resource" in
    '') echo absent ;;
    FAILED) echo failed ;;
    SUSPENDED) echo lost ;;
    ACTIVE)
      slice=$(slice_state) || return
      case "$slice" in
        READY) echo ready ;;
        '' | PREEMPTED | TERMINATED) echo lost ;;
        *) echo waiting ;;
      esac
      ;;
    *) echo waiting ;;
  esac
}

# The state to `now`, unknown where there is no answer. Once there was one, Google Cloud is
# known to be there and to know who asks, and `answered` is set.
answered=
poll() {
  local status=0
  now=$(state) || status=$?
  if [ "$status" = 0 ]; then answered=1; else now=unknown; fi
  return "$status"
}

delete() {
  local found=unknown
  [ -n "$dry_run" ] || found=$(resource_state) || return
  if [ -n "$found" ]; then
    queued_resources delete --force --quiet
  else
    echo "$NAME is not there." >&2
  fi
}

show_status() {
  local found=ACTIVE
  [ -n "$dry_run" ] || found=$(resource_state)
  [ -n "$dry_run" ] || echo "$NAME: ${found:-not there}"
  [ "$found" != ACTIVE ] || on_workers all "clap_jax/launch/worker.sh status"
}

request() {
  local tier=()
  [ -z "${SPOT:-}" ] || tier=(--spot)
  [ -z "${RESERVED:-}" ] || tier=(--reserved)
  queued_resources create "--node-id=$NAME" "--accelerator-type=$ACCELERATOR_TYPE" \
    "--runtime-version=$RUNTIME_VERSION" ${tier[@]+"${tier[@]}"} \
    ${create_with[@]+"${create_with[@]}"}
}

create() {
  local now before='' asked='' status deadline=$((SECONDS + TIMEOUT_SECONDS))
  if [ -n "$dry_run" ]; then
    request
    note "waits until it is ACTIVE, at most $TIMEOUT_SECONDS s"
    return
  fi
  while :; do
    status=0
    poll || status=$?
    [ -n "$answered" ] || return "$status"
    [ "$now" = "$before" ] || echo "$NAME is $now." >&2
    before=$now
    case "$now" in
      ready) return ;;
      absent)
        request
        asked=1
        continue
        ;;
      failed)
        [ -z "$asked" ] || fail "$NAME was asked for, and failed: gcloud compute tpus queued-resources describe $NAME ${where[*]} says why" 1
        if delete; then continue; fi
        ;;
      lost) delete || : ;; # tried again as long as it is lost
    esac
    [ $SECONDS -lt "$deadline" ] ||
      fail "$NAME is not active after $TIMEOUT_SECONDS s (--timeout-seconds); the same command waits on, delete ends it" 1
    sleep "$POLL_SECONDS"
  done
}

# For workers that may have been started anew, without the mounts they had; those where
# something runs have them.
prepare() {
  local running="clap_jax/launch/worker.sh running 2>/dev/null"
  [ -z "${PREPARE:-}" ] || on_workers all "$running || {"$'\n'"$PREPARE"$'\n'"}" || return
  prepared=1
}

# Run a line of shell on workers: a number, several (1,4-6), or all.
on_workers() { # WORKERS LINE
  run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" \
    ${connect_with[@]+"${connect_with[@]}"} "--worker=$1" "--command=$2"
}

# Where a run goes on, nothing is changed below it; only .venv and the state of a run stay
# from what was there before.
install_line() { # HOW TO FILL THE FOLDER
  local running="clap_jax/launch/worker.sh running 2>/dev/null"
  local others="-mindepth 1 -maxdepth 1 ! -name .venv ! -name .run"
  local empty="mkdir -p clap_jax && find clap_jax $others -exec rm -rf {} +"
  local install="$empty && $1 && launch/worker.sh install"
  echo "if $running; then echo 'runs already: not installed'; else $install; fi"
}

# (Tested for failure by its caller, so that each line has to say that it ends here.)
install() {
  local fill archive="$root/dist/launch.tar.gz" changes
  [ -z "${PREPARE:-}" ] || on_workers all "$PREPARE" || return
  prepared=1
  if [ -n "${REF:-}" ]; then
    REPOSITORY=${REPOSITORY:-$(git -C "$root" remote get-url origin)} || return
    fill="cd clap_jax && git init --quiet"
    fill+=" && git fetch --quiet --depth=1 $(quoted "$REPOSITORY" "$REF")"
    fill+=" && git checkout --quiet --force --detach FETCH_HEAD"
  else
    git -C "$root" rev-parse --quiet --verify HEAD >/dev/null ||
      fail "$root is no git checkout to copy from: give --ref=... and --repository=..." 1
    changes=$(git --no-optional-locks -C "$root" status --porcelain | wc -l | tr -d ' ')
    [ "$changes" = 0 ] ||
      note "what is committed is copied; $changes changed files are not (git status names them)"
    run mkdir -p "$root/dist" || return
    run git -C "$root" archive --format=tar.gz "--output=$archive" HEAD || return
    run gcloud compute tpus tpu-vm scp "$archive" "$NAME:clap_jax.tar.gz" "${where[@]}" \
      ${connect_with[@]+"${connect_with[@]}"} --worker=all || return
    fill="tar -xzf clap_jax.tar.gz -C clap_jax && cd clap_jax"
  fi
  on_workers all "$(install_line "$fill")"
}

# Why did the run end, with the slice still there? Ends the script where it failed. ssh
# told the status of one worker, or of itself: only what the workers say is a failure.
explain_end() {
  local told asked=0
  case "$1" in
    255)
      echo "The connection was lost." >&2
      return
      ;;
    "$stopped_status") fail "stopped on request; run goes on from there" "$saved_status" ;;
    "$refused_status") fail "a worker did not start the run; the slice is kept" 1 ;;
  esac
  told=$(on_workers all "clap_jax/launch/worker.sh result") || asked=$?
  [ -z "$told" ] || echo "$told" >&2
  if [[ $told =~ failed\ with\ status\ ([0-9]+) ]]; then
    fail "the run failed with status ${BASH_REMATCH[1]}; the slice is kept (logs, delete)" "${BASH_REMATCH[1]}"
  fi
  case "$asked" in
    0) echo "Stopped, status $1; what is saved is kept." >&2 ;;
    126 | 127) fail "the workers have no launch/worker.sh: install comes before run" 1 ;;
    *) echo "Stopped, status $1; the workers did not say why." >&2 ;;
  esac
}

# The workers could not be made ready for the run; that may be the network's fault.
explain_unready() { # STATUS HOW OFTEN
  [ "$2" -lt 3 ] ||
    fail "install and --prepare failed $2 times, status $1; the slice is kept" "$1"
  echo "The workers could not be made ready, status $1." >&2
}

run_on_all() {
  local line status restarts=0 unready=0 now=ready absent=''
  line=(launch/worker.sh run "--shared=$workdir" -- env PYTHONUNBUFFERED=1)
  line+=(${environment[@]+"${environment[@]}"})
  line+=(.venv/bin/python -m clap_jax.main "${arguments[@]}")
  trap 'echo "The workers go on: run joins them again, stop has them save and end." >&2; exit 130' INT
  while :; do
    status=0
    if [ -n "$absent" ]; then
      create
      install || status=$?
      [ "$status" != 0 ] || absent=
    elif [ -z "$prepared" ]; then
      prepare || status=$?
    fi
    if [ "$status" = 0 ]; then
      prepared='' unready=0
      [ -z "$dry_run" ] || show_repetition
      on_workers all "cd clap_jax && $(quoted "${line[@]}")" || status=$?
      [ -z "$dry_run" ] && [ "$status" != 0 ] || break
    else
      unready=$((unready + 1))
    fi
    # What a preemption does to the run may be seen before the preemption itself.
    case "$status" in
      "$stopped_status" | "$refused_status" | "$saved_status") ;;
      *) sleep "$POLL_SECONDS" ;;
    esac
    poll || :
    case "$now-$unready" in
      ready-0) explain_end "$status" ;;
      ready-*) explain_unready "$status" "$unready" ;;
      unknown-*) echo "Google Cloud does not answer." >&2 && sleep "$POLL_SECONDS" ;;
      *) absent=1 && echo "$NAME was preempted ($now)." >&2 ;;
    esac
    restarts=$((restarts + 1))
    [ "$restarts" -le "$MAX_RESTARTS" ] ||
      fail "this is interruption $restarts; --max-restarts is $MAX_RESTARTS" "$status"
    echo "Runs again ($restarts of at most $MAX_RESTARTS)." >&2
  done
  trap - INT
}

show_repetition() {
  local when="while this ends with status $saved_status (saved) or is interrupted"
  local first="after a preemption with create and install first"
  note "again $when, $first, at most $MAX_RESTARTS times:"
}

prepared=
step=${words[*]-}
case "$step" in
  create | install | run | status | logs | stop | delete | all) ;;
  *) fail "expected create, install, run, status, logs, stop, delete or all, found '$step'" ;;
esac
require NAME ZONE PROJECT
: "${ACCELERATOR_TYPE:=v5litepod-256}" "${TIMEOUT_SECONDS:=86400}" "${POLL_SECONDS:=30}" "${MAX_RESTARTS:=100}"
require_number TIMEOUT_SECONDS POLL_SECONDS MAX_RESTARTS
[[ $NAME =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  fail "NAME may have small letters, digits and - only, found '$NAME'"
[ -z "${SPOT:-}" ] || [ -z "${RESERVED:-}" ] || fail "give --spot or --reserved, not both"
RUNTIME_VERSION=${RUNTIME_VERSION:-$(default_runtime)}
case "$step" in run | all) require_shared_workdir ;; esac
where=("--zone=$ZONE" "--project=$PROJECT")
require_tool gcloud "install the Google Cloud CLI and sign in (gcloud auth login)"

case "$step" in
  create) create ;;
  install) install ;;
  run) run_on_all ;;
  status) show_status ;;
  logs) on_workers "${WORKER:-0}" "clap_jax/launch/worker.sh logs" ;;
  stop) on_workers all "clap_jax/launch/worker.sh stop" ;;
  delete) delete ;;
  all)
    create
    install
    run_on_all
    [ -n "${KEEP:-}" ] || delete
    ;;
esac
