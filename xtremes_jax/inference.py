"""Using a fine-tuned model on files of audio."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from xtremes_jax.data import audio
from xtremes_jax.data.collate import as_type
from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.decode import collapse, to_text
from xtremes_jax.loading import Model, load_model

_QUANTUM = 16_000
"""Clips are padded to whole seconds, so that few lengths are compiled."""


def transcribe(
    model_or_path: Model | str | Path,
    audio_files: str | Path | bytes | Iterable[str | Path | bytes],
    *,
    batch_size: int = 8,
) -> list[str]:
    """Transcribes audio files by greedy CTC decoding.

    Args:
        model_or_path: from `load_model`, or what it takes.
        audio_files: paths or contents of audio files (WAV, FLAC, OGG, Opus, MP3, SPHERE), of any rate and channels; one
            alone is taken as a list of one.
        batch_size: clips computed at a time; clips of about one length go together.

    Returns:
        One transcript a file, in the order given.

    Raises:
        InputError: a file cannot be read (it is named), or the model has no CTC head or no tokenizer.
    """
    model = model_or_path if isinstance(model_or_path, Model) else load_model(model_or_path)
    if model.config.head != "ctc":
        raise InputError(f"transcribe needs a model with a CTC head; this one is for {model.config.head}.")
    if model.tokenizer is None:
        raise InputError("The model's directory holds no vocab.json, so its output cannot be turned into text.")
    if isinstance(audio_files, (str, Path, bytes)):
        audio_files = [audio_files]
    waveforms = [_read(file) for file in audio_files]
    batch_size = min(batch_size, max(1, len(waveforms)))
    texts = [""] * len(waveforms)
    order = sorted(range(len(waveforms)), key=lambda i: len(waveforms[i]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        for index, text in zip(
            chosen, _transcribe_batch(model, [waveforms[i] for i in chosen], batch_size), strict=True
        ):
            texts[index] = text
    return texts


def _read(file: str | Path | bytes) -> np.ndarray:
    try:
        return audio.decode(file if isinstance(file, bytes) else Path(file))
    except InputError as error:
        name = f"{len(file)} bytes of audio" if isinstance(file, bytes) else file
        raise InputError(f"{name}: {error}") from error


def _transcribe_batch(model: Model, waveforms: list[np.ndarray], rows: int) -> list[str]:
    longest = max(len(waveform) for waveform in waveforms)
    # Float files stay float, as in training and scoring: rounding them would cost quiet ones most of their bits.
    dtype = np.dtype(np.float32 if any(waveform.dtype == np.float32 for waveform in waveforms) else np.int16)
    padded = np.zeros((rows, -(-max(longest, 1) // _QUANTUM) * _QUANTUM), dtype)
    for row, waveform in enumerate(waveforms):
        padded[row, : len(waveform)] = as_type(waveform, dtype)
    lengths = np.array([len(waveform) for waveform in waveforms] + [0] * (rows - len(waveforms)), np.int32)
    output = model(padded, lengths)
    ids = np.asarray(output.logits).argmax(axis=-1)
    frames = np.asarray(output.logit_lengths)
    return to_text(model.tokenizer, collapse(ids, frames, model.config.pad_token_id)[: len(waveforms)])
