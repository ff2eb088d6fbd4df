#!/usr/bin/env python3
"""Transcribes a long recording in windows, prints the most memory its process has taken, and compares with one pass.

    python scripts/check_long_recording.py                                 30 minutes, a base model of random weights
    python scripts/check_long_recording.py --model_name_or_path DIRECTORY  a fine-tuned one: its text is compared too

The recording is speech of espeak-ng, the demo corpus' sentences one after the other, as FLAC of 44.1 kHz in stereo, so
that it has to be mixed down and resampled. It is transcribed by a fresh process, whose greatest resident set (VmHWM) is
the figure; the exit status is 1 where that is 4 GiB or more. Then the first minute is computed in windows and in one
pass: the share of frames whose likeliest token is the same, of all and of those that are far from the joints, and how
many characters of the text differ. Random weights attend everywhere and say next to nothing, so only a trained model's
figures mean much. Linux only.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xtremes_jax.batch import SAMPLE_RATE

LIMIT_GIB = 4.0
RATE, VOICES = 44_100, ("en-us+f2", "en-us+m3", "en-us+f4", "en-us+m1")
COMPARED_SECONDS = 60
NEAR_SECONDS = 1.0
"""Frames so near to a joint are left out of the second share."""


def write_recording(path: Path, seconds: float) -> None:
    """Speech of that length as FLAC; no more than a few minutes of it are in memory."""
    import soundfile
    import soxr

    from xtremes_jax.data.demo_text import parliament_sentences
    from xtremes_jax.data.espeak import Utterance, speak

    texts = parliament_sentences("en")
    spoken = [Utterance(text, VOICES[place % len(VOICES)], 150, 50) for place, text in enumerate(texts[:80])]
    rate, clips = speak(spoken)
    gap = np.zeros(rate // 4, np.int16)
    some = np.concatenate([part for clip in clips for part in (clip, gap)])
    some = soxr.resample(some.astype(np.float32) / 32768, rate, RATE)
    left = round(seconds * RATE)
    print(f"writing {seconds / 60:.1f} minutes of speech, {len(some) / RATE:.0f} s of it different", flush=True)
    with soundfile.SoundFile(path, "w", RATE, 2, format="FLAC") as file:
        while left > 0:
            part = some[:left]
            file.write(np.stack([part, 0.5 * part], axis=1))
            left -= len(part)


def load(path: str | None):
    """The model of that path, or one of the base shape with random weights and 32 tokens."""
    import dataclasses

    from xtremes_jax import load_model
    from xtremes_jax.data.characters import CharacterTokenizer
    from xtremes_jax.loading import Model
    from xtremes_jax.models import PRESETS, build_model, split_params

    if path is not None:
        return load_model(path)
    tokens = [*"abcdefghijklmnopqrstuvwxyz'", "|", "[UNK]", "[PAD]"]
    tokenizer = CharacterTokenizer({token: place for place, token in enumerate(tokens)})
    config = dataclasses.replace(PRESETS["base"], head="ctc", vocab_size=32, pad_token_id=tokenizer.pad_token_id)
    return Model(*split_params(build_model(config, seed=0)), config, tokenizer=tokenizer)


def transcribe_one(arguments: argparse.Namespace) -> int:
    """What the fresh process does."""
    from xtremes_jax import transcribe

    model = load(arguments.model_name_or_path)
    print(f"{model.config.num_parameters / 1e6:.0f} million parameters; {taken()} GiB at most so far", flush=True)
    begun = time.perf_counter()
    (text,) = transcribe(
        model, arguments.recording, batch_size=arguments.batch_size, beams=arguments.beams,
        chunk_length_s=arguments.chunk_length_s, stride_length_s=arguments.stride_length_s,
    )  # fmt: skip
    print(f"{len(text):,} characters in {time.perf_counter() - begun:.0f} s")
    print(f"peak {taken()} GiB")
    return 0


def taken() -> float:
    """The greatest resident set of this process so far, in GiB."""
    status = Path("/proc/self/status").read_text()
    return round(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20, 2)


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Windows beside one pass, on a recording short enough for both."""
    from xtremes_jax import transcribe
    from xtremes_jax.data.audio import decode
    from xtremes_jax.evaluation.metrics import character_error_rate
    from xtremes_jax.models import windowing
    from xtremes_jax.models.windows import samples_per_frame

    path = folder / "short.flac"
    write_recording(path, COMPARED_SECONDS)
    model, waveform = load(arguments.model_name_or_path), decode(path)
    windows = {"chunk_length_s": arguments.chunk_length_s, "stride_length_s": arguments.stride_length_s}
    cut = windowing(model.config, *windows.values())
    whole = np.asarray(model(waveform[None]).logits)[0].argmax(axis=1)
    parts, joints = [], []
    for window in cut.plan(len(waveform)):
        logits = np.asarray(model(waveform[None, window.start : window.stop]).logits)[0]
        parts.append(logits[window.first : window.last].argmax(axis=1))
        joints.append(window.start // samples_per_frame(model.config) + window.first)
    joined = np.concatenate(parts)
    print(f"{len(waveform) / SAMPLE_RATE:.0f} s: {len(whole)} frames in one pass, {len(joined)} joined of {len(parts)}")
    near = NEAR_SECONDS * SAMPLE_RATE / samples_per_frame(model.config)
    far = (np.abs(np.arange(len(joined))[:, None] - np.array(joints[1:])) > near).all(axis=1)
    same = joined == whole
    print(f"the same token in {same.mean():.2%} of all frames, in {same[far].mean():.2%} of those over "
          f"{NEAR_SECONDS:g} s from a joint")  # fmt: skip
    options = {"batch_size": arguments.batch_size, "beams": arguments.beams}
    one, many = (transcribe(model, path, **options, **more)[0] for more in ({}, windows))
    print(f"text of one pass: {len(one)} characters; differences of that of windows: "
          f"{character_error_rate([many], [one]) if one else float(len(many)):.2%}")  # fmt: skip


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model_name_or_path")
    parser.add_argument("--chunk_length_s", type=float, default=20.0)
    parser.add_argument("--stride_length_s", type=float)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--skip_comparison", action="store_true", help="look at memory alone")
    parser.add_argument("--recording", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.recording:
        return transcribe_one(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.flac"
        write_recording(path, 60 * arguments.minutes)
        print(f"{path.stat().st_size / 2**20:.0f} MiB of FLAC", flush=True)
        command = [sys.executable, *sys.argv, "--recording", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            lines = [print(line, end="", flush=True) or line for line in child.stdout]
        if child.returncode:
            return child.returncode
        if not arguments.skip_comparison:
            compare(arguments, Path(folder))
    peak = float(re.search(r"peak ([\d.]+) GiB", lines[-1])[1])
    print(f"{arguments.minutes:g} minutes took {peak} GiB at most; allowed {LIMIT_GIB:g}")
    return 0 if peak < LIMIT_GIB else 1


if __name__ == "__main__":
    sys.exit(main())
