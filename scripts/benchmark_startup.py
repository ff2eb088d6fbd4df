"""Times a run up to its first step: with an empty cache of compiled programs (cold), and with a filled one (warm).

    python scripts/benchmark_startup.py --config quickstart|base|xls_r_300m|... [--batch 2] [--repeats 1] [--json FILE]

Runs `python -m xtremes_jax.train` itself, in processes of its own, on the built-in SYNTHETIC corpus and from random
weights, with the regularisation of README.md's recipe for MLS; data are prepared before, so that the two runs differ in
the compiled programs alone. Prints the ratios cold / warm first, then the parts of both. What comes after `--` are
further flags of xtremes_jax.train.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = (
    "--mask_time_prob 0.3 --mask_feature_prob 0.1 --mask_feature_length 64 --gradient_checkpointing "
    "--gradient_accumulation_steps 2 --freeze_feature_encoder True"
).split()
"""README.md's command for MLS, without --bf16, which a CPU only emulates."""

STARTS = {
    "ready": "until the first batch and its program are there, from the start of the process",
    "process": "until the first step is done, from the start of the process",
    "training": "until the first step is done, from the start of the loop (the state is there)",
}


def main() -> int:
    """Command line; returns the exit status."""
    wanted = parse()
    with tempfile.TemporaryDirectory(prefix="benchmark-startup-") as folder:
        work = Path(folder)
        train(work, wanted, ["--preprocessing_only"])
        measured: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
        for _ in range(wanted.repeats):
            shutil.rmtree(work / "compiled", ignore_errors=True)
            for kind in measured:
                measured[kind].append(train(work, wanted, []))
    results: dict[str, Any] = {
        kind: {name: median(run[name] for run in runs) for name in runs[0]} for kind, runs in measured.items()
    }
    results["ratio"] = {start: results["cold"][start] / results["warm"][start] for start in STARTS}
    show(results, wanted)
    if wanted.json:
        wanted.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def parse() -> argparse.Namespace:
    """The command line's values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="quickstart", help="quickstart, or what --config_name takes")
    parser.add_argument("--batch", type=int, default=2, help="clips on a device")
    parser.add_argument("--repeats", type=int, default=1, help="pairs of runs; medians are shown")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("flags", nargs="*", help="further flags of xtremes_jax.train, after --")
    return parser.parse_args()


def train(work: Path, wanted: argparse.Namespace, more: list[str]) -> dict[str, Any]:
    """Seconds of one run: its parts, and what STARTS names. A run that prepares data measures nothing."""
    output = work / "output"
    config = "scripts/quickstart_model.json" if wanted.config == "quickstart" else wanted.config
    values = {
        "config_name": config, "dataset_name": "demo", "dataset_config_name": "mls.all", "output_dir": output,
        "cache_dir": work / "data", "compilation_cache_dir": work / "compiled", "overwrite_output_dir": True,
        "do_train": True, "max_steps": 1, "save_strategy": "no", "per_device_train_batch_size": wanted.batch,
        "group_by_length": True, "max_buckets": 4, "use_cpu": False, "disable_tqdm": True, "logging_steps": 1,
    }  # fmt: skip
    command = [sys.executable, "-m", "xtremes_jax.train"]
    command += [part for name, value in values.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(
        [*command, *RECIPE, *wanted.flags, *more], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"The run failed:\n{done.stderr[-3000:]}")
    if more:
        return {}
    found = json.loads((output / "train_results.json").read_text("utf-8"))
    seconds = {
        name.removeprefix("train_start_").removesuffix("_seconds"): value
        for name, value in found.items()
        if name.startswith("train_start_") and name != "train_start_seconds"
    }
    return {
        **seconds,
        "ready": found["train_start_seconds"] - seconds["computing"],
        "process": found["train_start_seconds"],
        "training": found["train_first_step_seconds"],
        "programs": found["train_compilations"],
        "from_the_cache": found["train_compilations_cached"],
    }


def show(results: dict[str, Any], wanted: argparse.Namespace) -> None:
    """Prints the ratios, then the parts."""
    print(f"{wanted.config}, {wanted.batch} clips, {os.cpu_count()} cores, {wanted.repeats} pair(s) of runs")
    for start, what in STARTS.items():
        ratio, cold, warm = results["ratio"][start], results["cold"][start], results["warm"][start]
        print(f"{ratio:5.2f}x  cold {cold:6.2f} s, warm {warm:6.2f} s  {what}")
    print(f"\n{'':15}{'cold':>8}{'warm':>8}")
    for name in results["cold"]:
        if name not in STARTS:
            print(f"{name:15}{results['cold'][name]:8.2f}{results['warm'][name]:8.2f}")


if __name__ == "__main__":
    sys.exit(main())
