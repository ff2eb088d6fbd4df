"""Using a fine-tuned model on files of audio."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.data import audio
from xtremes_jax.data.collate import as_type
from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.decode import to_sentences, to_text
from xtremes_jax.loading import Model, Translator, load_model
from xtremes_jax.long_recordings import LONG_SECONDS, Joiner, WindowBatches
from xtremes_jax.models import Windowing, decode_ctc, windowing
from xtremes_jax.models.ctc_windows import for_decoding
from xtremes_jax.training.ahead import is_out_of_memory

logger = logging.getLogger(__name__)

File = str | Path | bytes
"""The path of an audio file, or its contents."""

_decode = jax.jit(decode_ctc, static_argnames=("blank", "beams"))
_for_decoding = jax.jit(for_decoding, static_argnums=1)

_QUANTUM = 16_000
"""Clips are padded to whole seconds, so that few lengths are compiled."""


def transcribe(
    model_or_path: Model | str | Path,
    audio_files: File | Iterable[File],
    *,
    batch_size: int = 8,
    beams: int = 1,
    chunk_length_s: float | None = None,
    stride_length_s: float | Sequence[float] | None = None,
) -> list[str]:
    """Transcribes audio files by CTC decoding: the best path, or with several beams prefix beam search.

    Each file gives what it gives alone, also with models that take padding as silence.

    Args:
        model_or_path: from `load_model`, or what it takes.
        audio_files: paths or contents of audio files (WAV, FLAC, OGG, Opus, MP3, SPHERE), of any rate and channels; one
            alone is taken as a list of one.
        batch_size: clips computed at a time; clips of about one length go together.
        beams: of the search, as `--ctc_beams`.
        chunk_length_s: files longer than so many seconds are read, and computed, in overlapping windows of that length,
            `batch_size` at a time, which are joined on their logits: memory does not grow with the length. None: every
            file in one pass, which takes memory with the square of its length.
        stride_length_s: seconds at the left and right end of a window that are cut off its logits: one number for both,
            or two; None: a sixth of `chunk_length_s`.

    Returns:
        One transcript a file, in the order given.

    Raises:
        InputError: a file cannot be read (it is named) or is too long for one pass, the model has no CTC head or no
            tokenizer, `beams` or `batch_size` is no whole number of at least 1, or the strides leave nothing of the
            windows.
    """
    model = _recogniser(model_or_path).with_padding_masked
    beams, batch_size = _count("beams", beams), _count("batch_size", batch_size)
    if chunk_length_s is None and stride_length_s is not None:
        raise InputError("stride_length_s needs chunk_length_s, the length of the windows.")

    def text_of(audio: np.ndarray, lengths: np.ndarray) -> list[str]:
        output = model(audio, lengths)
        found = _decode(output.logits, output.logit_lengths, blank=model.config.pad_token_id, beams=beams)
        rows = zip(np.asarray(found.tokens).tolist(), np.asarray(found.lengths).tolist(), strict=True)
        return to_text(model.tokenizer, [tokens[:count] for tokens, count in rows])

    files = _listed(audio_files)
    if chunk_length_s is None:
        return _in_batches(text_of, files, batch_size, advice="Give chunk_length_s=30: windows bound it.")
    cut = windowing(model.config, chunk_length_s, stride_length_s)
    infos = [_read(file, lambda source: audio.probe(source, in_pieces=True)) for file in files]
    is_long = [info.num_samples_16k > cut.length for info in infos]
    short = [file for file, long in zip(files, is_long, strict=True) if not long]
    longer = [(file, info) for file, info, long in zip(files, infos, is_long, strict=True) if long]
    in_one = iter(_in_batches(text_of, short, batch_size))
    in_windows = iter(_in_windows(model, longer, cut, batch_size, beams))
    return [next(in_windows if long else in_one) for long in is_long]


def translate(
    model_or_path: Translator | str | Path,
    audio_files: File | Iterable[File],
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

    model, batch_size = model.with_padding_masked, _count("batch_size", batch_size)

    def text_of(audio: np.ndarray, lengths: np.ndarray) -> list[str]:
        written = model(audio, lengths)
        rows = zip(np.asarray(written.tokens), np.asarray(written.lengths), strict=True)
        return to_sentences(model.tokenizer, [tokens[:count] for tokens, count in rows])

    return _in_batches(text_of, _listed(audio_files), batch_size)


def _recogniser(model_or_path: Model | str | Path) -> Model:
    """A model whose output can be read as transcripts."""
    model = load_model(model_or_path) if isinstance(model_or_path, (str, Path)) else model_or_path
    if isinstance(model, Translator):
        raise InputError("transcribe needs a model with a CTC head; this one translates: use xtremes_jax.translate.")
    if model.config.head != "ctc":
        raise InputError(f"transcribe needs a model with a CTC head; this one is for {model.config.head}.")
    if model.tokenizer is None:
        raise InputError("The model's directory holds no vocab.json, so its output cannot be turned into text.")
    return model


def _count(name: str, value: int) -> int:
    """An argument that has to be a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    return int(value)


def _listed(audio_files: File | Iterable[File]) -> list[File]:
    return [audio_files] if isinstance(audio_files, (str, Path, bytes)) else list(audio_files)


def _in_batches(
    text_of: Callable[[np.ndarray, np.ndarray], list[str]], files: list[File], batch_size: int, advice: str = ""
) -> list[str]:
    """`text_of(audio, audio_lengths)` of all files, in their order; files of about one length go together.

    Args:
        advice: what helps against files too long for one pass.
    """
    waveforms = [_read(file, audio.decode) for file in files]
    batch_size = min(batch_size, max(1, len(waveforms)))
    texts = [""] * len(waveforms)
    order = sorted(range(len(waveforms)), key=lambda i: len(waveforms[i]))
    if order and len(waveforms[order[-1]]) > LONG_SECONDS * SAMPLE_RATE:
        logger.warning("%s", _told(files[order[-1]], waveforms[order[-1]], advice))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        try:
            written = text_of(*_padded([waveforms[i] for i in chosen], batch_size))
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            told = _told(files[chosen[-1]], waveforms[chosen[-1]], advice)
            raise InputError(f"There is not enough memory for batches of {batch_size} clips. {told}") from error
        for index, text in zip(chosen, written[: len(chosen)], strict=True):
            texts[index] = text
    return texts


def _told(file: File, waveform: np.ndarray, advice: str) -> str:
    return (
        f"{_name(file)} is {len(waveform) / SAMPLE_RATE:,.0f} s long and computed in one pass, whose memory grows with "
        f"the square of its length. {advice}".rstrip()
    )


def _in_windows(
    model: Model, files: list[tuple[File, audio.AudioInfo]], cut: Windowing, batch_size: int, beams: int
) -> list[str]:
    """The transcripts of files that are longer than a window."""
    if not files:
        return []
    recordings = [(info.num_samples_16k, _opener(file)) for file, info in files]
    # Float files stay float, as in `_padded`.
    dtype = np.float32 if any(info.is_float for _, info in files) else np.int16
    total = sum(len(cut.plan(length)) for length, _ in recordings)
    batches = WindowBatches(recordings, cut, rows=min(batch_size, total), dtype=dtype)
    joiner = Joiner(batches, blank=model.config.pad_token_id, beams=beams)
    texts: list[str] = []
    for index, (rows, samples, lengths) in enumerate(
        tqdm(batches.read(), "windows", len(batches), unit="batch", delay=2, leave=False, dynamic_ncols=True)
    ):
        for row, place in zip(rows, batches.batch(index), strict=True):
            if isinstance(row, InputError):
                raise _named(files[place[0]][0], row) from row
        frames = np.asarray(_for_decoding(model(samples, lengths).logits, beams))
        # Recordings end in their order, and one that cannot be read has raised.
        texts += to_text(
            model.tokenizer, [tokens.tolist() for _, tokens in joiner.add(index, frames, [True] * len(rows))]
        )
    return texts


def _opener(file: File) -> Callable:
    return lambda: audio.decode_pieces(_source(file))


def _read(file: File, read: Callable) -> Any:
    """What `read` makes of a file; its errors name it."""
    try:
        return read(_source(file))
    except InputError as error:
        raise _named(file, error) from error


def _named(file: File, error: InputError) -> InputError:
    """The error with the file's name before it, once."""
    name = _name(file)
    return error if str(error).startswith(name) else InputError(f"{name}: {error}")


def _source(file: File) -> bytes | Path:
    return file if isinstance(file, bytes) else Path(file)


def _name(file: File) -> str:
    return f"{len(file)} bytes of audio" if isinstance(file, bytes) else str(file)


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
