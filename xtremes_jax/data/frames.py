"""Frames of the frozen front end, kept on disk between epochs and runs: bfloat16, memory-mapped, one slot a clip.

A store is a directory of two files without any header. `frames.bin` holds the slots end to end, `[frames, channels]`
bfloat16 each; where a slot lies and how large it is follows from the lengths of the clips. `index.bin` has a record for
each clip: its samples (0: nothing is stored), its frames and a checksum of all of it. A record is written after its
frames, and frames that do not match their checksum (a machine that lost power, a damaged disk, a second run that was
writing the same) count as not stored. So nothing read here has to be believed, and a store that was filled in part is
as good as a full one. What the frames depend on besides is in the directory's name: see `frontend_cache.py`.
"""

import fcntl
import logging
import os
import shutil
import stat
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xtremes_jax.data.cache import build_directory
from xtremes_jax.errors import InputError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Of both files."""

_DATA, _INDEX = "frames.bin", "index.bin"
_ATTEMPTS = 100
"""How often a store is made anew that other runs remove in the meantime."""

_RECORD = np.dtype([("samples", "<u4"), ("frames", "<u4"), ("check", "<u4")])
_BFLOAT16_BYTES = 2


@dataclass(frozen=True)
class Layout:
    """Where the frames of each of N clips lie in `frames.bin`."""

    capacities: np.ndarray
    """`[N]` int64: frames that there is room for."""
    channels: int

    @property
    def offsets(self) -> np.ndarray:
        """`[N]` int64: bytes before each clip's slot."""
        return np.cumsum(self.capacities) * self.frame_bytes - self.capacities * self.frame_bytes

    @property
    def frame_bytes(self) -> int:
        return self.channels * _BFLOAT16_BYTES

    @property
    def total_bytes(self) -> int:
        """Size of `frames.bin`."""
        return int(self.capacities.sum()) * self.frame_bytes

    @property
    def sizes(self) -> dict[str, int]:
        """Name of each file -> its bytes."""
        return {_DATA: self.total_bytes, _INDEX: len(self.capacities) * _RECORD.itemsize}


class FrameStore:
    """A store opened for writing, by the process that trains; several runs may have it open at a time.

    While it is open, `index.bin` is locked (shared, `flock`), and nobody removes it: a run that went on writing to
    files that are gone would have stored nothing.

    Args:
        folder: made when missing; one that does not have just the expected files is removed and made anew.
        layout: of its clips.
        afresh: remove what is there (`--overwrite_cache`).

    Raises:
        InputError: it cannot be made or written, there is not room for what is still to be stored, or it is to be
            removed and another run has it open.
    """

    def __init__(self, folder: Path, layout: Layout, *, afresh: bool = False):
        self.folder, self.layout = folder, layout
        self._offsets = layout.offsets
        self._index = self._data = None
        try:
            self._index = self._open_index(afresh)
            self._data = _open(folder / _DATA, os.O_RDWR)
        except OSError as error:
            self.close()
            raise InputError(
                f"--cache_frontend: {folder} cannot be written: {error.strerror or error}. Name another folder with "
                "--frontend_cache_dir, or drop the flag."
            ) from error
        self._records = np.memmap(folder / _INDEX, _RECORD, mode="r")

    @property
    def count(self) -> int:
        """Clips that are stored."""
        return int(np.count_nonzero(self._records["samples"]))

    def __len__(self) -> int:
        return len(self.layout.capacities)

    def write(self, clip: int, frames: np.ndarray, samples: int) -> bool:
        """Keeps the frames of a clip, unless they are there already or there are more than its slot holds.

        Args:
            clip: 0 to N - 1.
            frames: `[frames, channels]` of two bytes each: bfloat16 or its bits.
            samples: length of the audio that they were made of; not 0.

        Returns:
            Whether they were written.

        Raises:
            OSError: the disk is full or gone.
        """
        if self._records[clip]["samples"] or len(frames) > self.layout.capacities[clip]:
            return False
        data = np.ascontiguousarray(frames).view(np.uint8)
        record = np.array((samples, len(frames), _checksum(clip, samples, data)), _RECORD)
        _write_at(self._data, data, int(self._offsets[clip]))
        _write_at(self._index, record.reshape(1).view(np.uint8), clip * _RECORD.itemsize)
        return True

    def snapshot(self) -> "StoredFrames":
        """What is stored by now, to read from."""
        return StoredFrames(self.folder, self.layout, np.array(self._records))

    def others(self) -> tuple[int, int]:
        """How many stores of other clips or another front end lie beside this one, and the bytes they take up."""
        data = [path for path in self.folder.parent.glob(f"*/{_DATA}") if path.parent != self.folder]
        return len(data), sum(path.stat().st_blocks * 512 for path in data)

    def close(self) -> None:
        """Closes the files; may be called again."""
        for handle in (self._data, self._index):
            if handle is not None:
                os.close(handle)
        self._data = self._index = None

    def _remove_unless_sound(self, afresh: bool) -> None:
        if not self.folder.exists():
            return
        wrong = [name for name, size in self.layout.sizes.items() if _size(self.folder / name) != size]
        if wrong:
            logger.warning("%s: %s is not what was written there: it is made anew.", self.folder, " and ".join(wrong))
        if wrong or afresh:
            self._remove("drop --overwrite_cache" if afresh else "drop the flag")

    def _remove(self, otherwise: str) -> None:
        """Removes the store, unless another run has it open; FileNotFoundError where another run was quicker."""
        index = None
        # Without a regular file there is nothing to lock, and no run that could read what is there.
        if _size(self.folder / _INDEX) is not None:
            index = _open(self.folder / _INDEX, os.O_RDWR)
        try:
            if index is not None and not _lock(index, fcntl.LOCK_EX | fcntl.LOCK_NB):
                raise InputError(
                    f"--cache_frontend: {self.folder} is to be made anew, and another run is using it. Wait until that "
                    f"run has ended, name another folder with --frontend_cache_dir, or {otherwise}."
                )
            if index is not None and not _is_at(index, self.folder / _INDEX):
                raise FileNotFoundError(self.folder)
            # At one stroke: a store that loses one file after the other would look like one that is not sound.
            aside = Path(tempfile.mkdtemp(prefix=".removed-", dir=self.folder.parent))
            os.rename(self.folder, aside / self.folder.name)
            shutil.rmtree(aside)
        finally:
            if index is not None:
                os.close(index)

    def _open_index(self, afresh: bool) -> int:
        """`index.bin` of a sound store, made where there is none, and locked for as long as it is open."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS):
            try:
                self._remove_unless_sound(afresh)
                self._check_room()
                build_directory(self.folder, self._fill)
                index = _open(self.folder / _INDEX, os.O_RDWR)
            except FileNotFoundError:
                continue  # another run is removing it just now
            _lock(index, fcntl.LOCK_SH)  # waits for one that removes it
            if _is_at(index, self.folder / _INDEX):
                return index
            os.close(index)
        raise OSError(f"other runs have removed it {_ATTEMPTS} times")

    def _check_room(self) -> None:
        """The files are sparse: they take up what has been written, and the rest has to fit."""
        data = self.folder / _DATA
        held = data.stat().st_blocks * 512 if data.exists() else 0
        needed, free = self.layout.total_bytes - held, shutil.disk_usage(self.folder.parent).free
        if needed > free:
            raise InputError(
                f"--cache_frontend needs {needed / 2**30:.2f} GiB more in {self.folder.parent}, where "
                f"{free / 2**30:.2f} GiB are free. Delete the folders there that no run needs any more, name a folder "
                "on a larger disk with --frontend_cache_dir, train on less, or drop the flag."
            )

    def _fill(self, building: Path) -> None:
        for name, size in self.layout.sizes.items():
            with open(building / name, "wb") as file:
                file.truncate(size)


@dataclass(frozen=True)
class StoredFrames:
    """What a store held at one moment, for readers; pickles, so that worker processes can read too."""

    folder: Path
    layout: Layout
    records: np.ndarray
    """`[N]` of `index.bin`."""
    frames_of_edge: dict[int, int] | None = None
    """Padded length of a batch in samples -> in frames."""

    def __post_init__(self):
        object.__setattr__(self, "_offsets", self.layout.offsets)
        object.__setattr__(self, "_data", None)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_data": None}

    def for_edges(self, frames_of_edge: dict[int, int]) -> "StoredFrames":
        """The same for batches of these padded lengths."""
        return replace(self, frames_of_edge=frames_of_edge)

    @property
    def count(self) -> int:
        """Clips that are stored."""
        return int(np.count_nonzero(self.records["samples"]))

    def holds(self, clips: np.ndarray) -> bool:
        """Whether all of these clips are stored."""
        return bool(np.all(self.records["samples"][clips] > 0))

    def batch_bytes(self, rows: int, bucket_samples: int) -> int:
        """Size of the frames of a batch."""
        return rows * self.frames_of_edge[bucket_samples] * self.layout.frame_bytes

    def read(self, clips: np.ndarray, rows: int, bucket_samples: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The frames of a batch, and the samples that they were made of; None if any of them is damaged.

        Args:
            clips: `[n]`, n <= rows, all of them stored.
            rows: of the batch.
            bucket_samples: padded length of the batch in samples; a clip is cut to it.

        Returns:
            `[rows, frames, channels]` uint16, the bits of bfloat16, 0 past each clip's end; and `[n]` int32 samples.
        """
        if self._data is None:
            object.__setattr__(self, "_data", np.memmap(self.folder / _DATA, np.uint8, mode="r"))
        length = self.frames_of_edge[bucket_samples]
        batch = np.empty((rows, length, self.layout.channels), np.uint16)
        batch[len(clips) :] = 0
        samples = np.minimum(self.records["samples"][clips], bucket_samples).astype(np.int32)
        for row, clip in enumerate(map(int, clips)):
            frames = self._frames(clip)
            if frames is None:
                return None
            batch[row, : len(frames)] = frames[:length]
            batch[row, len(frames) :] = 0
        return batch, samples

    def _frames(self, clip: int) -> np.ndarray | None:
        """`[frames, channels]` uint16 of a clip; None where they do not match their checksum, which is taken back."""
        samples, count, check = (int(value) for value in self.records[clip])
        if count <= self.layout.capacities[clip]:
            start = int(self._offsets[clip])
            data = self._data[start : start + count * self.layout.frame_bytes]
            if _checksum(clip, samples, data) == check:
                return data.view(np.uint16).reshape(count, self.layout.channels)
        logger.warning("%s: the frames of clip %d are damaged: they are computed again.", self.folder, clip)
        index = _open(self.folder / _INDEX, os.O_RDWR)
        try:
            _write_at(index, np.zeros(1, _RECORD).view(np.uint8), clip * _RECORD.itemsize)
        finally:
            os.close(index)
        return None


def _checksum(clip: int, samples: int, data: np.ndarray) -> int:
    """CRC-32 of a clip's number, its samples and its frames `[bytes]` or `[frames, bytes]` uint8."""
    return zlib.crc32(data, zlib.crc32(np.array([clip, samples, data.size], "<u8")))


def _open(path: Path, flags: int) -> int:
    # A link could lead to any file of the user's, which would be written over.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _lock(handle: int, operation: int) -> bool:
    """`flock`, which ends when the file is closed; False where another process's lock is in the way."""
    try:
        fcntl.flock(handle, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning(
            "The file system of --cache_frontend's frames knows no locks (%s): start no run with --overwrite_cache "
            "while another uses them.", error.strerror,
        )  # fmt: skip
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one that lies there."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _size(path: Path) -> int | None:
    """Bytes of a regular file; None where there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _write_at(handle: int, data: np.ndarray, offset: int) -> None:
    """Writes `[bytes]` uint8 (of any shape), all of it. Not through a memory map: a full disk would end the process."""
    left = memoryview(data.reshape(-1))
    while left:
        written = os.pwrite(handle, left, offset)
        left, offset = left[written:], offset + written
