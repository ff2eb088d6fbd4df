"""Times what protecting a run costs: stretches of one training with all of its safety on, and with all of it off.

    python scripts/benchmark_safety.py [--rounds 8] [--steps 50] [--json FILE]

Trains the quickstart's model on its SYNTHETIC clips in one process. Stretches of `--steps` steps take turns (off, on,
on, off, ...). On: every step's clips are written down, and looked at with what a signal may have asked for; at the
stretch's end the state is saved. Off: none of these. Updates from gradients that are not finite are left out in either
case, as that is part of the compiled step. The first stretch of either kind is not counted.

A save is timed apart, until the loop may go on and until every file is written, hashed, synced and sealed, which in a
run goes on beside the next steps; here they wait for it. The first number is the ratio of the medians of a step's time
without saves; the second, what all of a save comes to besides where there is one every 500 steps, as by default.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from xtremes_jax import train


class Stretches:
    """The hooks of a run, whose safety is on in one stretch of steps and off in another, and what each took."""

    def __init__(self, steps: int, hooks, checkpoints):
        self.steps, self.hooks, self.checkpoints = steps, hooks, checkpoints
        self.times: dict[str, list[float]] = {"on": [], "off": []}
        self.saves: dict[str, list[float]] = {"handed over": [], "sealed": []}
        self.done, self.begun = 0, time.perf_counter()

    @property
    def kind(self) -> str:
        """Of the stretch that the next step belongs to: off, on, on, off, and so on."""
        return "on" if (self.done // self.steps) % 4 in (1, 2) else "off"

    def consumed(self, step: int, sample_ids) -> None:
        """Of `Hooks`."""
        if self.kind == "on":
            self.hooks.consumed(step, sample_ids)

    def agree(self, clips, old_at: int) -> int:
        """Of `Hooks`: the last checkpoint is old at the end of a stretch with safety."""
        if self.kind == "off":
            self.count()
            return 0
        self.hooks.agree(clips, old_at)
        if (self.done + 1) % self.steps == 0:
            return sys.maxsize  # `save` comes next
        self.count()
        return 0

    def save(self, state, step: int, score, note) -> None:
        """Of `Hooks`, until all of it is on the disk. The step before it is done by then: its metrics are noted."""
        begun = time.perf_counter()
        self.hooks.save(state, step, score, note)
        self.saves["handed over"].append(time.perf_counter() - begun)
        self.checkpoints.wait()
        self.saves["sealed"].append(time.perf_counter() - begun)
        self.begun += self.saves["sealed"][-1]
        if self.kind == "on":  # and not at the end of the run
            self.count()

    def count(self) -> None:
        """A step is over, and perhaps its stretch."""
        kind = self.kind
        self.done += 1
        if self.done % self.steps == 0:
            now = time.perf_counter()
            self.times[kind].append((now - self.begun) / self.steps)
            print(f"{kind:3} {self.times[kind][-1]:.4f} s a step", file=sys.stderr, flush=True)
            self.begun = now


def measure(steps: int, rounds: int, work: Path) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of a step in each stretch, and of each save; the first of each are left out."""
    stretches = []
    make_hooks = train.make_hooks

    def make_switched_hooks(arguments, corpus, course, *others, **options):
        hooks = make_hooks(arguments, corpus, course, *others, **options)
        switched = Stretches(steps, hooks, course.checkpoints)
        stretches.append(switched)
        return dataclasses.replace(hooks, consumed=switched.consumed, agree=switched.agree, save=switched.save)

    train.make_hooks = make_switched_hooks
    flags = {
        "output_dir": work / "run", "cache_dir": work / "data", "max_steps": 2 * (rounds + 1) * steps, "do_eval": False,
        "do_predict": False, "eval_strategy": "no", "save_strategy": "no", "save_seconds": 86400, "disable_tqdm": True,
        "log_level": "warning",
    }  # fmt: skip
    line = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    status = train.main([str(ROOT / "scripts" / "quickstart.json"), *line])
    if status:
        raise SystemExit(status)
    times, saves = stretches[0].times, stretches[0].saves
    return tuple({kind: values[1:] for kind, values in found.items()} for found in (times, saves))


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8, help="stretches of either kind that are counted")
    parser.add_argument("--steps", type=int, default=50, help="of a stretch")
    parser.add_argument("--json", type=Path, metavar="FILE")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-safety-") as folder:
        times, saves = measure(wanted.steps, wanted.rounds, Path(folder))
    median = {kind: statistics.median(values) for kind, values in times.items()}
    ratio = median["on"] / median["off"]
    print(f"ratio {ratio:.4f} (a step with safety on : off, medians of {wanted.rounds} stretches)")
    each = {part: statistics.median(values) for part, values in saves.items()}
    share = each["sealed"] / (500 * median["off"])
    print(f"{share:.2%} for a save every 500 steps: {each['handed over']:.3f} s until the loop may go on, "
          f"{each['sealed']:.3f} s until it is sealed")  # fmt: skip
    for kind, values in times.items():
        print(f"{kind:3} {median[kind]:.4f} s a step ({min(values):.4f} to {max(values):.4f})")
    if wanted.json:
        wanted.json.write_text(
            json.dumps({"seconds per step": times, "seconds per save": saves}, indent=2) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
