#!/usr/bin/env bash
# From a few captions to a model, by way of a captioner (BLAT's circle), and what it is worth:
#
#   launch/circle.sh [--workdir=runs/circle] [--data=sounds.csv] [--captioner=MODEL] [--steps=1300] [--captioner-steps=2000] [--workers=1] [--accelerator=cpu|cuda|tpu] [--dry-run] [-- options of data.caption]
#
# A captioner and a judge, a small CLAP, learn from one part of the clips and their
# captions. The captioner hears the second part, with its labels and without, and writes
# captions, which are filtered. Three CLAPs that learn nothing but the true captions of
# the second part, those written with labels, and those written without, are compared on
# true captions of clips that none of them has heard: --workdir/compare.html.
#
# Without --data the clips are procedural scenes. --data is a table or folder with
# captions and labels, of which a third is for each purpose. --captioner is one that is
# there already. What comes after -- is for data.caption, in place of five samples a clip.
# Every step goes on where it was when the same command is given again.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

options=(WORKDIR DATA CAPTIONER STEPS CAPTIONER_STEPS WORKERS ACCELERATOR)
parse_arguments "$@"
[ ${#words[@]} = 0 ] || fail "unknown argument ${words[0]} (--help lists what there is)"
require_number STEPS CAPTIONER_STEPS WORKERS
choose_extras
make_environment ${extras[@]+"${extras[@]}"} pack

# A path as other folders see it.
absolute() {
  case "$1" in '' | /* | *://*) echo "$1" ;; *) echo "$PWD/$1" ;; esac
}

folder=$(absolute "${WORKDIR:-runs/circle}") DATA=$(absolute "$DATA")
[ ! -e "$CAPTIONER" ] || CAPTIONER=$(absolute "$CAPTIONER")
parts=2 path=''
source='{"kind": "synthetic", "part": "2/2"}'
if [ -n "$DATA" ]; then
  parts=3 path="$DATA,"
  source="{\"kind\": \"manifest\", \"path\": \"$DATA\", \"part\": \"2/3\"}"
fi
[ ${#arguments[@]} -gt 0 ] || arguments=(
  --n=5 --method=sample --temperature=0.7 --top-p=0.95 --max-phrase=2 --top=3
)

# Train what a config says, into a folder of the workdir.
train() {
  run_until_done "$venv/bin/python" -m clap_jax.main \
    --workdir="$folder/$1" --config="$root/configs/$2"
}

# A CLAP on a part of the clips: train_clap NAME PART [MORE].
train_clap() {
  train "$1" "circle.py:${path}part=$2,test_part=3/3,steps=${STEPS:-1300}${3:-}"
}

# Captions of the second part: write_captions NAME [OPTIONS].
write_captions() {
  local name=$1
  shift
  run "$venv/bin/python" -m data.caption "$source" --by=captioner \
    --model="$CAPTIONER" --clap="$folder/judge" --workers="${WORKERS:-1}" \
    --out="$folder/$name.jsonl" "${arguments[@]}" "$@"
}

run cd "$root"
train_clap judge "1/$parts"
if [ -z "$CAPTIONER" ]; then
  CAPTIONER="$folder/captioner"
  train captioner "blat_captioner.py:${path}small,part=1/$parts,steps=${CAPTIONER_STEPS:-2000}"
fi
write_captions tags
write_captions no_tags --no-tags
train_clap clap_true "2/$parts"
for name in tags no_tags; do
  train_clap "clap_$name" "2/$parts" ",generated=$folder/$name.jsonl"
done
run_last "$venv/bin/python" -m clap_jax.evals.compare \
  "$folder/clap_true" "$folder/clap_tags" "$folder/clap_no_tags" --out="$folder/compare.html"
