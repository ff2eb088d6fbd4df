"""Compiles the training step for 1, 2, 4 and 8 simulated devices: FLOPs of each, and what it sends beside the least.

    python scripts/benchmark_devices.py --config xls_r_300m --rows 32 --seconds 10 [--dtype bfloat16] [--json FILE]

Nothing is drawn, allocated or run: the real step is lowered from shapes, compiled by XLA for CPUs, and its program read
(xtremes_jax/planning/hlo.py). The global batch stays the same, so each of n devices should do one n-th of the work.
Prints, ratios first: FLOPs of a device times n over those of one (1.00 is perfect), and bytes sent over the least, data
parallel (every parameter whole everywhere) and fully sharded (`--fsdp_devices n`). Exits with 1 where FLOPs are off by
more than 5%, or the step sends anything but gradients and the parameters that FSDP has split.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

MOST_DEVICES = 8
FLOPS_TOLERANCE = 0.05
NOTE = (
    "On CPUs XLA sums whole gradients where it reduce-scatters on accelerators (1 to 2 times the least), and widens\n"
    "bfloat16 to float32 before it gathers (2 times the least)."
)


def main() -> int:
    """Command line; returns the exit status."""
    wanted = parse()
    # Before JAX starts. LLVM's optimisation changes nothing in what is read here.
    flags = f"--xla_force_host_platform_device_count={MOST_DEVICES} --xla_backend_optimization_level=0"
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    from benchmarks.lowering import Setting

    setting = Setting(
        config=wanted.config,
        head=wanted.head,
        rows=wanted.rows,
        seconds=wanted.seconds,
        dtype=wanted.dtype,
        remat=wanted.remat,
        accumulation=wanted.accumulation,
        freeze_feature_encoder=wanted.freeze == "front_end",
    )
    results = {"setting": asdict(setting), "cases": []}
    for devices in wanted.devices:
        for fsdp in [1, devices] if devices > 1 else [1]:
            case = measure(setting, devices, fsdp)
            results["cases"].append(case)
            one = results["cases"][0]
            case["flops_ratio"] = case["flops"] * devices / (one["flops"] * one["devices"])
            print(describe(case), file=sys.stderr, flush=True)
            if wanted.json:
                wanted.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    bad = [c for c in results["cases"] if abs(c["flops_ratio"] - 1) > FLOPS_TOLERANCE or c["unexpected"]]
    return 1 if bad else 0


def parse() -> argparse.Namespace:
    """The command line's values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=["tiny", "small", "base", "xls_r_300m", "xls_r_1b"], default="tiny")
    parser.add_argument("--head", choices=["ctc", "classification", "translation", "retrieval"], default="ctc")
    parser.add_argument("--rows", type=int, default=32, help="clips of the global batch, over all devices together")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--remat", choices=["none", "full", "dots"], default="none")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches that the batch is worked off in")
    parser.add_argument("--freeze", choices=["front_end", "nothing"], default="front_end")
    parser.add_argument("--devices", type=int, nargs="+", choices=[1, 2, 4, 8], default=[1, 2, 4, 8])
    parser.add_argument("--json", type=Path, metavar="FILE")
    wanted = parser.parse_args()
    each = max(wanted.devices) * wanted.accumulation * (2 if wanted.head == "retrieval" else 1)
    if wanted.rows % each:
        parser.error(f"--rows {wanted.rows} is not a multiple of {each}: devices x micro-batches (x 2 for pairs).")
    return wanted


def measure(setting, devices: int, fsdp: int) -> dict:
    """One case, as `--json` writes it."""
    import dataclasses

    import jax
    from benchmarks.lowering import abstract_network, least_sent, lower_train_step, unexpected

    from xtremes_jax.planning.hlo import Program
    from xtremes_jax.training.sharding import make_mesh

    setting = dataclasses.replace(setting, fsdp=fsdp)
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    begun = time.perf_counter()
    compiled = lower_train_step(setting, mesh).compile()
    seconds = time.perf_counter() - begun
    program = Program(compiled.as_text())
    collectives = program.collectives()
    network = abstract_network(setting, mesh)
    size = 4 if setting.dtype == "float32" else 2
    least = least_sent(network, devices, fsdp, compute_bytes=size, micro_batches=setting.accumulation)
    gathered = sum(c.sent for c in collectives if c.kind == "all-gather")
    sent = sum(c.sent for c in collectives)
    return {
        "devices": devices,
        "fsdp": fsdp,
        "flops": program.product_flops(),
        "xla_flops_bodies_once": compiled.cost_analysis()["flops"],
        "sent_bytes": sent,
        "sent_gathered_bytes": gathered,
        "least_bytes": least["total"],
        "least_gathered_bytes": least["gathered"],
        "sent_ratio": sent / least["total"] if least["total"] else 1.0,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "argument_bytes": compiled.memory_analysis().argument_size_in_bytes,
        "compile_s": seconds,
        "collectives": [{"what": str(c), "payload_bytes": c.payload, "sent_bytes": c.sent} for c in collectives],
        "unexpected": [str(c) for c in unexpected(collectives, setting, network)],
    }


def describe(case: dict) -> str:
    """A line for the log."""
    found = f"{len(case['collectives'])} collectives, {len(case['unexpected'])} unexpected"
    return f"{case['devices']} devices, fsdp {case['fsdp']}: compiled in {case['compile_s']:.1f} s, {found}"


def table(results: dict) -> str:
    """The results for people."""
    setting, mega = results["setting"], 1e6
    front_end = "frozen" if setting["freeze_feature_encoder"] else "trained"
    lines = [
        f"{setting['config']}, {setting['head']}, {setting['rows']} x {setting['seconds']:g} s over all devices, "
        f"{setting['dtype']}, remat {setting['remat']}, micro-batches {setting['accumulation']}, front end {front_end}",
        "",
        "| FLOPs x n / of one | sent / least | devices | parameters | GFLOP each | MB sent: reduced | least | "
        "MB sent: gathered | least | state, MB each | unexpected |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in results["cases"]:
        reduced = case["sent_bytes"] - case["sent_gathered_bytes"]
        least_reduced = case["least_bytes"] - case["least_gathered_bytes"]
        lines.append(
            f"| {case['flops_ratio']:.3f} | {case['sent_ratio']:.2f} | {case['devices']} "
            f"| {'whole' if case['fsdp'] == 1 else 'split'} | {case['flops'] / 1e9:,.1f} | {reduced / mega:,.1f} "
            f"| {least_reduced / mega:,.1f} | {case['sent_gathered_bytes'] / mega:,.1f} "
            f"| {case['least_gathered_bytes'] / mega:,.1f} | {case['argument_bytes'] / mega:,.0f} "
            f"| {len(case['unexpected'])} |"
        )
    lines += [f"unexpected: {found}" for case in results["cases"] for found in case["unexpected"]]
    return "\n".join([*lines, "", NOTE])


if __name__ == "__main__":
    sys.exit(main())
