"""Times training and evaluation steps, ours beside PyTorch Transformers', interleaved on the same synthetic batches.

    python scripts/benchmark_step.py --config base --batch 4 --seconds 10 [--dtype float32] [--remat none]

Each contender runs in a process of its own, one step in turn. Prints the ratios first (above 1: ours is faster), then
of each contender: the median step with half its interquartile range, seconds of compiling, audio-seconds a second,
analytic FLOPs, the share of the machine's measured matmul rate, and peak memory. Clips are SYNTHETIC noise.
Needs torch for the peers; `--peers none` measures ours alone.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from benchmarks.contenders import Contender, median_and_spread, serve
from benchmarks.work import Work, forward_flops, training_flops

from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.models import PRESETS, ModelConfig

PEERS = {"sdpa": "torch", "compile": "torch-compile", "both": "torch torch-compile", "none": ""}


def main() -> int:
    """Command line; returns the exit status."""
    wanted = parse()
    if wanted.serve:
        name, work = wanted.serve
        return run_contender(name, Work(**json.loads(work)))
    work = Work(
        config=wanted.config,
        head=wanted.head,
        batch=wanted.batch,
        seconds=wanted.seconds,
        raggedness=wanted.raggedness,
        dtype=wanted.dtype,
        remat=wanted.remat,
        freeze_feature_encoder=wanted.freeze == "front_end",
        vocab_size=wanted.vocab,
    )
    kinds = ["train", "eval"] if wanted.kind == "both" else [wanted.kind]
    contenders = [Contender(name, work) for name in ("ours", *PEERS[wanted.peers].split())]
    results = measure(contenders, kinds, work, wanted.repeats, wanted.steps)
    show(results, kinds, work)
    if wanted.json:
        wanted.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def parse() -> argparse.Namespace:
    """The command line's values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    counted = [name for name, config in PRESETS.items() if type(config) is ModelConfig]  # by work.forward_flops
    parser.add_argument("--config", choices=counted, default="base")
    parser.add_argument("--head", choices=["ctc", "classification"], default="ctc")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--raggedness", type=float, default=0.0, help="clips are up to this share shorter")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument(
        "--remat", choices=["none", "full", "dots"], default="none", help="ours; torch has full or none"
    )
    parser.add_argument("--freeze", choices=["front_end", "nothing"], default="front_end")
    parser.add_argument("--vocab", type=int, default=64)
    parser.add_argument("--kind", choices=["train", "eval", "both"], default="both")
    parser.add_argument("--peers", choices=list(PEERS), default="sdpa")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each contender, in turn")
    parser.add_argument("--steps", type=int, default=1, help="steps in a measurement")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "WORK"), help=argparse.SUPPRESS)
    return parser.parse_args()


def run_contender(name: str, work: Work) -> int:
    """What a contender's own process does."""
    if name == "ours":
        from benchmarks import ours

        serve(ours.prepare, work)
    else:
        from benchmarks import torch_peer

        serve(lambda work: torch_peer.prepare(work, compiled=name == "torch-compile"), work)
    return 0


def measure(contenders: list[Contender], kinds: list[str], work: Work, repeats: int, steps: int) -> dict:
    """Runs the contenders in turn; the results as `--json` writes them.

    The first step of each turn is not counted. While another contender computes, the system takes back the memory that
    a step has freed, and getting it anew can cost a step seconds: in a training run steps follow each other.
    """
    results: dict = {"work": vars(work) | {"labels_per_second": 12}}
    peak = max(contender.matmul_peak() for contender in contenders)
    audio = sum(batch.audio_lengths.sum() for batch in work.batches(3)) / 3 / SAMPLE_RATE
    samples, config = int(work.seconds * SAMPLE_RATE), work.model_config()
    for kind in kinds:
        first = {contender.name: contender.run(kind)["seconds"] for contender in contenders}
        for contender in contenders:
            contender.run(kind, steps)
        times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        memory = dict.fromkeys(times, 0)
        for _ in range(repeats):
            for contender in contenders:
                contender.run(kind)
                answer = contender.run(kind, steps)
                times[contender.name].append(answer["seconds"])
                memory[contender.name] = max(memory[contender.name], answer["peak_bytes"])
                print(f"{kind} {contender.name}: {answer['seconds']:.4f} s", file=sys.stderr, flush=True)
        if kind == "train":
            flops = training_flops(config, work.batch, samples, freeze_feature_encoder=work.freeze_feature_encoder)
        else:
            flops = forward_flops(config, work.batch, samples)
        table = {}
        for contender in contenders:
            median, spread = median_and_spread(times[contender.name])
            table[contender.name] = {
                "describe": contender.describe,
                "first_step_s": first[contender.name],
                "compile_s": max(first[contender.name] - median, 0.0),
                "step_s": median,
                "step_spread_s": spread,
                "audio_s_per_s": audio / median,
                "flops": flops.total,
                "flops_per_s": flops.total / median,
                "share_of_peak": flops.total / median / peak,
                "peak_bytes": memory[contender.name],
            }
        results[kind] = table
        peers = [name for name in table if name != "ours"]
        if peers:
            results[kind]["ratio"] = min(table[name]["step_s"] for name in peers) / table["ours"]["step_s"]
    results["matmul_peak_flops_per_s"] = peak
    for contender in contenders:
        contender.close()
    first = results[kinds[0]]
    best = min(
        (name for name in first if name.startswith("torch")), key=lambda name: first[name]["step_s"], default=None
    )
    results["ours"], results["torch"], results["ratio"] = first["ours"], first.get(best), first.get("ratio")
    return results


def show(results: dict, kinds: list[str], work: Work) -> None:
    """Prints the ratios, then a line for each contender."""
    front_end = "frozen" if work.freeze_feature_encoder else "trained"
    print(
        f"{work.config}, {work.head}, {work.batch} x {work.seconds:g} s of SYNTHETIC audio, {work.dtype}, remat "
        f"{work.remat}, front end {front_end}"
    )
    for kind in kinds:
        if "ratio" in results[kind]:
            print(f"{kind} ratio, PyTorch's best step / ours: {results[kind]['ratio']:.2f}")
    print(f"measured matmul rate: {results['matmul_peak_flops_per_s'] / 1e9:,.0f} GFLOP/s")
    for kind in kinds:
        for name, row in results[kind].items():
            if name == "ratio":
                continue
            print(
                f"{kind} {name}: step {row['step_s']:.4f} s +- {row['step_spread_s']:.4f}, "
                f"compile {row['compile_s']:.1f} s, {row['audio_s_per_s']:,.1f} audio-s/s, "
                f"{row['flops'] / 1e9:,.0f} GFLOP, {row['share_of_peak']:.1%} of peak, "
                f"memory {row['peak_bytes'] / 2**20:,.0f} MiB ({row['describe']})"
            )


if __name__ == "__main__":
    sys.exit(main())
