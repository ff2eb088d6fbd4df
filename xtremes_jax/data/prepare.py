"""Rows of a split -> clips that can be trained on or scored: durations, labels, and what had to be left out and why.

Nothing is decoded and no audio is stored: durations come from headers, once, and are kept in a small file. What is left
out is either the user's wish (duration limits: counted in `PreparedSplit.filtered`) or a fault of the clip (listed in
`PreparedSplit.skipped`, and the run stops when there are too many: `check_skipped`).
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.data import audio
from xtremes_jax.data.cache import write_atomically
from xtremes_jax.data.characters import CharacterTokenizer
from xtremes_jax.data.durations import Durations, fingerprint, read_durations
from xtremes_jax.data.packed import PackedArrays, PackedTexts
from xtremes_jax.data.subwords import encode_targets
from xtremes_jax.data.text import TARGET_END, clean, encode_all
from xtremes_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Wav2Vec2CTCTokenizer

    from xtremes_jax.data.sources import RawSplit

logger = logging.getLogger(__name__)

Purpose = Literal["train", "score"]

_NAMED = 5  # clips and characters named in a message; the rest is counted


@dataclass(frozen=True)
class SkippedClip:
    """A clip that was left out because something is wrong with it."""

    split: str
    sample_id: int
    """Row of the clip in its split as it was loaded."""
    clip: str
    """What a person knows it by: its path or id."""
    reason: str


@dataclass(frozen=True)
class PreparedSplit:
    """The usable clips of one split, N of them. Pickles, so that worker processes can read the audio."""

    name: str
    raw: "RawSplit"
    rows: np.ndarray
    """`[N]` int64: row of each clip in `raw.dataset`, which is also its sample id."""
    num_samples: np.ndarray
    """`[N]` int64: exact length in samples at 16 kHz."""
    labels: Sequence[np.ndarray]
    """N arrays int32: `[tokens]` of text (translations end with the end token), `[1]` (the class) for classification;
    empty where `has_loss` is false, and for retrieval."""
    references: list[str]
    """What a prediction is compared with: the cleaned transcript or translation, the name of the class, or the
    sentence's id."""
    languages: list[str]
    clip_names: Sequence[str]
    has_loss: np.ndarray
    """`[N]` bool. False only in splits prepared for scoring: a clip too short for its transcript has no CTC alignment,
    and a translation may be longer than the decoder; such a clip counts in the score but has no loss."""
    is_float: bool
    """Whether any clip is float32 audio; the others are int16."""
    skipped: list[SkippedClip]
    filtered: dict[str, int]
    """Flag of a duration limit -> number of clips it left out."""
    unknown_characters: dict[str, int]
    """Character that the tokenizer's vocabulary lacks -> how often the references hold it."""
    fingerprint: str
    """Of the audio of these clips as it was prepared: differs wherever that does."""

    def __len__(self) -> int:
        return len(self.rows)

    def read_audio(self, index: int) -> np.ndarray:
        """Decodes clip `index` (0 to N - 1): `[samples]` mono at 16 kHz, int16, or float32 where the source is float.

        Raises:
            InputError: The clip cannot be decoded.
        """
        row = int(self.rows[index])
        return audio.decode(self.raw.audio(row), self.raw.segment(row))

    def for_workers(self) -> "PreparedSplit":
        """The same clips with only what a loader's worker process needs, packed so that it travels fast.

        Audio, labels and names are there; references, languages and what was left out are empty. Of a million clips a
        list of labels takes seconds and hundreds of megabytes to be pickled, in every worker.
        """
        return replace(
            self, raw=self.raw.for_workers(), labels=PackedArrays(self.labels), references=[], languages=[],
            clip_names=PackedTexts(self.clip_names), skipped=[], unknown_characters={},
        )  # fmt: skip


def prepare(
    raw: "RawSplit",
    *,
    kind: Literal["ctc", "classification", "translation", "retrieval"],
    num_frames: Callable[[int], int],
    tokenizer: "CharacterTokenizer | Wav2Vec2CTCTokenizer | PreTrainedTokenizerFast | None" = None,
    chars_to_ignore: Sequence[str] | None = None,
    max_target_length: int | None = None,
    start_token: int | None = None,
    purpose: Purpose = "train",
    min_duration: float = 0.0,
    max_duration: float | None = None,
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
    overwrite_cache: bool = False,
    show_progress: bool = True,
    in_pieces: bool = False,
    beat: Callable[[], None] = lambda: None,
) -> PreparedSplit:
    """Finds the usable clips of a split, their durations and labels.

    Args:
        raw: The split as it was loaded.
        kind: What is predicted: characters, one class, a translation, or which utterances are of one sentence.
        num_frames: Samples at 16 kHz -> frames of the encoder.
        tokenizer: Of text, turns cleaned transcripts or translations into labels.
        chars_to_ignore: Of text, see `text.clean`.
        max_target_length: Of translations, the most labels that the decoder has positions for.
        start_token: Of translations, what the decoder starts with: see `subwords.encode_targets`.
        purpose: "train" leaves out clips too short for their transcript or for a single frame, and translations that
            are too long. "score" keeps them, without loss (`has_loss`), because a model is answerable for every clip of
            a test set.
        min_duration, max_duration: Seconds; when training, clips not strictly between them are filtered out, as in the
            reference script.
        num_workers: Threads that read headers; None for one per CPU.
        cache_dir: Where durations are kept; None for `cache.default_cache_dir()`.
        overwrite_cache: Read all headers again.
        show_progress: Show a progress bar while headers are read.
        in_pieces: Whether clips may be of any length, as what is long is read in pieces: see `audio.probe`.
        beat: Called as they are read and when all is done, as a sign of life.

    Raises:
        InputError: A column holds the wrong kind of target, or no clip is left.
    """
    durations = read_durations(
        raw, num_workers=num_workers, cache_dir=cache_dir, overwrite=overwrite_cache, show_progress=show_progress,
        in_pieces=in_pieces, beat=beat,
    )  # fmt: skip
    reasons = dict(durations.reasons)
    rows, filtered = _readable(durations), {}
    if purpose == "train":
        rows, filtered = _within_limits(durations, rows, min_duration, max_duration)
    if kind == "retrieval":
        found = _sentences(raw, rows, reasons)
    elif kind == "classification":
        found = _classes(raw, rows, reasons)
    else:
        found = _texts(raw, rows, tokenizer, chars_to_ignore, kind, start_token, reasons)
    found = _fitting(found, durations, num_frames, kind, purpose, reasons, max_target_length)
    split = PreparedSplit(
        raw.name, raw, found.rows, durations.num_samples[found.rows], found.labels, found.references,
        languages=[raw.languages[row] for row in found.rows],
        clip_names=[raw.clip_names[row] for row in found.rows],
        has_loss=found.has_loss,
        is_float=bool(durations.is_float[found.rows].any()),
        skipped=[SkippedClip(raw.name, row, raw.clip_names[row], reasons[row]) for row in sorted(reasons)],
        filtered=filtered,
        unknown_characters=dict(found.unknown.most_common()),
        fingerprint=fingerprint(raw, durations, found.rows),
    )  # fmt: skip
    _report(split)
    beat()
    return split


def without(split: PreparedSplit, sample_ids: Collection[int]) -> PreparedSplit:
    """The split without the clips of these rows."""
    kept = [index for index, row in enumerate(split.rows) if int(row) not in sample_ids]
    if len(kept) == len(split):
        return split

    def of(values: Sequence) -> list:
        return [values[index] for index in kept]

    return replace(
        split, rows=split.rows[kept], num_samples=split.num_samples[kept], labels=of(split.labels),
        references=of(split.references), languages=of(split.languages), clip_names=of(split.clip_names),
        has_loss=split.has_loss[kept],
    )  # fmt: skip


def check_skipped(splits: Iterable[PreparedSplit], max_skipped_fraction: float, skipped_path: str | Path) -> None:
    """Stops a run that would leave out too many clips of a split.

    Args:
        splits: The prepared splits of the run.
        max_skipped_fraction: Of the clips of a split, as loaded.
        skipped_path: Where `write_skipped` listed them, for the message.

    Raises:
        InputError: A split has more bad clips than that; the message names the first few.
    """
    for split in splits:
        total = len(split.raw.clip_names)
        fraction = len(split.skipped) / total
        if fraction > max_skipped_fraction:
            raise InputError(
                f"{len(split.skipped)} of {total} clips ({fraction:.1%}) of split {split.name} cannot be used, more "
                f"than --max_skipped_fraction {max_skipped_fraction:g}:\n{_first(split.skipped)}\n"
                f"All are listed in {skipped_path}. Repair or remove them, or raise --max_skipped_fraction."
            )


def write_skipped(path: str | Path, skipped: Iterable[SkippedClip]) -> None:
    """Writes the clips that were left out, one JSON object a line: split, sample_id, clip, reason."""
    lines = [json.dumps(asdict(clip), ensure_ascii=False) + "\n" for clip in skipped]
    write_atomically(Path(path), "".join(lines))


@dataclass(frozen=True)
class _Labelled:
    """Rows with a usable target; see the fields of the same names in `PreparedSplit`."""

    rows: np.ndarray
    references: list[str]
    labels: list[np.ndarray]
    has_loss: np.ndarray
    unknown: Counter[str]


def _readable(durations: Durations) -> np.ndarray:
    return np.array([row for row in range(len(durations.num_samples)) if row not in durations.reasons], np.int64)


def _within_limits(
    durations: Durations, rows: np.ndarray, shortest: float, longest: float | None
) -> tuple[np.ndarray, dict[str, int]]:
    """Those of the rows strictly between the limits (in seconds), and how many each limit left out."""
    lengths = durations.num_samples[rows]
    too_short = lengths <= shortest * SAMPLE_RATE
    too_long = np.zeros_like(too_short) if longest is None else lengths >= longest * SAMPLE_RATE
    counts = {"--min_duration_in_seconds": int(too_short.sum()), "--max_duration_in_seconds": int(too_long.sum())}
    return rows[~(too_short | too_long)], {flag: count for flag, count in counts.items() if count}


def _texts(
    raw: "RawSplit",
    rows: np.ndarray,
    tokenizer: "CharacterTokenizer | Wav2Vec2CTCTokenizer | PreTrainedTokenizerFast | None",
    chars_to_ignore: Sequence[str] | None,
    kind: str,
    start_token: int | None,
    reasons: dict[int, str],
) -> _Labelled:
    """The rows that have a transcript or a translation."""
    if tokenizer is None:
        raise ValueError("a target of text needs a tokenizer")
    noun, targets = "transcript" if kind == "ctc" else "translation", raw.targets()
    texts: dict[int, str] = {}
    for row in map(int, rows):
        text = targets[row]
        if text is None:
            reasons[row] = f"it has no {noun}: column {raw.target_column} is null"
            continue
        if not isinstance(text, str):
            raise InputError(
                f"--target_column_name {raw.target_column}: {raw.clip_names[row]} has {text!r} there, which is no text."
            )
        cleaned = clean(text, chars_to_ignore)
        if cleaned.strip():
            texts[row] = cleaned
        else:
            reasons[row] = f"its {noun} {text!r} is empty" + (" after --chars_to_ignore" if text.strip() else "")
    references = [text.strip() for text in texts.values()]
    if kind == "ctc":
        labels, unknown = encode_all(tokenizer, [text + TARGET_END for text in texts.values()])
    else:  # the reference script's space at the end is nothing to a subword tokenizer
        labels, unknown = encode_targets(tokenizer, references, start_token=start_token)
    return _Labelled(np.array(list(texts), np.int64), references, labels, np.ones(len(texts), bool), unknown)


def _classes(raw: "RawSplit", rows: np.ndarray, reasons: dict[int, str]) -> _Labelled:
    """The rows whose class is known."""
    names, targets = raw.label_names, raw.targets()
    if names is None:
        raise InputError(f"--target_column_name {raw.target_column}: this column of {raw.name} holds no classes.")
    kept = []
    for row in map(int, rows):
        label = targets[row]
        if label is None:
            reasons[row] = f"it has no class: column {raw.target_column} is null, negative or none of its classes"
        elif not 0 <= label < len(names):
            reasons[row] = f"its class {label} in column {raw.target_column} is not one of 0 to {len(names) - 1}"
        else:
            kept.append(row)
    classes = [int(targets[row]) for row in kept]
    labels = [np.array([label], np.int32) for label in classes]
    references = [names[label] for label in classes]
    return _Labelled(np.array(kept, np.int64), references, labels, np.ones(len(kept), bool), Counter())


def _sentences(raw: "RawSplit", rows: np.ndarray, reasons: dict[int, str]) -> _Labelled:
    """The rows whose sentence is known; all of them where none is asked for, as of distractors."""
    if raw.target_column is None:
        texts = dict.fromkeys(map(int, rows), "")
    else:
        targets = raw.targets()
        texts = {int(row): str(targets[row]) for row in rows if targets[row] not in (None, "")}
        for row in map(int, rows):
            if row not in texts:
                reasons[row] = f"it has no sentence id: column {raw.target_column} is null or empty"
    labels = [np.zeros(0, np.int32)] * len(texts)
    has_loss = np.ones(len(texts), bool)
    return _Labelled(np.array(list(texts), np.int64), list(texts.values()), labels, has_loss, Counter())


def _fitting(
    found: _Labelled,
    durations: Durations,
    num_frames: Callable[[int], int],
    kind: str,
    purpose: Purpose,
    reasons: dict[int, str],
    max_target_length: int | None,
) -> _Labelled:
    """Without the clips that are too short for their target, and without translations that are too long for the
    decoder; for scoring with them, but without their labels."""
    frames = [int(num_frames(int(samples))) for samples in durations.num_samples[found.rows]]
    needed = [_frames_needed(labels) if kind == "ctc" else 1 for labels in found.labels]
    room = max_target_length if kind == "translation" and max_target_length is not None else np.inf
    fits_audio = np.array([there >= least for there, least in zip(frames, needed, strict=True)], bool)
    has_loss = fits_audio & np.array([len(labels) <= room for labels in found.labels], bool)
    if purpose == "score":
        labels = [labels if fits else labels[:0] for labels, fits in zip(found.labels, has_loss, strict=True)]
        return replace(found, labels=labels, has_loss=has_loss)
    for index in np.flatnonzero(~has_loss):
        reasons[int(found.rows[index])] = (
            f"its translation has {len(found.labels[index])} tokens, the decoder {max_target_length} positions"
            if fits_audio[index]
            else _too_short(frames[index], needed[index], found.references[index])
        )
    kept = np.flatnonzero(has_loss)
    references, labels = ([values[index] for index in kept] for values in (found.references, found.labels))
    return _Labelled(found.rows[kept], references, labels, has_loss[kept], found.unknown)


def _frames_needed(labels: np.ndarray) -> int:
    """CTC has a blank between equal neighbours, so each such pair takes one frame more."""
    return len(labels) + int(np.sum(labels[1:] == labels[:-1]))


def _too_short(frames: int, needed: int, reference: str) -> str:
    if frames < 1:
        return "its audio is too short for a single frame of the encoder"
    text = reference if len(reference) <= 80 else reference[:80] + "…"
    return f"its transcript needs {needed} frames of the encoder, its audio has {frames}: is this it? {text!r}"


def _report(split: PreparedSplit) -> None:
    """One line about what is there, one for what is left out, one for characters without a token."""
    total = len(split.raw.clip_names)
    if not len(split):
        raise InputError(
            f"No clip of split {split.name} is left: of {total}, {len(split.skipped)} cannot be used, and "
            f"{sum(split.filtered.values())} are outside the duration limits "
            f"({', '.join(split.filtered) or 'none'}).\n{_first(split.skipped)}"
        )
    logger.info(
        "%s: %d clips, %.2f h; filtered: %s; skipped: %d.", split.name, len(split),
        split.num_samples.sum() / SAMPLE_RATE / 3600,
        ", ".join(f"{count} by {flag}" for flag, count in split.filtered.items()) or "none", len(split.skipped),
    )  # fmt: skip
    if split.skipped:
        logger.warning("%s: %d clips are left out:\n%s", split.name, len(split.skipped), _first(split.skipped))
    if not split.has_loss.all():
        logger.warning(
            "%s: %d clips are scored, but have no loss: their audio is too short for their target, or that too long.",
            split.name, np.sum(~split.has_loss),
        )  # fmt: skip
    if split.unknown_characters:
        counts = list(split.unknown_characters.items())
        shown = ", ".join(f"{character!r} ({count})" for character, count in counts[: 4 * _NAMED])
        logger.warning(
            "%s: %d characters of the targets are not in the tokenizer's vocabulary and become its unknown token: "
            "%s%s.", split.name, len(counts), shown, ", …" if len(counts) > 4 * _NAMED else "",
        )  # fmt: skip


def _first(skipped: Sequence[SkippedClip]) -> str:
    lines = [f"  {clip.clip}: {clip.reason}" for clip in skipped[:_NAMED]]
    return "\n".join(lines + ([f"  … and {len(skipped) - _NAMED} more"] if len(skipped) > _NAMED else []))
