#!/usr/bin/env bash
# Every benchmark that needs a GPU, in one go: bash scripts/benchmark_gpu.sh OUT writes tables (.txt) and figures (.json) there.
# Needs the GPU's jax, and torch with transformers for the peers (see "Benchmarks" in README.md).
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${1:?usage: benchmark_gpu.sh OUT}
mkdir -p "$out"
python=${PYTHON:-python3}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # two libraries share the device's memory
failed=0
run() { # NAME COMMAND...: one benchmark that fails does not cost the others
  local name=$1
  shift
  echo "== $name: $*"
  if "$python" "$@" --json "$out/$name.json" >"$out/$name.txt" 2>"$out/$name.log"; then cat "$out/$name.txt"; else
    echo "FAILED, see $out/$name.log"
    tail -n 3 "$out/$name.log"
    failed=$((failed + 1))
  fi
}
nvidia-smi >"$out/nvidia-smi.txt" 2>&1
step="scripts/benchmark_step.py --repeats 7 --steps 5 --peers both"
run parts_300m scripts/benchmark_parts.py --config xls_r_300m --rows 32 --seconds 15 --trace "$out/trace"
run step_300m "$step" --config xls_r_300m --batch 32 --seconds 15 --raggedness 0.33 --dtype bfloat16
run step_300m_full_remat "$step" --config xls_r_300m --batch 32 --seconds 15 --raggedness 0.33 --dtype bfloat16 --remat full
run step_300m_dots_remat "$step" --config xls_r_300m --batch 32 --seconds 15 --raggedness 0.33 --dtype bfloat16 --remat dots --kind train
run step_300m_unfrozen "$step" --config xls_r_300m --batch 16 --seconds 15 --raggedness 0.33 --dtype bfloat16 --freeze nothing --kind train
run step_300m_fp16 "$step" --config xls_r_300m --batch 32 --seconds 15 --raggedness 0.33 --dtype float16 --kind train
run step_1b "$step" --config xls_r_1b --batch 8 --seconds 15 --raggedness 0.33 --dtype bfloat16 --remat full --kind train
run step_base "$step" --config base --batch 32 --seconds 15 --raggedness 0.33 --dtype bfloat16
run step_minds "$step" --config xls_r_300m --head classification --batch 32 --seconds 10 --raggedness 0.8 --dtype bfloat16
run ctc scripts/benchmark_ctc.py
run decoding scripts/benchmark_decoding.py
run ctc_large_vocabulary scripts/benchmark_ctc.py --vocab 5000 --labels 200
"$python" - "$out" <<'PY'
import json, sys
from pathlib import Path
file = Path(sys.argv[1]) / "step_300m.json"
if file.exists():
    rate = json.loads(file.read_text())["ours"]["audio_s_per_s"]
    hours = 80 * 100 / rate
    print(f"80 h of MLS x 100 epochs at the measured {rate:,.0f} audio-s/s: {hours:.1f} h on this one GPU (steps alone)")
PY
exit $failed
