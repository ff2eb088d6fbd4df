"""Times what protecting a run costs: the quickstart's training with all of its safety on, and with all of it off.

    python scripts/benchmark_safety.py [--rounds 4] [--steps 200] [--save_steps 50] [--json FILE]

On: a checkpoint every `--save_steps` steps (written beside the training, each file hashed, synced and sealed) and
whenever the last is 20 s old, the record of every step's clips, the agreement on stops, the watchdog. Off: none of
these; updates from gradients that are not finite are left out in either case, as that is part of the compiled step.
Both train the quickstart's model on the same SYNTHETIC clips, in processes of their own that take turns. Times are of
the loop, all pauses for checkpoints in it, without compiling. The first number is the ratio of the medians.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SAVE_SECONDS = 20


def train_without_safety(argv: list[str]) -> int:
    """The run with hooks that neither write down nor agree upon anything."""
    from xtremes_jax import train

    make_hooks = train.make_hooks

    def make_bare_hooks(*arguments, **options):
        hooks = make_hooks(*arguments, **options)
        return dataclasses.replace(hooks, consumed=lambda step, sample_ids: None, agree=lambda clips, save_due: False)

    train.make_hooks = make_bare_hooks
    return train.main(argv)


def command(work: Path, wanted: argparse.Namespace, safe: bool, number: int) -> list[str]:
    """A run's command line."""
    flags = {
        "output_dir": work / f"{'on' if safe else 'off'}{number}", "cache_dir": work / "data",
        "compilation_cache_dir": work / "compiled", "max_steps": wanted.steps, "do_eval": False, "do_predict": False,
        "eval_strategy": "no", "disable_tqdm": True, "logging_steps": 10,
    }  # fmt: skip
    if safe:
        flags |= {"save_steps": wanted.save_steps, "save_seconds": SAVE_SECONDS, "stall_timeout": 60}
    else:
        flags |= {"save_strategy": "no", "stall_timeout": "none"}
    line = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    this = ["-m", "xtremes_jax.train"] if safe else [str(Path(__file__).resolve()), "--bare"]
    return [sys.executable, *this, "scripts/quickstart.json", *line]


def measure(work: Path, wanted: argparse.Namespace, safe: bool, number: int) -> float:
    """Seconds of a step, of a run that has just been made."""
    line = command(work, wanted, safe, number)
    done = subprocess.run(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"The run failed with status {done.returncode}:\n{done.stderr[-3000:]}")
    output = Path(line[line.index("--output_dir") + 1])
    results = json.loads((output / "train_results.json").read_text("utf-8"))
    saved = len(list((output / "checkpoints").iterdir())) if (output / "checkpoints").is_dir() else 0
    if bool(saved) != safe:
        raise SystemExit(f"{output.name} has {saved} checkpoints, which is not what the two kinds of run are to have.")
    return (results["train_runtime"] - results["train_compile_seconds"]) / results["train_steps"]


def main() -> int:
    """Command line; returns the exit status."""
    if sys.argv[1:2] == ["--bare"]:
        return train_without_safety(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save_steps", type=int, default=50)
    parser.add_argument("--json", type=Path, metavar="FILE")
    wanted = parser.parse_args()
    times: dict[str, list[float]] = {"on": [], "off": []}
    with tempfile.TemporaryDirectory(prefix="benchmark-safety-") as folder:
        for number in range(wanted.rounds + 1):
            for kind in ("on", "off") if number % 2 else ("off", "on"):
                seconds = measure(Path(folder), wanted, kind == "on", number)
                counted = number > 0  # the first fills the caches of data and programs
                times[kind] += [seconds] * counted
                note = "" if counted else " (not counted)"
                print(f"{kind:3} {seconds:.4f} s a step{note}", file=sys.stderr, flush=True)
    median = {kind: statistics.median(values) for kind, values in times.items()}
    print(f"ratio {median['on'] / median['off']:.4f} (a step with safety on : off, medians of {wanted.rounds} rounds)")
    for kind, values in times.items():
        print(f"{kind:3} {median[kind]:.4f} s a step ({min(values):.4f} to {max(values):.4f})")
    if wanted.json:
        wanted.json.write_text(json.dumps({"seconds per step": times}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
