"""Hostile manifests and BABEL transcripts."""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzzing.mutate import OUTSIDE, change_bytes, hostile_value, json_bytes
from fuzzing.reader import Place, Reader, require
from fuzzing.sound import _clip
from xtremes_jax.arguments import DataArguments
from xtremes_jax.data.babel import open_babel, read_folder
from xtremes_jax.data.characters import CharacterTokenizer
from xtremes_jax.data.durations import read_durations
from xtremes_jax.data.prepare import prepare
from xtremes_jax.data.sources import SplitRequest, load_splits
from xtremes_jax.data.text import build_vocabulary, clean
from xtremes_jax.tasks import select_task

_CELLS = (
    "", " ", "\0", "a.wav", "b.wav", "../outside/secret.txt", "/etc/passwd", "/dev/zero", "file:///dev/zero",
    "pipe.wav", "s3://nowhere/x.wav", "memory://x", "zip://a::file:///x", "nan", "inf", "-1", "1e308", "9" * 400,
    "é", "\ud800", "x" * 5000, '"', '""', "\r", "\u2028", "=cmd|' /C calc'!A0", "\x1b[31m", "None", "0.05", "a.wav/x",
    ".", "loop.wav",
)  # fmt: skip
_COLUMNS = (
    "path",
    "transcription",
    "language",
    "split",
    "offset",
    "duration",
    "audio",
    "file",
    "text",
    "id",
    "",
    "lang_id",
)


def _rows(random: Random) -> list[dict[str, Any]]:
    return [
        {"path": random.choice(("a.wav", "b.wav")), "transcription": "ab c", "language": "xx", "split": "train",
         "offset": 0.0, "duration": 0.1}
        for _ in range(random.choice((1, 2, 5)))
    ]  # fmt: skip


def _table(random: Random, separator: str) -> bytes:
    columns = ["path", "transcription", *random.sample(_COLUMNS, random.choice((0, 1, 2)))]
    if random.random() < 0.2:
        columns = [random.choice(_COLUMNS) for _ in range(random.choice((1, 3)))]
    lines = [separator.join(columns)]
    for row in _rows(random):
        cells = [str(row.get(name, "x")) if random.random() < 0.8 else random.choice(_CELLS) for name in columns]
        if random.random() < 0.1:
            cells += random.choice((["more"], ["x"] * 5000))
        lines.append(separator.join(cells))
    text = random.choice(("\n", "\n", "\r\n", "\r")).join(lines)
    data = text.encode(random.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")), "replace")
    return change_bytes(random, data) if random.random() < 0.3 else data


def _json_lines(random: Random) -> bytes:
    lines = []
    for row in _rows(random):
        if random.random() < 0.2:
            row[random.choice(_COLUMNS)] = hostile_value(random)
        lines.append(json_bytes(random, row) if random.random() < 0.4
                     else json.dumps(row, default=str).encode())  # fmt: skip
    data = random.choice((b"\n", b"\n", b"\n\n", b"")).join(lines)
    return change_bytes(random, data) if random.random() < 0.2 else data


def hostile_manifest(random: Random, folder: Path) -> None:
    """Writes a manifest (or a folder with one a split) and the clips that it may name."""
    for name in ("a.wav", "b.wav"):
        (folder / name).write_bytes(_clip("WAV", "PCM_16", 16_000, 1))
    os.mkfifo(folder / "pipe.wav")
    os.symlink("loop.wav", folder / "loop.wav")
    suffix = random.choice((".csv", ".tsv", ".jsonl", ".jsonl", ".csv", ".json"))
    name = random.choice(("train", "train", "m")) + suffix
    if random.random() < 0.02:
        os.symlink(random.choice((name, "/dev/zero", OUTSIDE, "/nowhere", ".")), folder / name)
        return
    data = _json_lines(random) if suffix.startswith(".json") else _table(random, "\t" if suffix == ".tsv" else ",")
    (folder / name).write_bytes(data)


def _make_manifest(random: Random, place: Place) -> None:
    hostile_manifest(random, place.folder)


def _read_manifest(random: Random, place: Place) -> None:
    check_manifest(random, place.folder, place.root / "tmp")


def check_manifest(random: Random, folder: Path, cache: Path) -> None:
    """Loads the rows and prepares the clips, as a run does; every clip that is left can be decoded."""
    path = next(
        (path for path in sorted(folder.iterdir()) if path.suffix in (".csv", ".tsv", ".jsonl", ".json")), folder
    )
    name = str(path if random.random() < 0.7 or path.stem != "train" else folder)
    data, task = DataArguments(dataset_name=name), random.choice(("fleurs-asr", "fleurs-asr", "fleurs-lang_id"))
    if random.random() < 0.05:
        name = str(folder)
    selection = select_task(task=task, dataset_name=name)
    raw = load_splits(data, selection, {"train": SplitRequest("train")})["train"]
    require(len(raw) == len(raw.languages) == len(raw.clip_names) > 0, raw)
    durations = read_durations(raw, cache_dir=cache, overwrite=True, num_workers=1, show_progress=False)
    require(len(durations.num_samples) == len(raw) and bool((durations.num_samples >= 0).all()), durations)
    if selection.task.kind != "ctc":
        require(raw.label_names is not None, raw)
        return
    texts = [clean(text, ()) for text in raw.targets() if text is not None]
    tokenizer = CharacterTokenizer(
        build_vocabulary(texts, unk_token="[UNK]", pad_token="[PAD]", word_delimiter_token="|")
    )
    split = prepare(raw, kind="ctc", num_frames=lambda samples: samples // 320, tokenizer=tokenizer, cache_dir=cache,
                    num_workers=1, show_progress=False)  # fmt: skip
    for index in range(len(split)):
        require(len(split.read_audio(index)) == split.num_samples[index], split.clip_names[index])
        require(bool(np.all(split.labels[index] >= 0)), split.labels[index])


def hostile_transcripts(random: Random, folder: Path) -> None:
    """Writes a BABEL package with one transcript and its recording."""
    base = folder / "conversational" / "training"
    (base / "transcription").mkdir(parents=True)
    (base / "audio").mkdir()
    lines = []
    time = 0.0
    for _ in range(random.choice((2, 3, 6))):
        stamp = f"{time:.3f}" if random.random() < 0.85 else random.choice(("nan", "-1", "9" * 400, "1e5", "", "0.0.1"))
        lines += [
            f"[{stamp}]",
            random.choice(("habari <laugh> yako", "<no-speech>", "", "((", "\x00", "[", "é" * 5000)),
        ]
        time += 0.04
    text = "\n".join(lines[:-1] if random.random() < 0.9 else lines)
    data = text.encode(random.choice(("utf-8", "utf-8", "utf-8", "utf-16", "latin-1")), "replace")
    path = base / "transcription" / "conversation_1.txt"
    kind = random.random()
    if kind < 0.05:
        os.mkfifo(path)
    elif kind < 0.1:
        os.symlink(random.choice((path.name, "/dev/zero", "/nowhere")), path)
    else:
        path.write_bytes(change_bytes(random, data) if random.random() < 0.4 else data)
    sound = _clip("NIST", "PCM_16", 8000, 1)
    suffix = random.choice((".sph", ".wav", ".mp3"))
    (base / "audio" / f"conversation_1{suffix}").write_bytes(
        change_bytes(random, sound) if random.random() < 0.4 else sound
    )
    if random.random() < 0.1:
        os.mkfifo(base / "audio" / f"conversation_1{'.sph' if suffix != '.sph' else '.wav'}")


def _make_transcripts(random: Random, place: Place) -> None:
    hostile_transcripts(random, place.folder)


def _read_transcripts(random: Random, place: Place) -> None:
    check_transcripts(place.folder, place.root / "tmp")


def check_transcripts(folder: Path, cache: Path) -> None:
    """Reads a package as a run does, up to the headers of its recordings."""
    for segment in read_folder(folder / "conversational" / "training"):
        require(0 <= segment.start <= segment.end, segment)
    open_babel(str(folder)).load("babel.sw", "train")
    data = DataArguments(dataset_name="google/xtreme_s", data_dir=str(folder))
    selection = select_task(task="babel", language="sw", dataset_name="google/xtreme_s")
    raw = load_splits(data, selection, {"train": SplitRequest("train")})["train"]
    durations = read_durations(raw, cache_dir=cache, overwrite=True, num_workers=1, show_progress=False)
    require(bool((durations.num_samples >= 0).all()), durations)


READERS = {
    "manifest": Reader("manifest", _make_manifest, _read_manifest, also_named=("split train",)),
    "transcripts": Reader("transcripts", _make_transcripts, _read_transcripts, also_named=("babel.sw",)),
}
