"""BABEL: telephone conversations from the LDC's packages on the user's disk.

A package holds `conversational/training` and `conversational/dev`, each with `audio/*.sph` (NIST SPHERE, or `.wav`)
and `transcription/*.txt`. A transcript alternates time stamps in seconds with text:

    [0.000]
    <no-speech>
    [3.465]
    habari <laugh> yako
    [5.120]

Tags and clip names are treated as the loading script of `google/xtreme_s` does, with two differences. Runs of spaces,
such as a deleted tag leaves, become one space, and those at the ends go. And the script shuffles the segments before it
takes 90% for training; here whole recordings stay together, so that nobody's voice is in both splits.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import datasets

from xtremes_jax.data.repository import END, SPLIT_FLAGS, START, Repository, choose
from xtremes_jax.errors import InputError
from xtremes_jax.small_files import UnusableFile, read_text

logger = logging.getLogger(__name__)

PACKAGES = {
    "as": ("LDC2016S06", "102"),
    "ka": ("LDC2016S12", "404"),
    "lo": ("LDC2017S08", "203"),
    "sw": ("LDC2017S05", "202"),
    "tl": ("LDC2016S13", "106"),
}
"""Language -> the LDC's catalogue number and the IARPA programme's number of the language, as in directory names."""

SPLITS = {"train": "training", "validation": "training", "test": "dev"}
"""Split -> folder of the package it is taken from."""

TAGS = tuple(
    "(()) <no-speech> <sta> <int> <hes> <laugh> <breath> <foreign> <cough> <lipsmack> <click> <prompt> <dtmf> "
    "<overlap> <ring> <male-to-female> <female-to-male>".split()
)
"""Marks that stand for no word; other marks (`~`, `*…*`, `-`) stay in the text, as in `google/xtreme_s`."""

_TIME_STAMP = re.compile(r"\[(\d+(?:\.\d+)?)\]")
_SHARE = 0.9
_DEPTH = 4
_LARGEST_BYTES = 2**24  # of a transcript: one of ten minutes has 20,000


@dataclass(frozen=True)
class Segment:
    """One transcribed stretch of a recording; `start` and `end` in seconds."""

    name: str
    recording: Path
    start: float
    end: float
    text: str


def open_babel(data_dir: str | None) -> Repository:
    """Opens LDC packages as configs `babel.as`, `babel.ka`, `babel.lo`, `babel.sw`, `babel.tl`.

    Args:
        data_dir: One package, or a folder with several whose names hold the LDC's number (`LDC2017S05`) or the
            programme's (`BABEL_OP2_202`).

    Raises:
        InputError: `data_dir` is missing, or there is no package in it. When a config is loaded: its package is not
            there, a transcript has no recording or cannot be read, or the audio is compressed with shorten.
    """
    if data_dir is None or not Path(data_dir).is_dir():
        given = "is needed" if data_dir is None else f"{data_dir} is not a directory: it is needed"
        numbers = ", ".join(f"{language} {number}" for language, (number, _) in PACKAGES.items())
        raise InputError(f"--data_dir {given} for BABEL: the folder of the LDC's unpacked packages ({numbers}).")
    packages = find_packages(Path(data_dir))
    if not packages:
        raise InputError(
            f"--data_dir {data_dir}: no folder conversational/training/transcription in it, at most {_DEPTH} levels "
            "down. Unpack the LDC's package and give its folder."
        )

    @cache
    def segments(language: str, folder: str) -> tuple[Segment, ...]:
        return tuple(read_folder(_package(packages, language, data_dir) / "conversational" / folder))

    def load(config: str, split: str) -> datasets.Dataset:
        if split not in SPLITS:
            raise choose(SPLIT_FLAGS, split, SPLITS, f"split in {config}")
        language = config.partition(".")[2]
        found = _share(segments(language, SPLITS[split]), split)
        logger.info("%s %s: %d segments from %s.", config, split, len(found), _package(packages, language, data_dir))
        return _to_dataset(found, language)

    return Repository(data_dir, tuple(f"babel.{language}" for language in PACKAGES), load)


def find_packages(root: Path) -> list[Path]:
    """Folders with `conversational/training/transcription`, `root` itself or at most four levels below it."""
    tail = "conversational/training/transcription"
    found = {path for depth in range(_DEPTH + 1) for path in root.glob("*/" * depth + tail) if path.is_dir()}
    return sorted(path.parents[2] for path in found)


def _package(packages: Sequence[Path], language: str, data_dir: str) -> Path:
    """The package of one language: by the numbers in its path, or the only one there is if its path names none."""
    ldc, number = PACKAGES[language]

    def names(path: Path, ldc: str, number: str) -> bool:
        return ldc in str(path).upper() or re.search(rf"babel[^/]*_{number}(?!\d)", str(path), re.I) is not None

    mine = [path for path in packages if names(path, ldc, number)]
    if not mine and len(packages) == 1 and not any(names(packages[0], *other) for other in PACKAGES.values()):
        mine = list(packages)
    if len(mine) != 1:
        found = ", ".join(str(path) for path in (mine or packages))
        raise InputError(
            f"babel.{language}: {'several packages' if mine else 'no package'} for it in --data_dir {data_dir} (found: "
            f"{found}). The path has to hold {ldc} or BABEL_…_{number}."
        )
    return mine[0]


def read_folder(folder: Path) -> list[Segment]:
    """Reads the transcripts of one folder, in the order of their names.

    Raises:
        InputError: There are none; one has no recording or cannot be read; a recording is compressed with shorten.
    """
    transcripts = sorted((folder / "transcription").glob("*.txt"))
    if not transcripts:
        raise InputError(f"There are no transcripts in {folder / 'transcription'}: is the LDC's package complete?")
    found = []
    for transcript in transcripts:
        recording = _recording(folder / "audio", transcript)
        spoken = [part for part in read_transcript(transcript) if part[2]]
        found += [
            Segment(f"{transcript.stem}_{number}", recording, start, end, text)
            for number, (start, end, text) in enumerate(spoken, 1)
        ]
    return found


def _recording(folder: Path, transcript: Path) -> Path:
    for suffix in (".sph", ".wav"):
        path = folder / f"{transcript.stem}{suffix}"
        if path.is_file():
            with path.open("rb") as file:
                header = file.read(1024)
            if header.startswith(b"NIST_1A") and b"shorten" in header.partition(b"end_head")[0]:
                raise InputError(
                    f"{path} is compressed with shorten, which cannot be read here. Unpack it with the LDC's sph2pipe, "
                    f"and likewise every other: sph2pipe -p -f wav {path.name} {path.stem}.wav; then remove the .sph."
                )
            return path
    raise InputError(f"{transcript} has no recording {transcript.stem}.sph or .wav in {folder}. Copy it there.")


def read_transcript(path: Path) -> list[tuple[float, float, str]]:
    """Reads (start in seconds, end in seconds, text without tags) of each stretch; the text may be empty.

    Raises:
        InputError: Not UTF-8, text outside the time stamps, or time stamps that fall.
    """
    try:
        lines = read_text(path, largest=_LARGEST_BYTES).splitlines()
    except UnusableFile as error:
        raise InputError(f"The transcript {path} {error}. Copy it again.") from error
    times: list[float] = []
    texts: list[list[str]] = []
    for number, line in enumerate(lines, 1):
        stamp = _TIME_STAMP.fullmatch(line.strip())
        if stamp:
            times.append(float(stamp[1]))
            texts.append([])
        elif line.strip() and not times:
            raise InputError(f"{path}, line {number}: text before the first time stamp, such as [0.000].")
        elif line.strip():
            texts[-1].append(line)
    if len(times) < 2 or any(later < earlier for earlier, later in zip(times, times[1:], strict=False)):
        raise InputError(f"The transcript {path} has no rising time stamps, such as [0.000] and [3.465].")
    if texts[-1]:
        raise InputError(f"{path}: text after the last time stamp, [{times[-1]:.3f}]. Is the file cut off?")
    return [(start, end, clean_tags(" ".join(text))) for start, end, text in zip(times, times[1:], texts, strict=False)]


def clean_tags(text: str) -> str:
    """Text without the tags that stand for no word, its words separated by single spaces."""
    for tag in TAGS:
        text = text.replace(tag, " ")
    return " ".join(text.split())


def _share(segments: tuple[Segment, ...], split: str) -> tuple[Segment, ...]:
    """The first 90% of the training recordings for `train`, the rest for `validation`; all of them for `test`.

    Of fewer than ten recordings, a tenth is not one: then it is 90% of the segments.
    """
    if split == "test":
        return segments
    recordings = list(dict.fromkeys(segment.recording for segment in segments))
    if len(recordings) < 10:
        cut = int(_SHARE * len(segments))
    else:
        kept = set(recordings[: int(_SHARE * len(recordings))])
        cut = sum(segment.recording in kept for segment in segments)  # they come recording by recording
    return segments[:cut] if split == "train" else segments[cut:]


def _to_dataset(segments: Sequence[Segment], language: str) -> datasets.Dataset:
    if not segments:
        raise InputError(f"babel.{language}: no transcribed segment is left. Is the LDC's package complete?")
    text, seconds = datasets.Value("string"), datasets.Value("float64")
    features = {"path": text, "audio": text, "transcription": text, "language": text, START: seconds, END: seconds}
    columns = {
        "path": [segment.name for segment in segments],
        "audio": [str(segment.recording.absolute()) for segment in segments],
        "transcription": [segment.text for segment in segments],
        "language": [language] * len(segments),
        START: [segment.start for segment in segments],
        END: [segment.end for segment in segments],
    }
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    return table.cast_column("audio", datasets.Audio(decode=False))
