"""The output directory of a run: who may write to it, and what it holds."""

import fcntl
import logging
import os
import re
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from etils import epath

from xtremes_jax.errors import InputError
from xtremes_jax.run_files import BATCHES, CHECKPOINTS, METRICS, NONFINITE, RECORD, SKIPPED, TENSORBOARD
from xtremes_jax.training import processes
from xtremes_jax.training.places import is_remote, place
from xtremes_jax.training.signals import Interrupted

logger = logging.getLogger(__name__)

_LOCK = ".lock"
_SHARED_WITHIN_SECONDS = 60.0
_HALF_WRITTEN = re.compile(r"\.export-.+|\..+\.\d+(\.tmp)?")
"""Names of what a killed process was writing, before it would have got its own name."""

_LEFT_BY_AN_UNFINISHED_RUN = {BATCHES, CHECKPOINTS, METRICS, NONFINITE, SKIPPED, TENSORBOARD}
"""What a run writes before it has trained: such a directory may be used again without asking."""

_LEFT_BY_A_FINISHED_RUN = (
    BATCHES,
    METRICS,
    NONFINITE,
    RECORD,
    "*_results.json",
    "*predictions.jsonl",
    "*embeddings.npz",
    "model*.safetensors*",
    "lora/adapter_*",
    "adapter.*.safetensors",
)
"""Patterns of the files that a run which starts afresh in the same directory makes anew, or does not mean to have."""


class RunDirectory:
    """Context that holds an output directory for one run at a time. Of a run's processes the first one holds it.

    Args:
        path: made when missing.
        overwrite: whatever is there may be replaced (`--overwrite_output_dir`); nothing is removed before `clear`.
        training: whether this run trains; scoring may write its results beside a finished run.
        checkpoints: where those are to lie (`--checkpoint_dir`), if not here.

    Raises:
        InputError: another run is writing to it, it cannot be written to, it holds something that is neither a
            resumable run nor to be overwritten; or, for a run that trains, it is not the one that the first process
            sees.
    """

    def __init__(self, path: str | Path, *, overwrite: bool, training: bool, checkpoints: str | None = None):
        self.path = Path(path)
        self.checkpoints = place(self.path / CHECKPOINTS if checkpoints is None else checkpoints)
        self._overwrite, self._training = overwrite, training
        self._lock, self._begun = None, False

    @property
    def tensorboard(self) -> Path:
        """Where TensorBoard's event files go unless `--logging_dir` says otherwise."""
        return self.path / TENSORBOARD

    def __enter__(self) -> "RunDirectory":
        try:
            mark = processes.from_first(self._hold)
            if not processes.is_first() and self._training and not is_remote(self.checkpoints):
                self._find(mark)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Interrupted):
            error.way_on = self._way_on()
        if self._lock is None:
            return
        # Removed while still held, so that no other run can have locked the same file in between.
        (self.path / _LOCK).unlink(missing_ok=True)
        self._lock.close()

    def _hold(self) -> str:
        """Makes and locks the directory; what it leaves in the lock for the other processes of this run to find."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / _LOCK, "a", encoding="utf-8")  # noqa: SIM115 (held until __exit__)
        except OSError as error:
            raise InputError(f"--output_dir {self.path} cannot be written to: {error.strerror}.") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._lock.fileno()).st_nlink:  # the run that held it has ended meanwhile, and removed it
                self._lock.close()
                return self._hold()
        except BlockingIOError as error:
            self._lock.close()
            self._lock = None  # it is another's
            raise InputError(
                f"--output_dir {self.path} is in use: another run is writing to it. Wait for it or choose another."
            ) from error
        except OSError as error:
            logger.warning(
                "%s: this file system knows no locks (%s): start no second run here.", self.path, error.strerror
            )
        self._check_unused()
        self._remove_half_written()
        mark = uuid.uuid4().hex
        self._lock.truncate(0)
        self._lock.write(mark)
        self._lock.flush()
        return mark

    def _find(self, mark: str) -> None:
        """Waits until the lock of the first process is seen here; file systems of networks may need a while."""
        deadline = time.monotonic() + _SHARED_WITHIN_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError):
                if (self.path / _LOCK).read_text("utf-8") == mark:
                    return
            time.sleep(0.2)
        raise InputError(
            f"--output_dir {self.path} of process {processes.index()} is not that of process 0, whose checkpoints all "
            "processes have to read and write. Name a directory that all machines share, or keep them in a bucket "
            "(--checkpoint_dir gs://BUCKET/FOLDER)."
        )

    def begin(self) -> None:
        """Removes what a run that begins to train must not find: its record, or with `overwrite` all but other files.

        A record is of a finished run: see score.py.
        """
        processes.from_first(self._clear if self._overwrite else lambda: (self.path / RECORD).unlink(missing_ok=True))
        self._begun = True

    def _way_on(self) -> str:
        """What the same command will do with what is here now, for the message of a run that was stopped."""
        if not self._training:
            return ""
        if not self._overwrite:
            return "; the same command goes on from here"
        if self._begun and self._holds_checkpoint():
            return "; the same command without --overwrite_output_dir goes on from here"
        return "; the same command starts afresh"

    def _holds_checkpoint(self) -> bool:
        return self.checkpoints.is_dir() and any(entry.name.isdigit() for entry in self.checkpoints.iterdir())

    def _clear(self) -> None:
        """Removes what an earlier run has left, for a run that starts afresh; files of other kinds stay."""
        for folder in (self.checkpoints, epath.Path(self.tensorboard)):
            if folder.exists():
                folder.rmtree()
        for pattern in _LEFT_BY_A_FINISHED_RUN:
            for path in self.path.glob(pattern):
                path.unlink()

    def _remove_half_written(self) -> None:
        """Only the process that holds the directory writes to it, so what others have begun is nobody's any more."""
        for entry in list(os.scandir(self.path)):
            if _HALF_WRITTEN.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif _HALF_WRITTEN.fullmatch(entry.name):
                os.unlink(entry.path)

    def _check_unused(self) -> None:
        if not self._training or self._overwrite:
            return
        others = sorted(
            entry.name
            for entry in os.scandir(self.path)
            if entry.name not in _LEFT_BY_AN_UNFINISHED_RUN and not entry.name.startswith(".")
        )
        if others and not self._holds_checkpoint():
            raise InputError(
                f"--output_dir {self.path} is not empty ({', '.join(others[:5])}) and holds no checkpoint to resume "
                "from. Choose another directory, or add --overwrite_output_dir."
            )
