"""What a run leaves for people and programs to read: JSON results, predictions, metrics.jsonl, TensorBoard events."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from xtremes_jax.errors import InputError


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes `values` whole or not at all; numbers that are not finite become null, which JSON can hold."""
    with _whole(path) as file:
        file.write((json.dumps(_plain(values), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, whole or not at all."""
    with _whole(path) as file:
        for row in rows:
            file.write((json.dumps(_plain(row), ensure_ascii=False) + "\n").encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a NumPy archive, whole or not at all; it loads with `numpy.load(path)`, without pickle."""
    with _whole(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when all of it is on the disk.

    Raises:
        InputError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _explained(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Says what to do when a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}. Make room or mend the directory; the same command, "
            "without --overwrite_output_dir, then goes on from the last checkpoint."
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return _plain(value.item())
    return value


class RunLog:
    """Appends a run's numbers to `metrics.jsonl` and, when asked, to TensorBoard event files.

    The clips of every step go to `batches.jsonl`.

    Args:
        directory: the run's output directory.
        tensorboard_dir: where to write TensorBoard events; None writes none.
        resume_step: lines of later steps are dropped: a resumed run writes them again.
        writes: False in those of a run's processes that leave all this to the first one.
        evaluation_owed: it evaluates at that step again, so a line that an earlier process has written of it goes too.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tensorboard_dir: Path | None,
        resume_step: int,
        writes: bool = True,
        evaluation_owed: bool = False,
    ):
        self.path = directory / "metrics.jsonl"
        self._writes, self._writer = writes, None
        if not writes:
            return
        self._file = _continued(self.path, resume_step, without="eval" if evaluation_owed else None)
        self._batches = _continued(directory / "batches.jsonl", resume_step)
        if tensorboard_dir is not None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(tensorboard_dir), purge_step=resume_step + 1 if resume_step else None)

    def write(self, kind: str, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Writes a line. `kind` is "train" or a split's prefix ("eval", "predict")."""
        if not self._writes:
            return
        _append(self._file, {"kind": kind, "step": step, "epoch": round(epoch, 6), **values})
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)
            self._writer.flush()

    def write_batch(self, step: int, sample_ids: Sequence[int]) -> None:
        """Writes down which clips a step is made with: `sample_ids` are rows of the dataset."""
        if self._writes:
            _append(self._batches, {"step": step, "sample_ids": sample_ids})

    def write_nonfinite(self, step: int, count: int) -> Path:
        """Writes `nonfinite.jsonl`, in place of an earlier one: the last `count` steps and their clips; its path."""
        path = self.path.with_name("nonfinite.jsonl")
        if self._writes:
            steps = read_lines(self.path.with_name("batches.jsonl"))
            write_jsonl(path, (row for row in steps if step - count < row.get("step", 0) <= step))
        return path

    def sync(self) -> None:
        """Has all lines on the disk, as a checkpoint that is newer than they are must not outlive them.

        Raises:
            InputError: one cannot be written, now or before.
        """
        for file in (self._file, self._batches) if self._writes else ():
            with _explained(Path(file.name)):
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        """Closes the files."""
        if self._writer is not None:
            self._writer.close()
        for file in (self._file, self._batches) if self._writes else ():
            with suppress(OSError):  # of a line that could not be written, which was said then
                file.close()


def _append(file: TextIO, row: Mapping[str, Any]) -> None:
    with _explained(Path(file.name)):
        file.write(json.dumps(_plain(row), ensure_ascii=False) + "\n")
        file.flush()


def _continued(path: Path, step: int, without: str | None = None) -> TextIO:
    """A file of JSON lines, opened to go on after `step`: lines of later steps are dropped, torn ones too.

    So are the lines of the kind `without` of that step itself.
    """

    def stays(row: dict[str, Any]) -> bool:
        at = row.get("step", 0)
        return 0 < step and (at < step or (at == step and (without is None or row.get("kind") != without)))

    if path.exists():
        write_jsonl(path, [row for row in read_lines(path) if stays(row)])
    return path.open("a", encoding="utf-8")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines, without those that are torn."""
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the torn last line of a run that was killed while writing; its step is run again
        if isinstance(row, dict):
            yield row


def results_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain text table; numbers are right-aligned with four digits."""
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]

    def line(row: Sequence[str], source: Sequence[Any] | None) -> str:
        aligned = [
            cell.rjust(width) if source is not None and isinstance(source[i], (int, float)) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()

    body = [line(row, source) for row, source in zip(cells, rows, strict=True)]
    return "\n".join([line(list(columns), None), "  ".join("-" * width for width in widths), *body])
