#!/usr/bin/env bash
# From nothing to scores: sets up if needed, makes a small data set, trains SIM on it, exports the
# model with its workflow and scores a few users from the export.
#
# usage: scripts/demo.sh [--output DIR] [--serve]     (default: demo/ in this checkout)
#
# With --serve it ends with a page that shows what the model looks at, until Ctrl-C.
# What an earlier demo made is replaced; a directory with anything else in it is left alone.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
out=$root/demo
serve=

die() {
  printf 'demo: error: %s\n' "$*" >&2
  exit 2
}

while (($#)); do
  case $1 in
    --output) [[ $# -ge 2 && -n $2 ]] || die "--output needs a directory"; out=$2; shift 2 ;;
    --output=?*) out=${1#*=}; shift ;;
    --serve) serve=1; shift ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    *) die "unknown argument $1; usage: scripts/demo.sh [--output DIR] [--serve]" ;;
  esac
done

# What a demo made is listed in a file there: a name alone is no reason to delete anything.
made_here=.lookback-demo
files() { (cd "$out" && find . ! -type d ! -path "./$made_here" | LC_ALL=C sort); }

if [[ -e $out && ! -f $out/$made_here ]] && [[ ! -d $out || -n $(ls -A "$out") ]]; then
  die "$out exists and is not an earlier demo's: choose another with --output DIR"
fi
if [[ -f $out/$made_here ]]; then
  foreign=$(files | LC_ALL=C comm -23 - "$out/$made_here")
  [[ -z $foreign ]] || die "$out holds ${foreign%%$'\n'*}, which no demo made: move it away, or" \
    "choose another with --output DIR"
fi

"$root/scripts/setup.sh"
python=$root/.venv/bin/python

mkdir -p "$out"
out=$(cd "$out" && pwd -P)
touch "$out/$made_here"
rm -rf "$out"/{raw,dataset,results,checkpoints,export,requests.jsonl}
trap 'files > "$out/$made_here"' EXIT
cd "$root"
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}

SECONDS=0
step() { printf '\n== [%3d s] %s\n' "$SECONDS" "$*"; }

step "1/4 generate raw reviews with a known preference structure"
"$python" -m workflows generate --dataset synthetic --preset demo --output "$out/raw"

step "2/4 fit and apply the workflow: raw reviews -> one history per user"
"$python" -m workflows run --dataset synthetic --input "$out/raw" --output "$out/dataset"

step "3/4 train SIM, watch it on each user's last event but one, test it on the last, export it"
"$python" train.py --dataset_dir "$out/dataset" --model_type sim --mode train \
  --epochs 2 --results_dir "$out/results" \
  --save_checkpoint_path "$out/checkpoints" --export_dir "$out/export"

step "4/4 score a few users from the export alone"
"$python" -m serving sample --export_dir "$out/export" --dataset_dir "$out/dataset" \
  --users 3 --candidates 5 > "$out/requests.jsonl"
"$python" -m serving score --export_dir "$out/export" --requests "$out/requests.jsonl" --format table

cat <<END

Done in $SECONDS s. Everything is in $out:
  raw/          generated reviews and item metadata (Amazon format)
  dataset/      histories (parquet), schema, saved NVTabular workflow, dataset.json
  results/      the run's log, TensorBoard events, report/ with plots and metrics
  checkpoints/  to resume from: train.py --load_checkpoint_path
  requests.jsonl  raw histories and candidates of three users
  export/       workflow + SavedModel + schema: all that serving needs
END

if [[ $serve ]]; then
  step "serve it, with a page to look at; Ctrl-C ends it"
  trap - EXIT
  files > "$out/$made_here"
  exec "$python" -m serving serve demo="$out/export" --demo_ui --demo_dataset "$out/dataset" --port 0
fi
