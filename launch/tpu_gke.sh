#!/usr/bin/env bash
# Train on a TPU slice of a GKE cluster, as a JobSet (launch/tpu_gke.yaml):
#
#   launch/tpu_gke.sh apply --name=clap --image=REGISTRY/clap_jax:tpu --claim=files:/mnt/shared -- \
#     --config=configs/laion_htsat_roberta.py --workdir=/mnt/shared/clap [...]
#
#   apply    starts the run; goes on if it is there, starts it anew if it has ended
#   render   prints the filled-in YAML
#   status, logs, delete
#
#   --name= --image=               or the variables NAME, IMAGE (from launch/Dockerfile.tpu)
#   --accelerator=tpu-v5-lite-podslice    | tpu-v6e-slice | tpu-v5p-slice | tpu-v4-podslice
#   --topology=16x16
#   --chips-per-host=4             default: by accelerator and topology
#   --spot
#   --claim=NAME:/mount            a PersistentVolumeClaim that all pods share and may
#                                  write to (Filestore); --workdir must be on it
#   --service-account=NAME         Kubernetes account, e.g. with access to buckets of data
#   --env=NAME=VALUE               may be repeated
#   --grace-seconds=120 --max-restarts=100
#   --namespace=default            or the variable NAMESPACE
#   --context=                     of kubectl, instead of the current one
#   --worker=0                     of `logs`
#   --dry-run                      shows what would be run, touches nothing
#
# Needs kubectl, a node pool of that accelerator and topology, and JobSet in the cluster.
# shellcheck disable=SC2034,SC2153  # `render` reads variables by name; options set them
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

options=(NAME IMAGE ACCELERATOR TOPOLOGY CHIPS_PER_HOST CLAIM SERVICE_ACCOUNT ENV GRACE_SECONDS
  MAX_RESTARTS NAMESPACE CONTEXT WORKER)
switches=(SPOT)
variables=(NAME IMAGE NAMESPACE)
parse_arguments "$@"

# A JSON string, which is a YAML string.
json() {
  replace "$1" "\\" "\\\\"
  replace "$replaced" '"' '\"'
  replace "$replaced" $'\n' '\n'
  replace "$replaced" $'\t' '\t'
  replace "$replaced" $'\r' '\r'
  case "$replaced" in
    *[[:cntrl:]]*) fail "a control character cannot be passed on: $replaced" ;;
  esac
  printf '"%s"' "$replaced"
}

# The same for args and env of a container, where Kubernetes expands $(NAME).
container_json() {
  replace "$1" '$' '$$'
  json "$replaced"
}

# Hosts of the slice, from its shape.
count_hosts() {
  local chips=1 side sides
  [[ $TOPOLOGY =~ ^[1-9][0-9]*x[1-9][0-9]*(x[1-9][0-9]*)?$ ]] ||
    fail "--topology is like 16x16 or 4x4x4, found '$TOPOLOGY'"
  IFS=x read -r -a sides <<<"$TOPOLOGY"
  for side in "${sides[@]}"; do chips=$((chips * side)); done
  if [ -z "${CHIPS_PER_HOST:-}" ]; then
    CHIPS_PER_HOST=4
    case "$ACCELERATOR-$chips" in
      # Slices of one host.
      tpu-v5-lite*-[18] | tpu-v6e*-[18]) CHIPS_PER_HOST=$chips ;;
    esac
  fi
  [[ $CHIPS_PER_HOST =~ ^[1-9][0-9]*$ ]] ||
    fail "--chips-per-host must be a whole number of at least 1, found '$CHIPS_PER_HOST'"
  [ $((chips % CHIPS_PER_HOST)) = 0 ] ||
    fail "$TOPOLOGY has $chips chips, which hosts of $CHIPS_PER_HOST do not make up"
  HOSTS=$((chips / CHIPS_PER_HOST))
}

# What stands in for the placeholders of the YAML.
fill() {
  local item
  local argument_lines='' environment_lines=''
  for item in "${arguments[@]}"; do
    argument_lines+="- $(container_json "$item")"$'\n'
  done
  for item in ${environment[@]+"${environment[@]}"}; do
    environment_lines+="- name: ${item%%=*}"$'\n'"  value: $(container_json "${item#*=}")"$'\n'
  done
  ARGUMENT_LINES=$argument_lines ENVIRONMENT_LINES=$environment_lines
  SPOT_LINE=${SPOT:+'cloud.google.com/gke-spot: "true"'}
  SERVICE_ACCOUNT_LINE=${SERVICE_ACCOUNT:+"serviceAccountName: \"$SERVICE_ACCOUNT\""}
  CLAIM_NAME=$(json "${CLAIM%%:*}")
  CLAIM_MOUNT=$(json "${CLAIM#*:}")
}

# The YAML with ${NAME} replaced by the variable, each once: what a value says is not
# looked into. A line that is a placeholder alone becomes the lines of its value, indented
# alike, or disappears.
render() {
  local line indent item name rest
  local placeholder='^([^$]*)\$\{([A-Z_]+)\}(.*)$'
  while IFS= read -r line; do
    case "$line" in '#'*) continue ;; esac
    indent=${line%%[! ]*}
    if [[ $line =~ ^\ *\$\{([A-Z_]+_LINES?)\}$ ]]; then
      name=${BASH_REMATCH[1]}
      while IFS= read -r item; do
        [ -z "$item" ] || printf '%s%s\n' "$indent" "$item"
      done <<<"${!name}"
      continue
    fi
    rest=$line line=
    while [[ $rest =~ $placeholder ]]; do
      name=${BASH_REMATCH[2]}
      line+=${BASH_REMATCH[1]}${!name}
      rest=${BASH_REMATCH[3]}
    done
    printf '%s\n' "$line$rest"
  done <"$root/launch/tpu_gke.yaml"
}

prepare() {
  require NAME IMAGE CLAIM
  : "${ACCELERATOR:=tpu-v5-lite-podslice}" "${TOPOLOGY:=16x16}" "${GRACE_SECONDS:=120}" "${MAX_RESTARTS:=100}"
  require_number GRACE_SECONDS MAX_RESTARTS
  require_plain IMAGE ACCELERATOR SERVICE_ACCOUNT NAMESPACE
  require_shared_workdir
  [[ $CLAIM == ?*:/?* ]] || fail "--claim is NAME:/mount, found '$CLAIM'"
  [[ "$workdir/" == "${CLAIM#*:}"/* ]] ||
    fail "--workdir=$workdir is inside the pod and goes with it; it must be below ${CLAIM#*:}"
  count_hosts
  fill
}

on_cluster() { run kubectl ${CONTEXT:+"--context=$CONTEXT"} "--namespace=$NAMESPACE" "$@"; }

apply() {
  local yaml ended=''
  yaml=$(render)
  if [ -n "$dry_run" ]; then
    echo "$(on_cluster apply --filename=-) <<'END_OF_YAML'"
    printf '%s\nEND_OF_YAML\n' "$yaml"
    return
  fi
  ended=$(on_cluster get jobset "$NAME" --ignore-not-found "--output=jsonpath={.status.terminalState}")
  case "$ended" in
    '') ;;
    *)
      echo "The run before this one has ended ($ended)." >&2
      delete
      ;;
  esac
  on_cluster apply --filename=- <<<"$yaml" ||
    fail "not applied; if $NAME is there with other arguments, delete it first" 1
}

delete() { on_cluster delete jobset "$NAME" --ignore-not-found --cascade=foreground; }

step=${words[*]-}
require NAME
[[ $NAME =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  fail "NAME may have small letters, digits and - only, found '$NAME'"
: "${NAMESPACE:=default}" "${WORKER:=0}"
case "$step" in
  render | apply) prepare ;;
esac
[ "$step" = render ] || require_tool kubectl "install it, and get the cluster's credentials"
label="jobset.sigs.k8s.io/jobset-name=$NAME"
case "$step" in
  render) render ;;
  apply) apply ;;
  status)
    on_cluster get jobset "$NAME" --ignore-not-found
    on_cluster get pods "--selector=$label" --output=wide
    ;;
  logs)
    on_cluster logs --follow --tail=-1 \
      "--selector=$label,batch.kubernetes.io/job-completion-index=$WORKER"
    ;;
  delete) delete ;;
  *) fail "expected apply, render, status, logs or delete, found '$step'" ;;
esac
