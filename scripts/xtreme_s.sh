#!/usr/bin/env bash
# All of XTREME-S: fine-tunes a model on one subset after the other, skips what is finished, and ends with the score.
#
#   bash scripts/xtreme_s.sh MODEL DATASET OUT [-- FLAGS of xtremes_jax.train, for every subset]
#   bash scripts/xtreme_s.sh facebook/wav2vec2-xls-r-300m google/xtreme_s output/xtreme_s -- --bf16
#   bash scripts/xtreme_s.sh demo-model demo output/xtreme_s_demo     (synthetic speech, random weights, two CPU cores)
#
# MODEL is a hub id or directory, or demo-model: random weights of scripts/quickstart_model.json. Each subset has its
# folder OUT/<task>. After a failure, or when it was stopped, the same command goes on where it was. The score is of all
# subsets that are finished in OUT, whichever call has run them.
# DECODER is the hub id or directory of covost2's decoder (demo-model and demo have one of random weights without it),
# BABEL_DIR the folder of the LDC's packages (babel is left out without it), TASKS the subsets to run in place of all,
# PYTHON the interpreter.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

[ $# -ge 3 ] || fail "give MODEL DATASET OUT, such as: bash scripts/xtreme_s.sh demo-model demo output/xtreme_s_demo"
model=$1 dataset=$2 out=$3
shift 3
if [ $# -gt 0 ]; then
    [ "$1" = "--" ] || fail "$1: flags of xtremes_jax.train come behind --"
    shift
fi
extra=("$@")
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || fail "$python is not there: run scripts/quickstart.sh once, or set PYTHON"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

seven="mls voxpopuli fleurs-asr covost2 minds14 fleurs-lang_id fleurs-retrieval"
all=$seven
[ -z "${BABEL_DIR:-}" ] || all="$seven babel"
# Up to the end of the text, which may have several lines; read then reports that there was no delimiter.
IFS=$' \t\n' read -r -d '' -a tasks <<<"${TASKS:-$all}" || true
[ ${#tasks[@]} -gt 0 ] || fail "TASKS names no subset: choose from $seven babel"
case " ${tasks[*]} " in
    *" babel "*) [ -n "${BABEL_DIR:-}" ] || fail "babel needs the LDC's packages: set BABEL_DIR to their folder" ;;
esac
if [ -n "${DECODER:-}" ]; then
    decoder=(--decoder_name_or_path "$DECODER")
elif [ "$model" = demo-model ] || [ "$dataset" = demo ]; then
    decoder=(--decoder_config_name tiny)
else
    case " ${tasks[*]} " in
        *" covost2 "*) fail "covost2 needs a decoder: set DECODER, for example to facebook/mbart-large-50" ;;
    esac
    decoder=()
fi

if [ "$model" = demo-model ]; then
    start=(--config_name "$root/scripts/quickstart_model.json" --freeze_feature_encoder False --mask_time_prob 0
        --learning_rate 1.5e-3)
else
    start=(--model_name_or_path "$model" --gradient_checkpointing --learning_rate 3e-4
        --mask_time_prob 0.3 --mask_feature_prob 0.1 --mask_feature_length 64)
fi
if [ "$dataset" = demo ]; then
    usual=(--do_train --do_predict --eval_strategy no --save_steps 100 --save_total_limit 1 --logging_steps 50
        --warmup_steps 0.1 --per_device_train_batch_size 8 --per_device_eval_batch_size 20 --max_buckets 3
        --group_by_length --use_cpu)
else
    usual=(--do_train --do_eval --do_predict --eval_strategy steps --eval_steps 500 --save_steps 500
        --save_total_limit 2 --load_best_model_at_end --logging_steps 50 --warmup_steps 0.1
        --max_duration_in_seconds 20 --group_by_length)
fi

# How long a subset is trained: updates on the demo corpus, epochs on the real one.
# The metric is the one of the leaderboard, by which the best checkpoint is chosen.
# Sets `flags` to all that the subset is trained with; those given behind -- come after the script's own and so win.
settings() {
    local steps epochs metric own=() source=(--dataset_name "$dataset")
    case $1 in
        mls) steps=600 epochs=100 metric=wer ;;
        voxpopuli) steps=350 epochs=10 metric=wer ;;
        fleurs-asr) steps=400 epochs=15 metric=cer ;;
        covost2) steps=450 epochs=10 metric=bleu own=("${decoder[@]}" --predict_with_generate) ;;
        minds14) steps=400 epochs=50 metric=accuracy ;;
        fleurs-lang_id) steps=300 epochs=10 metric=accuracy ;;
        fleurs-retrieval) steps=300 epochs=10 metric=loss ;;
        babel) steps=400 epochs=20 metric=wer ;;
        *) fail "TASKS: $1 is none of $seven babel" ;;
    esac
    if [ "$dataset" = demo ]; then
        own+=(--max_steps "$steps")
        [ "$1" != fleurs-retrieval ] || own+=(--per_device_train_batch_size 24)
        # Pooled over a whole clip, random weights need smaller steps.
        case $model/$1 in
            demo-model/minds14 | demo-model/fleurs-lang_id) own+=(--learning_rate 1e-3) ;;
        esac
    else
        own+=(--num_train_epochs "$epochs" --metric_for_best_model "$metric")
    fi
    # The flags given for all subsets come before these: --data_dir may be one of them.
    [ "$1" != babel ] || source=(--dataset_name google/xtreme_s --data_dir "$BABEL_DIR")
    flags=(--task "$1" "${start[@]}" "${usual[@]}" "${own[@]}" ${extra[@]+"${extra[@]}"} "${source[@]}"
        --output_dir "$out/$1")
}

finished() {
    [ -f "$out/$1/run.json" ] && [ -f "$out/$1/predict_results.json" ]
}

check='import sys
from xtremes_jax.arguments import parse_arguments
from xtremes_jax.errors import InputError
try:
    parse_arguments(sys.argv[2:])
except InputError as error:
    print(f"error: {sys.argv[1]}: {error}", file=sys.stderr)
    sys.exit(2)'

# An unknown subset, and a flag that one of them does not take, are refused before days have passed.
for task in "${tasks[@]}"; do
    settings "$task"
    finished "$task" || "$python" -c "$check" "$task" "${flags[@]}" || {
        status=$?
        echo "Flags behind -- go to every subset; nothing has been run. TASKS chooses subsets." >&2
        exit "$status"
    }
done
mkdir -p "$out"
for task in "${tasks[@]}"; do
    if finished "$task"; then
        echo "== $task is finished: $out/$task"
        continue
    fi
    echo "== $task -> $out/$task"
    settings "$task"
    "$python" -m xtremes_jax.train "${flags[@]}" || {
        status=$?
        printf 'error: %s failed (status %s); what came before is kept. Give the same command again to go on.\n' \
            "$task" "$status" >&2
        exit "$status"
    }
done

folders=()
for task in $seven babel; do
    [ ! -f "$out/$task/run.json" ] || folders+=("$out/$task")
done
"$python" -m xtremes_jax.score --format json "${folders[@]}" >"$out/score.json"
"$python" -m xtremes_jax.score "${folders[@]}"
