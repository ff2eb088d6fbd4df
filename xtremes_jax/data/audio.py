"""Encoded audio -> mono PCM at 16 kHz; durations from headers, without decoding.

libsndfile (soundfile) reads WAV, FLAC, OGG (Vorbis and Opus), MP3, NIST SPHERE and others, from memory or from disk;
soxr resamples. Nothing else is needed: no FFmpeg, no torch.
"""

import io
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
import soundfile
import soxr
from fsspec.implementations.local import LocalFileSystem

from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.data.containers import check_container
from xtremes_jax.data.mp3 import lacks_length, may_be_mp3, with_length_header
from xtremes_jax.errors import InputError

Source = bytes | str | Path
"""Encoded audio: the bytes of a file, or the path of one."""
Segment = tuple[float, float]
"""Start and end within a recording, in seconds."""

MAX_SECONDS = 3600.0
"""Longer clips are refused before any memory is spent on them: no utterance is an hour long, but a broken header can
say so. A segment is measured by itself, so the recording around it may be longer; and so may what is read in pieces."""

MAX_VALUES = 100_000_000
"""Most samples of a clip at its own rate, of all channels together: half an hour of mono at 48 kHz is 86 million. A few
kilobytes of FLAC can hold any amount of silence, which takes seconds to decode."""

_RATES = (2_000, 768_000)
_INTEGER_SUBTYPES = {"PCM_S8", "PCM_U8", "PCM_16", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "ALAC_16"}
_FLOAT_SUBTYPES = {"FLOAT", "DOUBLE"}
_SINGLE_SUBTYPES = {"FLOAT", "VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"}
_LOUDEST = 2.0**31  # float audio scaled like 32-bit integers is odd but usable; beyond it squares overflow float32
_BLOCK_SECONDS = 60
_BLOCK_VALUES = 2**24  # of all channels
_KEPT_BYTES = 2**25  # of memory that a thread keeps from clip to clip: a minute of stereo at 48 kHz is 23 MB
_MAX_UNTAGGED_BYTES = 2**28  # of an MP3 file that has to be read whole to learn its length: hours at any bit rate
_MAX_REMOTE_BYTES = 2**28  # of a file that is read into memory: half an hour of 24-bit stereo at 48 kHz


@dataclass(frozen=True)
class AudioInfo:
    """What a header says about a clip (or the segment of it that was asked for)."""

    num_samples_16k: int
    """Length of `decode`'s result, exactly."""
    sample_rate: int
    """Hz, of the file."""
    channels: int
    frames: int
    """Samples per channel at the file's own rate."""
    is_float: bool
    """Whether the file holds floating-point samples, and `decode` gives float32."""


def probe(source: Source, segment: Segment | None = None, *, in_pieces: bool = False) -> AudioInfo:
    """Reads the header of a clip, and checks that the file holds what its header promises.

    Args:
        source: Encoded audio. Bytes are not copied.
        segment: Part of the recording, in seconds; None for all of it.
        in_pieces: Whether it is to be read by `decode_pieces`, so that it may be of any length.

    Raises:
        InputError: The clip is missing, empty, no audio, truncated, absurdly long, or the segment lies outside it.
    """
    with _opened(source) as file:
        start, frames = _span(file, segment, in_pieces)
        # FLAC and MP3 state a length that has nothing to do with the file's size: look whether the end is there.
        if file.format in ("FLAC", "MP3"):
            _seek(file, start + frames - 1)
            if len(file.read(1)) != 1:
                raise InputError(f"it is truncated: {file.frames:,} samples were promised, and the end is missing")
        rate, is_float = file.samplerate, file.subtype in _FLOAT_SUBTYPES
        return AudioInfo(num_samples_16k(frames, rate), rate, file.channels, frames, is_float)


def decode(source: Source, segment: Segment | None = None) -> np.ndarray:
    """Decodes a clip to mono at 16 kHz; several channels are averaged.

    Integer PCM of 16 bits at 16 kHz comes out bit for bit; everything else is computed in floating point and rounded
    once at the end. Resampling is soxr's HQ.

    Args:
        source: Encoded audio.
        segment: Part of the recording, in seconds; only that part is read.

    Returns:
        `[samples]` int16; float32 where the file holds floating-point samples (1.0 is full scale, larger values stay).

    Raises:
        InputError: As `probe`, or the samples hold NaN or infinity, or are corrupt or fewer than promised.
    """
    blocks = list(_decode(source, segment, in_pieces=False))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def decode_pieces(source: Source, segment: Segment | None = None) -> Iterator[np.ndarray]:
    """The same samples as `decode` gives, bit for bit, piece by piece: memory does not grow with their number.

    A piece is what a minute of the recording gives, or less. Errors come with the piece that they are in.
    """
    return _decode(source, segment, in_pieces=True)


def _decode(source: Source, segment: Segment | None, in_pieces: bool) -> Iterator[np.ndarray]:
    with _opened(source) as file:
        start, frames = _span(file, segment, in_pieces)
        _seek(file, start)  # to 0 as well: MP3 decodes otherwise without it, by a step in some samples
        is_float = file.subtype in _FLOAT_SUBTYPES
        resample = _resampler(file.samplerate, in_one_piece=frames <= _frames_at_a_time(file))
        done = 0
        for mono in _read_mono(file, start, frames):
            done += len(mono)
            yield _stored(resample(mono, done == frames), is_float)


def _resampler(rate: int, *, in_one_piece: bool) -> Callable[[np.ndarray, bool], np.ndarray]:
    """A function of the next samples at `rate` Hz, and whether they are the last: as many as there are at 16 kHz.

    All in one piece or piece by piece, the samples are the same bit for bit.
    """
    if rate == SAMPLE_RATE:
        return lambda samples, last: samples
    if in_one_piece:
        return lambda samples, last: soxr.resample(_single(samples), rate, SAMPLE_RATE, quality="HQ")
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    return lambda samples, last: stream.resample_chunk(_single(samples), last=last)


def _single(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.float32, copy=False)


def _stored(samples: np.ndarray, is_float: bool) -> np.ndarray:
    """A copy of the samples in the type that `decode` gives; what it is given may be overwritten."""
    if is_float:
        return samples.astype(np.float32)
    if samples.dtype == np.int16:
        return samples.copy()
    # In place: the samples are ours, from the resampler or in this thread's memory.
    np.multiply(samples, 32768, out=samples)
    np.clip(np.rint(samples, out=samples), -32768, 32767, out=samples)
    return samples.astype(np.int16)


def num_samples_16k(frames: int, sample_rate: int) -> int:
    """Length at 16 kHz of `frames` samples at `sample_rate` Hz, as soxr gives it: rounded, halves upwards."""
    return (2 * frames * SAMPLE_RATE + sample_rate) // (2 * sample_rate)


def stored_source(stored: Mapping[str, Any] | None) -> bytes | Path:
    """Encoded audio of one value of an audio column, `{"bytes": …, "path": …}`: bytes, or the path of a file.

    Raises:
        InputError: It holds neither, or its remote file cannot be read.
    """
    stored = stored or {}
    if stored.get("bytes") is not None:
        return stored["bytes"]
    path = stored.get("path")
    if not path:
        raise InputError("the row has no audio, neither bytes nor a path")
    if "://" not in path:
        return Path(path)
    try:
        files, inside = fsspec.core.url_to_fs(path)
        if isinstance(files, LocalFileSystem):  # file://…, which may be a pipe or a device: a path is looked at first
            return Path(inside)
        with files.open(inside, "rb") as file:
            content = file.read(_MAX_REMOTE_BYTES + 1)
    except Exception as error:  # every file system has its own exceptions
        raise InputError(f"{path} cannot be read: {error}") from error
    if len(content) > _MAX_REMOTE_BYTES:
        raise InputError(f"{path} is larger than {_MAX_REMOTE_BYTES >> 20} MiB. Copy it here, and give its path.")
    return content


def _seek(file: soundfile.SoundFile, frame: int) -> None:
    file.seek(frame)
    _require_inside(file)


def _require_inside(file: soundfile.SoundFile) -> None:
    """In a damaged MP3, libsndfile may come out past the end; soundfile then asks for an array of negative size."""
    if file.tell() > file.frames:
        raise InputError(f"it is corrupt: its header promises {file.frames:,} samples, decoding it leads past them")


def _frames_at_a_time(file: soundfile.SoundFile) -> int:
    """So that memory grows with the samples that are kept, not with what a header promises or many channels hold."""
    return min(_BLOCK_SECONDS * file.samplerate, _BLOCK_VALUES // file.channels)


def _read_mono(file: soundfile.SoundFile, start: int, frames: int) -> Iterator[np.ndarray]:
    """The mean of all channels, block by block: `[samples]`, which the next block overwrites.

    16-bit integers where nothing has to be computed with them, else floating point with 1.0 as full scale. It may lie
    in memory that the next call of this thread writes to.

    Raises:
        InputError: Fewer than `frames` are there, or one is no sound.
    """
    channels, rate = file.channels, file.samplerate
    is_float = file.subtype in _FLOAT_SUBTYPES
    dtype = _reading_dtype(file.subtype, channels, rate)
    done = 0
    while done < frames:
        wanted = min(frames - done, _frames_at_a_time(file))
        _require_inside(file)
        block = file.read(out=_thread_memory(wanted * channels, dtype).reshape(wanted, channels))
        if is_float:
            _require_finite(block, start + done, rate)
        done += len(block)
        if len(block) < wanted:
            raise InputError(f"it is truncated: {frames:,} samples were promised, {done:,} are there")
        yield block[:, 0] if channels == 1 else _mean(block)


def _reading_dtype(subtype: str, channels: int, rate: int) -> str:
    """The smallest type that holds what libsndfile's decoder computes, so that nothing is lost or moved in vain."""
    if channels == 1 and rate == SAMPLE_RATE and subtype in _INTEGER_SUBTYPES:
        return "int16"
    return "float32" if subtype in _INTEGER_SUBTYPES or subtype in _SINGLE_SUBTYPES else "float64"


def _mean(block: np.ndarray) -> np.ndarray:
    """`[frames, channels]` -> `[frames]` float64, channel by channel: NumPy is slow at rows of two."""
    total = block[:, 0].astype(np.float64)
    for channel in range(1, block.shape[1]):
        total += block[:, channel]
    total /= block.shape[1]
    return total


_memory = threading.local()


def _thread_memory(count: int, dtype: str) -> np.ndarray:
    """`[count]` uninitialised numbers, in memory of this thread that is used for clip after clip.

    Memory fresh from the system is mapped page by page as it is touched, which for a clip costs about as much time as
    decoding FLAC.
    """
    size = count * np.dtype(dtype).itemsize
    if size > _KEPT_BYTES:
        return np.empty(count, dtype)
    if len(getattr(_memory, "kept", ())) < size:
        _memory.kept = np.empty(size, np.uint8)
    return _memory.kept[:size].view(dtype)


def _require_finite(block: np.ndarray, offset: int, rate: int) -> None:
    bad = ~(np.abs(block) <= _LOUDEST).all(axis=1)  # NaN compares false, so it is bad as well
    if bad.any():
        at = int(np.argmax(bad))
        value = block[at][~(np.abs(block[at]) <= _LOUDEST)][0]
        raise InputError(f"sample {offset + at:,} (at {(offset + at) / rate:.3f} s) is {value:g}, which is no sound")


@contextmanager
def _opened(source: Source) -> Iterator[soundfile.SoundFile]:
    """The file, past all checks that need no decoding; whatever libsndfile says becomes an InputError."""
    where = "" if isinstance(source, bytes) else f"{source}: "
    try:
        if not isinstance(source, bytes):
            _require_file(source)
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            if size == 0:
                raise InputError("it is empty (0 bytes)")
            stream.seek(0)
            head = stream.read(1024)
            check_container(head, stream, size)
        with soundfile.SoundFile(_for_libsndfile(source, head)) as file:
            _check_header(file, size)
            yield file
    except soundfile.LibsndfileError as error:
        detail = error.error_string or "no detail"
        raise InputError(f"{where}it is damaged, or not audio that libsndfile can read ({detail})") from error
    except OSError as error:
        raise InputError(f"{where}it cannot be read: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"{where}{error}") from error


def _require_file(path: str | Path) -> None:
    """Refuses what is not a file before it is opened: that would wait for ever at a pipe that nobody writes to."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a null character
        raise InputError(f"it cannot be read: {error}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # open() itself says best what is wrong with a directory
        raise InputError("it is a pipe or a device, not a file")


class _Stream(io.BytesIO):
    """Bytes as a file that, asked by a damaged header to go before its start, stays where it is. What Python raises
    there, libsndfile does not see, and a traceback is printed."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def _for_libsndfile(source: Source, head: bytes) -> BinaryIO | str:
    if isinstance(source, bytes):
        return _Stream(with_length_header(source) if may_be_mp3(head) else source)
    if may_be_mp3(head):
        with open(source, "rb") as stream:
            lacking = lacks_length(stream)
        if lacking:
            if (size := os.stat(source).st_size) > _MAX_UNTAGGED_BYTES:
                raise InputError(
                    f"it is an MP3 file of {size:,} bytes that does not say how long it is, and too large to be "
                    "measured. Convert it, or give it a Xing or Info tag"
                )
            return _Stream(with_length_header(Path(source).read_bytes()))
    return str(source)


def _check_header(file: soundfile.SoundFile, size: int) -> None:
    if not _RATES[0] <= file.samplerate <= _RATES[1]:
        raise InputError(f"its header states {file.samplerate} samples a second, which no recording of speech has")
    if file.frames <= 0:
        raise InputError("it holds no samples")
    # No codec packs more than a second into a byte: a header that says so would only cost memory.
    if file.frames > size * file.samplerate:
        raise InputError(f"its header is broken: {file.frames / file.samplerate:,.0f} s in {size:,} bytes")


def _span(file: soundfile.SoundFile, segment: Segment | None, in_pieces: bool) -> tuple[int, int]:
    """First frame and number of frames to read; not too many where they are not read in pieces."""
    rate, total = file.samplerate, file.frames
    if segment is None:
        start, stop = 0, total
    else:
        if not 0 <= segment[0] < segment[1]:
            raise InputError(f"the segment from {segment[0]} s to {segment[1]} s is empty or starts before 0")
        beyond = total + rate + 1.0  # which infinity may be cut to before it is made a whole number
        start, stop = (round(min(second * rate, beyond)) for second in segment)
        if stop > total + rate or start >= total:
            raise InputError(
                f"the segment from {segment[0]} s to {segment[1]} s lies outside the recording of {total / rate:.2f} s"
            )
        stop = min(stop, total)  # time stamps are rounded: up to a second past the end is forgiven
    if stop <= start:
        raise InputError(f"the segment from {segment[0]} s to {segment[1]} s is shorter than one sample")
    if not num_samples_16k(stop - start, rate):
        raise InputError(f"it is shorter than one sample at {SAMPLE_RATE:,} Hz")
    if in_pieces:
        return start, stop - start
    if stop - start > MAX_SECONDS * rate:
        raise InputError(
            f"it is {(stop - start) / rate:,.0f} s long; at most {MAX_SECONDS:,.0f} s can be one clip. Cut it, or "
            "transcribe it in windows (chunk_length_s)"
        )
    if (stop - start) * file.channels > MAX_VALUES:
        raise InputError(
            f"it holds {(stop - start) * file.channels:,} samples ({file.channels} channels at {rate:,} Hz); at most "
            f"{MAX_VALUES:,} can be one clip. Resample it, mix its channels down, or "
            "transcribe it in windows (chunk_length_s)"
        )
    return start, stop - start
