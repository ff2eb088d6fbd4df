#!/usr/bin/env bash
# All of XTREME-S: fine-tunes a model on one subset after the other, skips what is finished, and ends with the score.
#
#   bash scripts/xtreme_s.sh MODEL DATASET OUT [-- FLAGS of xtremes_jax.train, for every subset]
#   bash scripts/xtreme_s.sh facebook/wav2vec2-xls-r-300m google/xtreme_s output/xtreme_s -- --bf16
#   bash scripts/xtreme_s.sh demo-model demo output/xtreme_s_demo     (synthetic speech, random weights, two CPU cores)
#
# MODEL is a hub id or directory, or demo-model: random weights of scripts/quickstart_model.json. Each subset has its
# folder OUT/<task>. After a failure, or when it was stopped, the same command goes on where it was.
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
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || fail "$python is not there: run scripts/quickstart.sh once, or set PYTHON"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

all="mls voxpopuli fleurs-asr covost2 minds14 fleurs-lang_id fleurs-retrieval"
[ -z "${BABEL_DIR:-}" ] || all="$all babel"
read -r -a tasks <<<"${TASKS:-$all}"
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
settings() {
    local steps epochs metric
    own=()
    case $1 in
        mls) steps=600 epochs=100 metric=wer ;;
        voxpopuli) steps=350 epochs=10 metric=wer ;;
        fleurs-asr) steps=400 epochs=15 metric=cer ;;
        covost2) steps=450 epochs=10 metric=bleu own=("${decoder[@]}" --predict_with_generate) ;;
        minds14) steps=250 epochs=50 metric=accuracy ;;
        fleurs-lang_id) steps=150 epochs=10 metric=accuracy ;;
        fleurs-retrieval) steps=150 epochs=10 metric=loss ;;
        babel) steps=400 epochs=20 metric=wer ;;
        *) fail "TASKS: $1 is none of $all babel" ;;
    esac
    if [ "$dataset" = demo ]; then
        own+=(--max_steps "$steps")
    else
        own+=(--num_train_epochs "$epochs" --metric_for_best_model "$metric")
    fi
}

for task in "${tasks[@]}"; do settings "$task"; done # an unknown task is refused before hours have passed
mkdir -p "$out"
folders=()
for task in "${tasks[@]}"; do
    folder=$out/$task
    folders+=("$folder")
    if [ -f "$folder/run.json" ] && [ -f "$folder/predict_results.json" ]; then
        echo "== $task is finished: $folder"
        continue
    fi
    echo "== $task -> $folder"
    settings "$task"
    source=(--dataset_name "$dataset")
    # The flags given for all subsets come before these: --data_dir may be one of them.
    [ "$task" != babel ] || source=(--dataset_name google/xtreme_s --data_dir "${BABEL_DIR:-}")
    "$python" -m xtremes_jax.train --task "$task" "${start[@]}" "${usual[@]}" "${own[@]}" "$@" "${source[@]}" \
        --output_dir "$folder" || {
        status=$?
        printf 'error: %s failed (status %s); what came before is kept. Give the same command again to go on.\n' \
            "$task" "$status" >&2
        exit "$status"
    }
done

"$python" -m xtremes_jax.score --format json "${folders[@]}" >"$out/score.json"
"$python" -m xtremes_jax.score "${folders[@]}"
