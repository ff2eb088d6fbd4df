"""Times what `--cache_frontend` saves: training steps on audio, in the first epoch of a cached run, and in later ones.

    python scripts/benchmark_frontend_cache.py [--config base] [--batch 4] [--seconds 10] [--dtype float32]
        [--remat none] [--rounds 5] [--json FILE]

The three kinds of step take turns, on the same clips (random noise at 16 kHz in FLAC) and from the same state:

- audio: decoded clips go through the whole model, as without the flag;
- first epoch: the front end by itself, the step on its frames, and the frames on their way to the disk meanwhile;
- frames: read from the store, through the step that has no front end.

Times are of the step alone, whose batch lies on the devices already. What the host does for a batch is timed apart:
decoding and collating; reading from the store, with checksums (from memory, where the system keeps what was just
written); writing to it; and what of that writing is left to do when the step is done. The first number is the ratio of
a step on audio to one on frames: how many times faster a later epoch is. The learning rate is 0 and nothing is random,
so all kinds of step have to give the same loss, within the rounding of bfloat16.
"""

import argparse
import dataclasses
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import soundfile as sf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.data.audio import decode
from xtremes_jax.data.collate import RESAMPLER_SLACK
from xtremes_jax.data.frames import FrameStore, Layout
from xtremes_jax.data.loader import TrainLoader
from xtremes_jax.frontend_cache import FrontendCache
from xtremes_jax.models import (
    PRESETS,
    abstract_model,
    build_model,
    decays,
    flatten_params,
    is_feature_encoder,
    split_params,
)
from xtremes_jax.training.ahead import CompiledAhead
from xtremes_jax.training.frames import make_frames_step
from xtremes_jax.training.losses import Objective
from xtremes_jax.training.optimizer import make_optimizer, make_schedule
from xtremes_jax.training.sharding import batch_sharding, make_mesh, tree_sharding
from xtremes_jax.training.state import create_state
from xtremes_jax.training.step import make_train_step

VOCABULARY = 40
LABELS_PER_SECOND = 12
STEPS_BEFORE = 1
"""Steps of each kind that are not counted: they compile."""


class NoiseSplit:
    """What the loader asks of a split: clips of noise, of 80% to 100% of the longest, as FLAC in memory."""

    name, is_float = "noise", False

    def __init__(self, count: int, seconds: float):
        rng = np.random.default_rng(0)
        self.num_samples = (rng.uniform(0.8, 1.0, count) * seconds * SAMPLE_RATE).astype(np.int64)
        self.rows, self.has_loss = np.arange(count), np.ones(count, bool)
        lengths = (self.num_samples / SAMPLE_RATE * LABELS_PER_SECOND).astype(int)
        self.labels = [rng.integers(1, VOCABULARY, length).astype(np.int32) for length in lengths]
        self.clip_names = [f"clip {number}" for number in range(count)]
        self._files = []
        for length in self.num_samples:
            buffer = io.BytesIO()
            sf.write(buffer, (3000 * rng.standard_normal(length)).astype(np.int16), SAMPLE_RATE, format="FLAC")
            self._files.append(buffer.getvalue())

    def for_workers(self) -> "NoiseSplit":
        """The same."""
        return self

    def read_audio(self, clip: int) -> np.ndarray:
        """`[samples]` int16."""
        return decode(self._files[clip])


def make_run(wanted: argparse.Namespace, mesh) -> SimpleNamespace:
    """A model from random weights with a frozen front end: its state, its training step and its frames step."""
    quiet = {name: 0.0 for name in "hidden_dropout attention_dropout activation_dropout feat_proj_dropout".split()}
    quiet |= {name: 0.0 for name in "final_dropout layerdrop mask_time_prob mask_feature_prob".split()}
    config = dataclasses.replace(PRESETS[wanted.config], head="ctc", vocab_size=VOCABULARY, pad_token_id=0, **quiet)
    dtype = jnp.dtype(wanted.dtype)
    graphdef, _ = split_params(abstract_model(config, dtype=dtype, remat=wanted.remat))
    params = flatten_params(split_params(build_model(config, seed=1))[1])
    frozen = {name: value for name, value in params.items() if is_feature_encoder(name)}
    trainable = {name: value for name, value in params.items() if name not in frozen}
    schedule = make_schedule("constant", 0.0, 0, 1000)  # so that losses of all kinds are of the same model
    optimizer = make_optimizer(
        schedule, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01, decay_mask={n: decays(n) for n in trainable}
    )
    state = create_state(trainable, frozen, optimizer, scale_loss=False)
    sharding = tree_sharding(mesh, state)
    step = make_train_step(
        graphdef=graphdef, objective=Objective("ctc", blank=0), optimizer=optimizer, schedule=schedule,
        max_grad_norm=1.0, accumulation=1, scale_loss=False, seed=0, mesh=mesh, state_sharding=sharding,
    )  # fmt: skip
    frames_step = make_frames_step(graphdef=graphdef, accumulation=1, mesh=mesh)
    return SimpleNamespace(config=config, state=jax.device_put(state, sharding), step=step, frames_step=frames_step)


def measure(wanted: argparse.Namespace, folder: Path) -> dict:
    """All figures of one configuration."""
    mesh = make_mesh()
    run = make_run(wanted, mesh)
    rounds = wanted.rounds + STEPS_BEFORE
    split = NoiseSplit(wanted.batch * rounds, wanted.seconds)
    capacities = np.asarray(run.config.num_frames(split.num_samples + RESAMPLER_SLACK), np.int64)
    store = FrameStore(folder / "store", Layout(capacities, run.config.conv_dim[-1]))
    ahead = CompiledAhead(run.frames_step, mesh=mesh, leading=(run.state.trainable, run.state.frozen))
    cache = FrontendCache(store, ahead, run.config, split.rows)
    loader = TrainLoader(split, batch_size=wanted.batch, max_buckets=1, sharding=batch_sharding(mesh))
    times: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}

    def timed(kind: str, call: Callable):
        begun = time.perf_counter()
        result = jax.block_until_ready(call())
        times.setdefault(kind, []).append(time.perf_counter() - begun)
        return result

    def load(number: int, **options):
        with loader.iterate(number, steps=1, **options) as batches:
            return next(batches).batch

    def take(kind: str, step: Callable, batch) -> None:
        run.state, metrics = timed(kind, lambda: step(run.state, batch))
        losses.setdefault(kind, []).append(float(metrics.loss))

    with jax.set_mesh(mesh):
        for number in range(rounds):
            batch = timed("decode", lambda number=number: load(number))
            take("audio", run.step, batch)
            take("first_epoch", cache.wrap(run.step), batch)
            timed("write_left", cache.flush)
            timed("front_end", lambda batch=batch: run.frames_step(run.state.trainable, run.state.frozen, batch))
            stored = store.snapshot().for_edges(cache.frames_of_edges(loader.edges))
            on_frames = timed("read", lambda number=number, stored=stored: load(number, stored=stored))
            take("frames", run.step, on_frames)
            frames = np.asarray(on_frames.frames).view(np.uint16)
            other = FrameStore(folder / f"other{number}", store.layout)
            timed("write", lambda other=other, frames=frames: [
                other.write(clip, frames[clip, : capacities[clip] - 1], 1) for clip in range(wanted.batch)
            ])  # fmt: skip
            other.close()
    cache.close()
    return summary(wanted, split, store, times, losses)


def summary(wanted: argparse.Namespace, split: NoiseSplit, store: FrameStore, times: dict, losses: dict) -> dict:
    """Medians over the counted rounds, and the ratios first."""
    kept = {kind: values[STEPS_BEFORE:] for kind, values in times.items()}
    median = {kind: statistics.median(values) for kind, values in kept.items()}
    audio = wanted.batch * float(split.num_samples.mean()) / SAMPLE_RATE
    kinds = {
        kind: {
            "step_s": median[kind],
            "fastest_s": min(kept[kind]),
            "slowest_s": max(kept[kind]),
            "first_call_s": times[kind][0],
            "audio_s_per_s": audio / median[kind],
        }
        for kind in ("audio", "first_epoch", "frames")
    }
    difference = [abs(one - other) / abs(one) for one, other in zip(losses["audio"], losses["frames"], strict=True)]
    same = losses["first_epoch"] == losses["frames"]
    return {
        "ratio": median["audio"] / median["frames"],
        "first_epoch_ratio": median["audio"] / median["first_epoch"],
        **kinds,
        "front_end_s": median["front_end"],
        "host_s_per_batch": {kind: median[kind] for kind in ("decode", "read", "write", "write_left")},
        "store_bytes_per_audio_s": store.layout.total_bytes / (float(split.num_samples.sum()) / SAMPLE_RATE),
        "largest_relative_difference_of_losses": max(difference),
        "first_epoch_and_frames_have_the_same_losses": same,
        "config": vars(wanted) | {"json": None},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def main() -> int:
    """Command line; returns the exit status: 1 where losses differ by more than bfloat16 explains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="base", choices=sorted(PRESETS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--remat", default="none", choices=("none", "full", "dots"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(wanted, Path(folder))
    print(f"ratio {found['ratio']:.3f} (a step on audio : a step on stored frames); in the first epoch "
          f"{found['first_epoch_ratio']:.3f}")  # fmt: skip
    for kind in ("audio", "first_epoch", "frames"):
        values = found[kind]
        print(f"{kind:12} {values['step_s']:8.4f} s a step ({values['fastest_s']:.4f} to {values['slowest_s']:.4f}), "
              f"{values['audio_s_per_s']:7.1f} audio-s/s; first call {values['first_call_s']:.1f} s")  # fmt: skip
    host = {kind: f"{1000 * seconds:.1f} ms" for kind, seconds in found["host_s_per_batch"].items()}
    print(f"front end by itself {found['front_end_s']:.4f} s; host, a batch: {host}")
    print(f"{found['store_bytes_per_audio_s'] / 1000:.1f} KB a second of audio; losses differ by at most "
          f"{found['largest_relative_difference_of_losses']:.1e}, those of first epoch and frames "
          f"{'are' if found['first_epoch_and_frames_have_the_same_losses'] else 'ARE NOT'} the same")  # fmt: skip
    if wanted.json:
        wanted.json.write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")
    return int(found["largest_relative_difference_of_losses"] > 0.01)


if __name__ == "__main__":
    sys.exit(main())
