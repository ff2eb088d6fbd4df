"""Using a fine-tuned model on files of audio."""

from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np

from xtremes_jax.data import audio
from xtremes_jax.data.collate import as_type
from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.decode import to_sentences, to_text
from xtremes_jax.loading import Model, Translator, load_model
from xtremes_jax.models import decode_ctc

_decode = jax.jit(decode_ctc, static_argnames=("blank", "beams"))

_QUANTUM = 16_000
"""Clips are padded to whole seconds, so that few lengths are compiled."""


def transcribe(
    model_or_path: Model | str | Path,
    audio_files: str | Path | bytes | Iterable[str | Path | bytes],
    *,
    batch_size: int = 8,
    beams: int = 1,
) -> list[str]:
    """Transcribes audio files by CTC decoding: the best path, or with several beams prefix beam search.

    Each file gives what it gives alone, also with models that take padding as silence.

    Args:
        model_or_path: from `load_model`, or what it takes.
        audio_files: paths or contents of audio files (WAV, FLAC, OGG, Opus, MP3, SPHERE), of any rate and channels; one
            alone is taken as a list of one.
        batch_size: clips computed at a time; clips of about one length go together.
        beams: of the search, as `--ctc_beams`.

    Returns:
        One transcript a file, in the order given.

    Raises:
        InputError: a file cannot be read (it is named), the model has no CTC head or no tokenizer, or `beams` is no
            whole number of at least 1.
    """
    model = load_model(model_or_path) if isinstance(model_or_path, (str, Path)) else model_or_path
    if isinstance(model, Translator):
        raise InputError("transcribe needs a model with a CTC head; this one translates: use xtremes_jax.translate.")
    if model.config.head != "ctc":
        raise InputError(f"transcribe needs a model with a CTC head; this one is for {model.config.head}.")
    if model.tokenizer is None:
        raise InputError("The model's directory holds no vocab.json, so its output cannot be turned into text.")

    model = model.with_padding_masked
    if isinstance(beams, bool) or not isinstance(beams, (int, np.integer)) or beams < 1:
        raise InputError(f"beams is {beams!r}; it must be a whole number of at least 1.")

    def text_of(audio: np.ndarray, lengths: np.ndarray) -> list[str]:
        output = model(audio, lengths)
        found = _decode(output.logits, output.logit_lengths, blank=model.config.pad_token_id, beams=int(beams))
        rows = zip(np.asarray(found.tokens).tolist(), np.asarray(found.lengths).tolist(), strict=True)
        return to_text(model.tokenizer, [tokens[:count] for tokens, count in rows])

    return _in_batches(text_of, audio_files, batch_size)


def translate(
    model_or_path: Translator | str | Path,
    audio_files: str | Path | bytes | Iterable[str | Path | bytes],
    *,
    batch_size: int = 8,
) -> list[str]:
    """Translates audio files, searching as the model's generation configuration says.

    Args:
        model_or_path, audio_files, batch_size: as `transcribe` takes them.

    Returns:
        One sentence a file, in the order given.

    Raises:
        InputError: a file cannot be read (it is named), or the model does not translate.
    """
    model = load_model(model_or_path) if isinstance(model_or_path, (str, Path)) else model_or_path
    if not isinstance(model, Translator):
        raise InputError("translate needs a speech encoder-decoder; this model has a head, and no decoder.")

    model = model.with_padding_masked

    def text_of(audio: np.ndarray, lengths: np.ndarray) -> list[str]:
        written = model(audio, lengths)
        rows = zip(np.asarray(written.tokens), np.asarray(written.lengths), strict=True)
        return to_sentences(model.tokenizer, [tokens[:count] for tokens, count in rows])

    return _in_batches(text_of, audio_files, batch_size)


def _in_batches(
    text_of: Callable[[np.ndarray, np.ndarray], list[str]],
    audio_files: str | Path | bytes | Iterable[str | Path | bytes],
    batch_size: int,
) -> list[str]:
    """`text_of(audio, audio_lengths)` of all files, in their order; files of about one length go together."""
    if isinstance(audio_files, (str, Path, bytes)):
        audio_files = [audio_files]
    waveforms = [_read(file) for file in audio_files]
    batch_size = min(batch_size, max(1, len(waveforms)))
    texts = [""] * len(waveforms)
    order = sorted(range(len(waveforms)), key=lambda i: len(waveforms[i]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        written = text_of(*_padded([waveforms[i] for i in chosen], batch_size))
        for index, text in zip(chosen, written[: len(chosen)], strict=True):
            texts[index] = text
    return texts


def _read(file: str | Path | bytes) -> np.ndarray:
    try:
        return audio.decode(file if isinstance(file, bytes) else Path(file))
    except InputError as error:
        name = f"{len(file)} bytes of audio" if isinstance(file, bytes) else file
        raise InputError(f"{name}: {error}") from error


def _padded(waveforms: list[np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """`[rows, samples]` audio in whole seconds, and `[rows]` lengths; rows past the waveforms are empty."""
    longest = max(len(waveform) for waveform in waveforms)
    # Float files stay float, as in training and scoring: rounding them would cost quiet ones most of their bits.
    dtype = np.dtype(np.float32 if any(waveform.dtype == np.float32 for waveform in waveforms) else np.int16)
    padded = np.zeros((rows, -(-max(longest, 1) // _QUANTUM) * _QUANTUM), dtype)
    for row, waveform in enumerate(waveforms):
        padded[row, : len(waveform)] = as_type(waveform, dtype)
    lengths = np.array([len(waveform) for waveform in waveforms] + [0] * (rows - len(waveforms)), np.int32)
    return padded, lengths
