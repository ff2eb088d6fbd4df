"""Kills or stops a small real run at random moments and starts it again: it must end as if nothing had happened.

    python scripts/stress_resume.py --kills 20 [--stops 3] [--seed 0] [--json FILE]

Trains a tiny model on the built-in SYNTHETIC corpus: once undisturbed, once with SIGKILL at random moments, and with
`--stops` once for each phase of a run, with as many SIGTERMs in that phase, each of which has to end the process with
status 143 and a sentence. Then the output directories are compared: parameters bit for bit, the clips of every step,
log lines but for their times, predictions, and the names of all files. Exits with 1 if anything differs.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = {
    "model_type": "wav2vec2", "conv_dim": [16, 16, 24, 24, 32, 32, 48], "conv_kernel": [10, 3, 3, 3, 3, 2, 3],
    "conv_stride": [5, 2, 2, 2, 2, 2, 3], "conv_bias": True, "feat_extract_norm": "layer",
    "do_stable_layer_norm": True, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 96, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
TIMES = {"audio_seconds_per_second", "seconds_per_step", "data_wait", "eval_runtime"}
"""What may differ in a log line: it depends on the clock."""
RESULTS = ("best_", "epoch", "eval_", "predict_", "train_loss")
"""What of the results is the run's and not a process's: the rest counts and times what the last process did."""
PHASES = (
    "preparing data", "making the model", "compiling", "training", "evaluating", "handing a checkpoint over",
    "exporting the model", "scoring (predict)",
)  # fmt: skip
"""As the run names them with `--log_level debug`."""
UNLIKE = {"README.md", "run.json", "training_args.json"}
"""Files with times or with the output directory's name in them."""


def main() -> int:
    """Command line; returns the exit status."""
    wanted = parse()
    chance = random.Random(wanted.seed)
    with tempfile.TemporaryDirectory(prefix="stress-resume-") as folder:
        work = Path(folder)
        (work / "model.json").write_text(json.dumps(MODEL), encoding="utf-8")
        whole, killed = work / "whole", work / "killed"
        run(command(work, work / "prepared", wanted.steps, preprocessing_only=True))
        run(command(work, whole, wanted.steps))  # compiles every program
        seconds = run(command(work, work / "again", wanted.steps))
        say(f"undisturbed: {seconds:.1f} s")
        steps = []
        for turn in range(wanted.kills):
            # Most while it trains, spread over the run; the last quarter at any moment at all, from its imports on.
            training = 0.75 * wanted.kills
            step = int(wanted.steps * (turn + chance.random()) / training) if turn < training else None
            moment = chance.uniform(0.2, seconds) if step is None else chance.uniform(0.0, 0.5)
            steps.append(kill(command(work, killed, wanted.steps), killed, step, moment))
            at = "its beginning" if step is None else f"step {step}"
            say(f"killed {turn + 1} of {wanted.kills}, {moment:.2f} s after {at}: {steps[-1]} steps begun")
        run(command(work, killed, wanted.steps))
        differences = {f"{wanted.kills} SIGKILLs, at steps {steps}": compare(whole, killed)}
        for phase in PHASES if wanted.stops else ():
            name = f"{wanted.stops} SIGTERMs while {phase}"
            differences[name] = stop_in(phase, work, wanted, chance) + compare(whole, work / "stopped")
            say(f"{name}: {differences[name] or 'nothing differs'}")
            shutil.rmtree(work / "stopped")
    for name, found in differences.items():
        print(f"{name}: " + ("; ".join(found) if found else "nothing differs"))
    if wanted.json:
        wanted.json.write_text(json.dumps(differences, indent=2) + "\n", encoding="utf-8")
    return any(differences.values())


def parse() -> argparse.Namespace:
    """The command line's values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stops", type=int, default=0, help="SIGTERMs in each phase")
    parser.add_argument("--steps", type=int, default=300, help="of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def command(work: Path, output: Path, steps: int, **changes: Any) -> list[str]:
    """The run's command line: all that is random is on; log lines, evaluations and checkpoints fall apart."""
    values = {
        "config_name": work / "model.json", "dataset_name": "demo", "dataset_config_name": "mls.all",
        "output_dir": output, "cache_dir": work / "data", "compilation_cache_dir": work / "compiled", "use_cpu": True,
        "do_train": True, "do_eval": True, "do_predict": True, "max_steps": steps, "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 10, "max_train_samples": 60, "max_eval_samples": 20, "max_predict_samples": 20,
        "group_by_length": True, "max_buckets": 2, "freeze_feature_encoder": False, "learning_rate": 1e-3,
        "hidden_dropout": 0.1, "layerdrop": 0.1, "mask_time_prob": 0.2, "logging_steps": 7, "eval_strategy": "steps",
        "eval_steps": 10, "save_steps": 20, "save_total_limit": 2, "load_best_model_at_end": True, "disable_tqdm": True,
        **changes,
    }  # fmt: skip
    flags = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "xtremes_jax.train", *flags]


def run(wanted: list[str]) -> float:
    """Runs a command to its end; the seconds that it took."""
    begun = time.monotonic()
    done = subprocess.run(wanted, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"The run failed with status {done.returncode}:\n{done.stderr[-3000:]}")
    return time.monotonic() - begun


def kill(wanted: list[str], output: Path, step: int | None, seconds: float) -> int:
    """Starts a command and kills it so many seconds after it began that step (None: after its start).

    Returns:
        The last step that it has begun. It may have come to its end before.
    """
    log, before = output / "batches.jsonl", _file_number(output / "batches.jsonl")
    started = subprocess.Popen(wanted, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    # A process that goes on makes the file anew, up to where it goes on from.
    while step is not None and started.poll() is None and (_file_number(log) == before or _lines(log) < step):
        time.sleep(0.01)
    try:
        _, errors = started.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        started.send_signal(signal.SIGKILL)
        started.communicate()
    else:
        if started.returncode:
            raise SystemExit(f"The run failed with status {started.returncode}:\n{errors[-3000:]}")
    return _lines(log)


def stop_in(phase: str, work: Path, wanted: argparse.Namespace, chance: random.Random) -> list[str]:
    """Stops a run in one phase, several times, and then lets it end; what was wrong with how it stopped."""
    wrong, output = [], work / "stopped"
    for turn in range(wanted.stops):
        for folder in {"preparing data": ("data",), "compiling": ("compiled",)}.get(phase, ()):
            shutil.rmtree(work / folder, ignore_errors=True)
        line = command(work, output, wanted.steps, log_level="debug")
        started = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        errors, left = "", chance.randint(1, 3) if phase in ("evaluating", "handing a checkpoint over") else 1
        for text in started.stderr:
            errors += text
            left -= text.rstrip().endswith(f"Phase: {phase}")
            if left == 0:
                time.sleep(chance.uniform(0.0, 0.2))
                started.send_signal(signal.SIGTERM)
                left = -1
        status = started.wait()
        if left > 0:
            say(f"  stop {turn + 1}: the run did not come to this phase again")
        elif status != 143 or "Traceback" in errors or "Stopped by SIGTERM" not in errors:
            wrong.append(f"stop {turn + 1} ended with status {status}: {errors[-500:]!r}")
    run(command(work, output, wanted.steps))
    return wrong


def _file_number(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def compare(whole: Path, other: Path) -> list[str]:
    """What differs between the output directories of two runs that should be the same."""
    differences = []
    names = [sorted(_names(folder)) for folder in (whole, other)]
    if names[0] != names[1]:
        differences.append(f"files: only undisturbed {sorted(set(names[0]) - set(names[1]))}, only killed "
                           f"{sorted(set(names[1]) - set(names[0]))}")  # fmt: skip
    for name in sorted(set(names[0]) & set(names[1])):
        if "/" in name or name in UNLIKE:
            continue
        contents = [_without_times(folder / name) for folder in (whole, other)]
        if contents[0] != contents[1]:
            differences.append(f"{name} differs")
    return differences


def _names(folder: Path) -> list[str]:
    """Paths below a run's directory; of checkpoints and event files only the folders, as Orbax names data at random."""
    found = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        found.append("/".join(parts[:2]))
    return list(set(found))


def _without_times(path: Path) -> Any:
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    if path.name.endswith("_results.json"):
        rows = json.loads(path.read_text("utf-8"))
        timed = ("runtime", "per_second")
        return {name: rows[name] for name in rows if name.startswith(RESULTS) and not name.endswith(timed)}
    return path.read_bytes() if path.is_file() else None


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
