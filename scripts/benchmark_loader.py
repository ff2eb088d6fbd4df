"""Measures how fast clips become batches, ours beside PyTorch's DataLoader, and what a training run has to wait for.

    python scripts/benchmark_loader.py                          synthetic speech: FLAC, MP3, Opus, WAV at 8, 16, 48 kHz
    python scripts/benchmark_loader.py --formats flac mp3 --rates 16000 --modes core
    python scripts/benchmark_loader.py --data path/to/corpus --config mls.all        speech of your own, instead

Prints the ratios first (above 1: ours is faster). `core` is one process on one CPU core, in seconds of the processor;
`workers` is --workers decoding processes on all cores, in seconds of the clock; `decode` is reading, decoding and
resampling alone, on one core. Both sides read the same rows of the same `datasets` table, a pass of one after a pass of
the other; both resample with soxr's HQ, and their samples are compared before anything is timed. PyTorch's side also
normalises on the host (see scripts/benchmarks/loaders.py); ours hands over 16-bit PCM, and the device normalises.

Then: the bytes of a batch that are copied to the device, the padding of both ways of batching on drawn durations with
filler rows counted, and the share of its time that a training run of the tiny model waits for data. `--json FILE` keeps
all of it. Needs Linux and torch; the clips are SYNTHETIC unless --data is given.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import numpy as np
from benchmarks.loaders import SIDES, Contender, Source, largest_difference, prepared
from benchmarks.speech import CONFIG, FORMATS, RATES, durations_like, write_corpora

from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.data.buckets import batch_edges, bucket_edges, plan_epoch

MODES = ("core", "workers")
PARTS = ("throughput", "padding", "wait")


def main() -> int:
    """Command line; returns the exit status."""
    wanted = parse()
    with tempfile.TemporaryDirectory() as folder:
        sources = find_sources(wanted, Path(folder))
        synthetic = wanted.data is None or prepared(next(iter(sources.values()))).raw.synthetic
        results: dict[str, Any] = {"synthetic": synthetic, "batch_size": wanted.batch}
        if "throughput" in wanted.parts:
            results["throughput"] = {mode: throughput(wanted, mode, sources) for mode in wanted.modes}
            show_throughput(results["throughput"], synthetic, wanted)
        if "padding" in wanted.parts:
            results["padding"] = padding()
            show_padding(results["padding"])
        if "wait" in wanted.parts:
            name = next((name for name in ("flac 16 kHz", "mp3 48 kHz") if name in sources), next(iter(sources)))
            results["wait"] = {"source": name} | training_wait(sources[name], Path(folder), wanted)
            show_wait(results["wait"])
    if wanted.json:
        wanted.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def parse() -> argparse.Namespace:
    """The command line's values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--rates", nargs="+", type=int, choices=RATES, default=list(RATES))
    parser.add_argument("--clips", type=int, default=64, help="synthetic clips of 10 to 20 s")
    parser.add_argument("--data", help="a corpus in place of synthetic speech, as --dataset_name takes it")
    parser.add_argument("--config", default=CONFIG, help="its config, of a task of recognition")
    parser.add_argument("--batch", type=int, default=8, help="rows")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a pass")
    parser.add_argument("--repeats", type=int, default=5, help="passes of each side, in turn")
    parser.add_argument("--steps", type=int, default=100, help="of the training run")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def find_sources(wanted: argparse.Namespace, folder: Path) -> dict[str, Source]:
    """Name -> split, written to the folder where it is synthetic."""
    cache = str(folder / "cache")
    if wanted.data is not None:
        return {f"{wanted.data} {wanted.config}": Source(wanted.data, wanted.config, cache)}
    seconds = durations_like("mls", wanted.clips, np.random.default_rng(1))
    written = write_corpora(folder, wanted.formats, wanted.rates, seconds)
    return {name: Source(str(path), CONFIG, cache) for name, path in written.items()}


def throughput(wanted: argparse.Namespace, mode: str, sources: dict[str, Source]) -> dict[str, Any]:
    """Audio-seconds a second of both sides on each source, and their ratios."""
    cpus = os.sched_getaffinity(0)
    workers = wanted.workers if mode == "workers" else 0
    used = {min(cpus)} if mode == "core" else cpus
    contenders = {side: Contender(side, wanted.batch, workers, used) for side in SIDES}
    try:
        return {name: compare(contenders, mode, name, source, wanted) for name, source in sources.items()}
    finally:
        for contender in contenders.values():
            contender.close()


def compare(
    contenders: dict[str, Contender], mode: str, name: str, source: Source, wanted: argparse.Namespace
) -> dict[str, Any]:
    """Both sides on one source, in turn."""
    row: dict[str, Any] = {"largest_difference": largest_difference(source)}
    passes: dict[str, list] = {side: [] for side in SIDES}
    decoded: dict[str, list] = {side: [] for side in SIDES}
    for turn in range(wanted.repeats):
        for side in SIDES if turn % 2 else reversed(SIDES):
            passes[side].append(contenders[side].run(source, wanted.seconds))
            if mode == "core":
                decoded[side].append(contenders[side].decode_rate(source, wanted.seconds / 2))
    for side in SIDES:
        rates = [done.audio_seconds / done.seconds for done in passes[side]]
        size = sum(done.bytes for done in passes[side])
        row[side] = {
            "audio_s_per_s": statistics.median(rates),
            "least": min(rates),
            "most": max(rates),
            "bytes_per_batch": size / sum(done.batches for done in passes[side]),
            "bytes_per_audio_s": size / sum(done.audio_seconds for done in passes[side]),
        }
        if mode == "core":
            row[side]["decode_audio_s_per_s"] = statistics.median(decoded[side])
    # Of each turn's two passes, which are neighbours in time: what else the machine does changes more slowly.
    ratios = [
        ours.audio_seconds / ours.seconds * torch.seconds / torch.audio_seconds
        for ours, torch in zip(passes["ours"], passes["torch"], strict=True)
    ]
    row |= {"ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios)}
    if mode == "core":
        row["decode_ratio"] = statistics.median(
            ours / torch for ours, torch in zip(decoded["ours"], decoded["torch"], strict=True)
        )
    print(f"{mode} {name}: {row['ratio']:.2f}", file=sys.stderr, flush=True)
    return row


def show_throughput(results: dict[str, Any], synthetic: bool, wanted: argparse.Namespace) -> None:
    """Ratios first, then the rates that they are made of."""
    what = "SYNTHETIC speech" if synthetic else "recordings"
    print(f"{what}, batches of {wanted.batch}; audio-seconds a second, ours / PyTorch's:")
    for mode, rows in results.items():
        words = {"core": "one core", "workers": f"{wanted.workers} workers"}[mode]
        for name, row in rows.items():
            decode = f", decode alone {row['decode_ratio']:.2f}" if "decode_ratio" in row else ""
            spread = f"({row['ratio_least']:.2f} to {row['ratio_most']:.2f})"
            print(f"  {words:10} {name:12} ratio {row['ratio']:.2f} {spread}{decode}")
    for mode, rows in results.items():
        for name, row in rows.items():
            for side in SIDES:
                rate = row[side]
                decode = f", decode alone {rate['decode_audio_s_per_s']:,.0f}" if "decode_audio_s_per_s" in rate else ""
                print(
                    f"  {mode:8} {name:12} {side:5} {rate['audio_s_per_s']:8,.0f} ({rate['least']:,.0f} to "
                    f"{rate['most']:,.0f}){decode}; {rate['bytes_per_batch'] / 2**20:.1f} MiB a batch to the device, "
                    f"{rate['bytes_per_audio_s'] / 1000:.0f} kB a second of audio"
                )
            print(f"  {mode:8} {name:12} largest difference {row['largest_difference']:.2f} of a 16-bit step")


def padding(clips: int = 4_000, epochs: int = 3) -> list[dict[str, Any]]:
    """Padding of the batches of some epochs, filler rows counted; PyTorch's has none, and any number of lengths."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    rows = []
    for corpus in ("mls", "minds14"):
        lengths = (durations_like(corpus, clips, np.random.default_rng(0)) * SAMPLE_RATE).astype(np.int64)
        edges = bucket_edges(lengths)
        single = 1 - lengths.sum() / edges[np.searchsorted(edges, lengths)].sum()
        sizes = [{"batch_size": size} for size in (8, 16, 32, 64)]
        sizes += [{"max_batch_samples": seconds * SAMPLE_RATE} for seconds in (80, 160, 640)]
        for size in sizes:
            edges = batch_edges(lengths, **size)
            total = peer = 0
            for epoch in range(epochs):
                total += sum(b.rows * b.bucket_samples for b in plan_epoch(lengths, edges, epoch=epoch, **size))
                if "batch_size" in size:
                    grouped = lengths[get_length_grouped_indices(lengths.tolist(), size["batch_size"])]
                    chunks = (grouped[i : i + size["batch_size"]] for i in range(0, clips, size["batch_size"]))
                    peer += sum(len(chunk) * int(chunk.max()) for chunk in chunks)
            audio = epochs * int(lengths.sum())
            rows.append(
                {"corpus": corpus, "clips": clips, **size, "shapes": len(edges), "padding": 1 - audio / total}
                | {"single_clips": float(single), "torch": 1 - audio / peer if peer else None}
            )
    return rows


def show_padding(rows: list[dict[str, Any]]) -> None:
    """A line for each corpus and size."""
    print("Padding, filler rows counted (drawn durations: mls 10 to 20 s; minds14 log-normal, 2 to 30 s):")
    for row in rows:
        size = f"{row['batch_size']} rows" if "batch_size" in row else f"{row['max_batch_samples'] // SAMPLE_RATE} s"
        peer = f", PyTorch's length grouping {row['torch']:.1%}" if row["torch"] is not None else ""
        print(
            f"  {row['corpus']:8} {size:8} {row['padding']:.1%} with {row['shapes']} shapes{peer}; single clips to as "
            f"many lengths {row['single_clips']:.1%}"
        )


def training_wait(source: Source, folder: Path, wanted: argparse.Namespace) -> dict[str, Any]:
    """What a training run of the tiny model measures of itself."""
    flags = {
        "config_name": "tiny", "dataset_name": source.folder, "dataset_config_name": source.config,
        "cache_dir": source.cache, "output_dir": folder / "run", "do_train": True, "freeze_feature_encoder": False,
        "per_device_train_batch_size": wanted.batch, "group_by_length": True, "max_steps": wanted.steps,
        "save_strategy": "no", "logging_steps": 10, "max_buckets": 4, "disable_tqdm": True,
    }  # fmt: skip
    command = [sys.executable, "-m", "xtremes_jax.train"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    root = Path(__file__).resolve().parent.parent
    # The run's own lines, its progress among them, go where this script's progress goes.
    done = subprocess.run(command, cwd=root, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}: see above")
    return json.loads((folder / "run" / "train_results.json").read_text("utf-8"))


def show_wait(results: dict[str, Any]) -> None:
    """One line."""
    print(
        f"Training the tiny model on {results['source']}: {results['train_data_wait']:.2%} of the time spent waiting "
        f"for data, {results['train_audio_seconds_per_second']:,.0f} audio-seconds a second, {results['train_steps']} "
        f"steps, padding {results['train_padding']:.1%}"
    )


if __name__ == "__main__":
    sys.exit(main())
