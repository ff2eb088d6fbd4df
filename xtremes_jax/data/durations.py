"""The length of every clip of a split, from headers alone, read once and kept in a small file.

The file is named after the rows (their fingerprint) and remembers size and time of each audio file outside the data
set: rows whose file has changed since are read again, so a repaired clip is found without `--overwrite_cache`.
"""

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from xtremes_jax.data import audio
from xtremes_jax.data.cache import default_cache_dir, write_atomically
from xtremes_jax.errors import InputError
from xtremes_jax.processors import available_cpus
from xtremes_jax.small_files import read_object
from xtremes_jax.streams import STDERR

if TYPE_CHECKING:
    from xtremes_jax.data.sources import RawSplit

logger = logging.getLogger(__name__)

_CHUNK = 64
"""Rows that a thread is given at a time: enough that handing them over costs nothing, and few enough that the audio of
a chunk for each thread fits in memory, where rows were picked out of a larger table and Arrow has to copy them."""

_UNDER_WAY = 64
"""Chunks handed out at a time."""

_LARGEST_BYTES = 2**30
"""Of the file: a million rows with names of a hundred characters take a sixth of it."""

_VERSION = 1  # of the file's format and of what `audio.probe` accepts


@dataclass(frozen=True)
class Durations:
    """What the headers of all rows of a split say."""

    num_samples: np.ndarray
    """`[rows]` int64: samples at 16 kHz; 0 where the clip cannot be read."""
    is_float: np.ndarray
    """`[rows]` bool: floating-point audio."""
    reasons: dict[int, str]
    """Row -> why its clip cannot be read."""
    files: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    """Audio file -> its size in bytes and time of change in ns; None where there is no such file."""
    file_of_row: dict[int, str] = field(default_factory=dict)
    """Row -> audio file, for rows whose audio is not in the data set itself."""


def read_durations(
    raw: "RawSplit",
    *,
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
    in_pieces: bool = False,
    beat: Callable[[], None] = lambda: None,
) -> Durations:
    """Reads the headers of a split's clips in parallel, or what an earlier run kept of them.

    Args:
        raw: The split.
        num_workers: Threads; None for one for each core that this process may use.
        cache_dir: Where the results are kept; None for `cache.default_cache_dir()`.
        overwrite: Read all headers again.
        show_progress: Show a progress bar.
        in_pieces: Whether clips may be of any length: see `audio.probe`.
        beat: Called after each header, as a sign of life.
    """
    cache = (
        (Path(cache_dir) if cache_dir is not None else default_cache_dir())
        / "durations"
        / f"{_key(raw, in_pieces)}.json"
    )
    known = None if overwrite else _load(cache, len(raw.clip_names))
    with ThreadPoolExecutor(num_workers or available_cpus()) as pool:
        stale = range(len(raw.clip_names)) if known is None else _changed(known, pool)
        if not len(stale):
            return known
        if known is None:
            count = len(raw.clip_names)
            known = Durations(np.zeros(count, np.int64), np.zeros(count, bool), {})
        _probe_rows(raw, stale, known, pool, show_progress, in_pieces, beat)
    try:
        write_atomically(cache, _to_json(known))
    except OSError as error:
        logger.warning("Durations are not kept for the next run: %s cannot be written (%s).", cache, error)
    return known


def fingerprint(raw: "RawSplit", durations: Durations, rows: np.ndarray) -> str:
    """Differs wherever these rows' audio does: another data set, other columns, an audio file that has changed.

    Args:
        raw: The split.
        durations: Of all its rows.
        rows: `[N]` rows in use.
    """
    files = sorted({durations.file_of_row[row] for row in map(int, rows) if row in durations.file_of_row})
    stamps = [[file, durations.files[file]] for file in files]
    used = hashlib.sha256(rows.tobytes() + durations.num_samples[rows].tobytes()).hexdigest()
    return hashlib.sha256(json.dumps([_key(raw), used, stamps]).encode()).hexdigest()


def _key(raw: "RawSplit", in_pieces: bool = False) -> str:
    """Differs wherever the rows or their audio do.

    `datasets` fingerprints casts and selections, but of the files of a directory it knows the names alone: what it made
    of them before they were changed has the same fingerprint as what it made of them since, and another time.
    """
    tables = [(file["filename"], _stamp(file["filename"])) for file in raw.dataset.cache_files]
    identity = [_VERSION, tables, raw.dataset._fingerprint, len(raw.clip_names), raw.audio_column]
    identity.append("in pieces" if in_pieces else audio.MAX_SECONDS)
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]


def _probe_rows(
    raw: "RawSplit",
    rows: Sequence[int],
    into: Durations,
    pool: ThreadPoolExecutor,
    show_progress: bool,
    in_pieces: bool,
    beat: Callable[[], None],
) -> None:
    """Fills in the given rows."""
    probed: set[str] = set()
    bar = tqdm(
        _in_chunks(pool, lambda chunk: _probe_chunk(raw, chunk, in_pieces), rows),
        f"{raw.name}: durations", len(rows), unit=" clips", disable=not show_progress, leave=False, file=STDERR,
    )  # fmt: skip
    for row, (info, file) in zip(rows, bar, strict=True):
        beat()
        readable = not isinstance(info, str)
        into.num_samples[row] = info.num_samples_16k if readable else 0
        into.is_float[row] = readable and info.is_float
        into.reasons.pop(row, None)
        if not readable:
            into.reasons[row] = info
        if file is not None:
            into.file_of_row[row] = file
            probed.add(file)
    # Once a file, however many of its segments are rows.
    into.files.update(_stamps(sorted(probed), pool))


def _probe_chunk(
    raw: "RawSplit", rows: Sequence[int], in_pieces: bool
) -> list[tuple[audio.AudioInfo | str, str | None]]:
    """What each row's header says, or why it cannot be read; and the file it lies in, outside the data set."""
    if rows[-1] - rows[0] + 1 == len(rows):
        rows = range(rows[0], rows[-1] + 1)  # a slice of the table, not a copy
    found = []
    for row, stored in zip(rows, raw.stored(rows), strict=True):
        file = None
        try:
            source = audio.stored_source(stored)
            if not isinstance(source, bytes):
                file = os.path.abspath(source)
            found.append((audio.probe(source, raw.segment(row), in_pieces=in_pieces), file))
        except InputError as error:
            found.append((str(error), file))
    return found


def _in_chunks(pool: ThreadPoolExecutor, function: Callable[[Sequence], Sequence], items: Sequence) -> Iterator[Any]:
    """`function`'s results for the items in their order; few chunks are under way at a time, however many there are."""
    under_way: deque[Future] = deque()
    for first in range(0, len(items), _CHUNK):
        under_way.append(pool.submit(function, items[first : first + _CHUNK]))
        if len(under_way) > _UNDER_WAY:
            yield from under_way.popleft().result()
    while under_way:
        yield from under_way.popleft().result()


def _stamps(files: Sequence[str], pool: ThreadPoolExecutor) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """Each file with its stamp. In parallel, because on a file system over a network each waits for an answer."""
    yield from zip(files, _in_chunks(pool, lambda chunk: [_stamp(file) for file in chunk], files), strict=True)


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # ValueError: a null character in a path
        return None
    return status.st_size, status.st_mtime_ns


def _changed(known: Durations, pool: ThreadPoolExecutor) -> list[int]:
    """Rows whose audio file is not what it was."""
    changed = {file for file, stamp in _stamps(list(known.files), pool) if known.files[file] != stamp}
    return [row for row, file in known.file_of_row.items() if file in changed]


def _to_json(durations: Durations) -> str:
    numbers = {file: number for number, file in enumerate(durations.files)}
    return json.dumps({
        "num_samples": durations.num_samples.tolist(),
        "float_rows": np.flatnonzero(durations.is_float).tolist(),
        "reasons": durations.reasons,
        "files": [[file, stamp] for file, stamp in durations.files.items()],
        "file_of_row": [[row, numbers[file]] for row, file in durations.file_of_row.items()],
    })  # fmt: skip


def _load(cache: Path, count: int) -> Durations | None:
    """What an earlier run kept; None if there is nothing that can be used."""
    if not cache.exists():
        return None
    try:
        return _from_json(read_object(cache, largest=_LARGEST_BYTES), count)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        logger.warning("The durations kept in %s cannot be used (%s): all headers are read again.", cache, error)
        return None


def _from_json(stored: dict[str, Any], count: int) -> Durations:
    """The inverse of `_to_json` for `count` rows; one of the errors that `_load` catches where it is none."""
    num_samples = np.array(stored["num_samples"], np.int64)
    if num_samples.shape != (count,) or (num_samples < 0).any():
        raise ValueError("it is of other rows")
    known = range(count)
    reasons = {int(row): str(reason) for row, reason in dict(stored["reasons"]).items()}
    files = {os.fspath(file): stamp and (int(stamp[0]), int(stamp[1])) for file, stamp in stored["files"]}
    names = list(files)
    file_of_row = {row: names[number] for row, number in stored["file_of_row"] if number in range(len(names))}
    float_rows = [*stored["float_rows"]]
    if not all(type(row) is int and row in known for row in (*reasons, *float_rows, *file_of_row)):
        raise ValueError("it names rows that there are not")
    is_float = np.zeros(count, bool)
    is_float[float_rows] = True
    return Durations(num_samples, is_float, reasons, files, file_of_row)
