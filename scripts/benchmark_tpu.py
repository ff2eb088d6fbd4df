"""Compiles the training step for TPUs that nobody holds: FLOPs, bytes, memory and roofline time of each part.

    pip install --target DIR --no-deps "libtpu==0.0.42.*"      # what jax's extra "tpu" names for this jaxlib
    PYTHONPATH=DIR python scripts/benchmark_tpu.py --json parts.json --write scripts/benchmarks/tpu.md

A compile-time ESTIMATE: nothing is run. FLOPs and bytes are read off the compiled programs (hlo.py and traffic.py in
xtremes_jax/planning) with loops multiplied out, which XLA's own counts leave to the reader; the encoder layer is
compiled once and multiplied by the layers. The time is what the chip's peak rate or its memory takes, whichever is
longer, at the rates that xtremes_jax.plan has of it. Results are written after every part; parts that the JSON file has
for the same work are not compiled again.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
from xtremes_jax.planning.topology import GIB, TPUS, find_target

CHIPS = ("v5e", "v6e")
"""Of `TPUS`; both have slices of 2x2."""
STEP = "whole step"


def main() -> int:
    """Command line; returns the exit status."""
    wanted = parse()
    from benchmarks.lowering import Setting

    setting = Setting(
        config=wanted.config, rows=wanted.rows, seconds=wanted.seconds, dtype="bfloat16", remat=wanted.remat
    )
    versions = {name: version(name) for name in ("jax", "jaxlib", "libtpu")}
    results = {"setting": dataclasses.asdict(setting), "versions": versions, "parts": {}}
    results = json.loads(json.dumps(results))
    if wanted.json and wanted.json.exists():
        before = json.loads(wanted.json.read_text(encoding="utf-8"))
        if all(before[name] == results[name] for name in ("setting", "versions")):
            results = before
    for chip in wanted.chips:
        for name in wanted.parts:
            for kind in ("training",) if name in ("optimizer", STEP) else ("forward", "training"):
                key = f"{chip}/{name}/{kind}"
                if key in results["parts"] and not wanted.again:
                    continue
                results["parts"][key] = measure(chip, name, kind, setting)
                print(key, results["parts"][key], file=sys.stderr, flush=True)
                if wanted.json:
                    wanted.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    text = report(results)
    print(text)
    if wanted.write:
        wanted.write.write_text(text + "\n", encoding="utf-8")
    return 0


def parse() -> argparse.Namespace:
    """The command line's values."""
    from benchmarks.parts import PARTS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=["tiny", "small", "base", "xls_r_300m", "xls_r_1b"], default="xls_r_300m")
    parser.add_argument("--rows", type=int, default=16, help="clips on one chip")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--remat", choices=["none", "full", "dots"], default="full", help="of the whole step")
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=CHIPS)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, STEP], default=[*PARTS, STEP])
    parser.add_argument("--again", action="store_true", help="compile again what the JSON file has")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the report there, as Markdown")
    return parser.parse_args()


def measure(chip: str, name: str, kind: str, setting) -> dict:
    """Compiles one part for one chip; what `--json` holds of it. FLOPs, bytes and times are of all its layers."""
    from benchmarks.parts import lower_whole_step, make_part

    from xtremes_jax.models.platform import written_for
    from xtremes_jax.planning.hlo import Program
    from xtremes_jax.planning.traffic import moved_bytes

    facts, device = TPUS[chip], find_target(f"{chip}:2x2").devices[0]
    begun = time.perf_counter()
    with written_for("tpu"):
        if name == STEP:
            times, compiled = 1, lower_whole_step(setting, device).compile()
        else:
            part = make_part(name, setting, gradient=kind == "training", device=device)
            times, compiled = part.times, part.lower(device).compile()
    seconds = time.perf_counter() - begun
    text = compiled.as_text()
    if folder := os.environ.get("BENCHMARK_TPU_TEXTS"):
        Path(folder, f"{chip}-{name}-{kind}.txt".replace(" ", "_")).write_text(text, encoding="utf-8")
    program, memory = Program(text), compiled.memory_analysis()
    flops, moved = times * program.product_flops(), times * moved_bytes(program)
    by_flops, by_bytes = flops / facts.flops_per_s["bfloat16"], moved / facts.bytes_per_s
    return {
        "times": times,
        "flops": flops,
        "bytes": moved,
        "flops_s": by_flops,
        "bytes_s": by_bytes,
        "roofline_s": max(by_flops, by_bytes),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "peak_bytes": getattr(memory, "peak_memory_in_bytes", 0),
        "xla_flops": compiled.cost_analysis().get("flops", 0.0),
        "xla_bytes": compiled.cost_analysis().get("bytes accessed", 0.0),
        "compile_s": seconds,
    }


def report(results: dict) -> str:
    """The table, as Markdown."""
    from benchmarks.parts import PARTS

    setting, versions = results["setting"], results["versions"]
    lines = [
        "# The training step on TPUs, estimated by compiling",
        "",
        f"{setting['config']}, CTC over {setting['vocab_size']} characters, bfloat16, {setting['rows']} clips of "
        f"{setting['seconds']:g} s on one chip. Written by `scripts/benchmark_tpu.py` with jax {versions['jax']}, "
        f"jaxlib {versions['jaxlib']}, libtpu {versions['libtpu']}.",
        "",
        "**A compile-time estimate: nothing here was run on a TPU.** FLOPs (of products and convolutions alone) and "
        "bytes to and from main memory are read off XLA's compiled programs, loops multiplied out, arrays as they are "
        "laid out in tiles, VMEM left out. Time is FLOPs over the peak bf16 rate or bytes over the memory's rate, "
        "whichever is longer: a lower bound. `training` is the forward pass and the gradient together; the front end's "
        "is paid only where it is trained (the whole step has it frozen). The encoder layer is compiled once, without "
        f"rematerialisation, and multiplied by the layers; the whole step has remat `{setting['remat']}`.",
    ]
    for chip in CHIPS:
        facts = TPUS[chip]
        rows = {key.split("/", 1)[1]: row for key, row in results["parts"].items() if key.startswith(f"{chip}/")}
        if not rows:
            continue
        lines += [
            "",
            f"## TPU {chip}",
            "",
            f"Peak {facts.flops_per_s['bfloat16'] / 1e12:g} TFLOP/s in bfloat16, {facts.bytes_per_s / 1e9:g} GB/s, "
            f"{facts.memory / GIB:g} GiB. {facts.source}.",
            "",
            "| part | | roofline ms | bound by | GFLOP | GB moved | of which FLOPs ms | bytes ms | temporary MB | x |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for name, row in sorted(rows.items(), key=lambda row: [*PARTS, STEP].index(row[0].split("/")[0])):
            part, kind = name.split("/")
            bound = "FLOPs" if row["flops_s"] >= row["bytes_s"] else "bytes"
            lines.append(
                f"| {part} | {kind} | {1e3 * row['roofline_s']:.2f} | {bound} | {row['flops'] / 1e9:,.0f} "
                f"| {row['bytes'] / 1e9:.2f} | {1e3 * row['flops_s']:.2f} | {1e3 * row['bytes_s']:.2f} "
                f"| {row['temporary_bytes'] / 1e6:,.0f} | {row['times']} |"
            )
        if step := rows.get(f"{STEP}/training"):
            audio = setting["rows"] * setting["seconds"]
            lines += [
                "",
                f"The whole step by this bound: {audio / step['roofline_s']:,.0f} audio-seconds/s a chip at most.",
            ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
