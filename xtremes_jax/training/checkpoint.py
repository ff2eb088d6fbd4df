"""Checkpoints of a run, through Orbax: the training state, and beside it what the state alone does not tell."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from xtremes_jax.errors import InputError
from xtremes_jax.training import processes
from xtremes_jax.training.places import place
from xtremes_jax.training.sealing import RestoreJson, RestoreState, SaveJson, SaveState, SealedJson, SealedState, damage
from xtremes_jax.training.state import TrainState

logger = logging.getLogger(__name__)

_ITEMS = {"state": SealedState, "progress": SealedJson}
"""The parts of a checkpoint and what reads and writes them."""

_SAVE_SECONDS = 6 * 3600
"""Longest that writing a checkpoint may take: a large one to a slow disk needs more than Orbax's 20 minutes."""

_SEEN_WITHIN_SECONDS = 60.0
"""How long the file system of a network may take to show a process what another has made or removed."""


def damage_of_checkpoint(folder: epath.Path, *, contents: bool) -> str | None:
    """`sealing.damage` of all parts of one checkpoint, wherever it lies."""
    return next(filter(None, (damage(folder / item, contents=contents) for item in _ITEMS)), None)


class _Keep:
    """Which checkpoints stay: the best one, the newest one, and then the newest others up to the limit."""

    def __init__(self, count: int, best: Callable[[], int | None]):
        self._count, self._best = count, best

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Orbax's question; `checkpoints` are in the order of their steps."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {self._best(), *steps[-1:]} & set(steps)
        for step in reversed(steps):
            if len(kept) >= self._count:
                break
            kept.add(step)
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints of one run: `<directory>/<global step>/`, written in the background, each complete or absent.

    Args:
        directory: where they lie; made when missing.
        keep: how many to keep (`--save_total_limit`); None keeps all. The best one and the newest always stay.
        best: asked for the step of the best checkpoint whenever one is written; None while there is none.
        create: make the directory, and remove what interrupted saves have left; False to read another run's.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int | None = None,
        best: Callable[[], int | None] = lambda: None,
        create: bool = True,
    ):
        self.directory = place(directory)
        self._failure: BaseException | None = None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if keep is None else _Keep(keep, best),
            create=create,
            cleanup_tmp_directories=create,
            async_options=ocp.AsyncOptions(timeout_secs=_SAVE_SECONDS, barrier_sync_fn=self._meet),
        )
        # Given here and not only with each call, so that a fresh manager can read the metadata of an old run.
        handlers = {name: handler() for name, handler in _ITEMS.items()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        self._see_the_same()

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """Where Orbax's threads wait for those of the other processes; also alone, where there is nobody to wait for.

        With what could not be written Orbax would come here too and wait for hours, as the others wait elsewhere.
        """
        failure = sys.exception()
        if failure is not None and threading.current_thread() is not threading.main_thread():
            self._failure = failure
            raise failure
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

    def _see_the_same(self) -> None:
        """Waits until the checkpoints that the first process sees are seen here.

        Raises:
            InputError: they are not, so that this process would save and remove others.
        """
        theirs = processes.from_first(self.steps)
        deadline = time.monotonic() + _SEEN_WITHIN_SECONDS
        while self.steps() != theirs:
            if time.monotonic() > deadline:
                raise InputError(
                    f"In {self.directory}, process {processes.index()} sees checkpoints of the steps {self.steps()}, "
                    f"and process 0 of {theirs}. Name a directory that all machines share, or a bucket."
                )
            time.sleep(0.5)
            self._manager.reload()

    @classmethod
    def at(cls, path: str | os.PathLike) -> tuple["Checkpoints", int]:
        """The checkpoint that `--resume_from_checkpoint` names: a step's directory, or a run's or its checkpoints'.

        Raises:
            InputError: there is none.
        """
        path = place(path)
        parent = (
            path.parent if path.name.isdigit() else path / "checkpoints" if (path / "checkpoints").is_dir() else path
        )
        found = cls(parent, create=False) if parent.is_dir() else None
        step = int(path.name) if path.name.isdigit() else found.newest_sound() if found else None
        if found is None or step is None or step not in found.steps():
            raise InputError(
                f"--resume_from_checkpoint {path}: there is no checkpoint. Name a run's output directory or one of the "
                "numbered folders in its checkpoints directory."
            )
        if path.name.isdigit() and (wrong := found.damage(step)):
            raise InputError(f"--resume_from_checkpoint {path} is damaged: {wrong}. Name another checkpoint.")
        return found, step

    def save(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Starts writing the state after `step` updates; returns once it is copied off the devices.

        Args:
            step: global step; nothing is written if there is a checkpoint of it.
            progress: JSON-serialisable facts beside the state (best score, arguments, ...).

        Raises:
            InputError: this one, or the one before it, cannot be written.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(state=SaveState(state), progress=SaveJson(progress))
        with self._writing():
            self._manager.save(step, args=items, force=True)

    def check(self) -> None:
        """Looks whether what is being written has failed; waits for nothing.

        Raises:
            InputError: it cannot be written.
        """
        if self._failure is not None:
            self.wait()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Says what it means when Orbax fails to write, now or in the background since."""
        try:
            yield
        except Exception as error:  # of the file system, of TensorStore or of Orbax, each with types of its own
            self._failure = None
            # As the disk has it: the manager counts those out that it was about to remove.
            names = [path.name for path in self.directory.iterdir()] if self.directory.is_dir() else []
            left = [int(name) for name in names if name.isdigit()]
            kept = f"The last complete checkpoint is that of step {max(left)}" if left else "There is no checkpoint"
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"A checkpoint could not be written to {self.directory}: {what} {kept}. "
                "Make room or mend the directory; the same command, without --overwrite_output_dir, then goes on from "
                "there."
            ) from error

    def damage(self, step: int, *, contents: bool = True) -> str | None:
        """What is wrong with a checkpoint's files, in words that end a sentence; None if they are as they were written.

        Args:
            step: of the checkpoint.
            contents: read all of them, in the first process; False looks at their names and sizes alone.
        """
        return processes.from_first(lambda: self._damage(step, contents))

    def _damage(self, step: int, contents: bool = True) -> str | None:
        return damage_of_checkpoint(self.directory / str(step), contents=contents)

    def is_complete(self, step: int) -> bool:
        """Whether all of a checkpoint is on the disk; of this process alone, in any of its threads.

        Raises:
            FileNotFoundError: it has gone: there are later ones.
        """
        if self._damage(step, contents=False) is None:
            return True
        if any(path.name.isdigit() and int(path.name) > step for path in self.directory.iterdir()):
            raise FileNotFoundError(f"the checkpoint of step {step} has been removed (--save_total_limit)")
        return False

    def newest_sound(self) -> int | None:
        """Global step of the newest checkpoint whose files are as they were written; None if there is no checkpoint.

        Raises:
            InputError: there are some, and all of them are damaged.
        """
        return processes.from_first(self._newest_sound)

    def _newest_sound(self) -> int | None:
        wrong = {}
        for step in reversed(self.steps()):
            wrong[step] = self._damage(step)
            if wrong[step] is None:
                return step
            logger.warning("The checkpoint %s is damaged: %s.", self.directory / str(step), wrong[step])
        if not wrong:
            return None
        raise InputError(
            f"Every checkpoint in {self.directory} is damaged: "
            + "; ".join(f"step {step}: {what}" for step, what in wrong.items())
            + ". Put a sound copy in place, or start afresh with --overwrite_output_dir or another --output_dir."
        )

    def delete_after(self, step: int) -> None:
        """Removes checkpoints of later steps: a run that goes back to `step` makes them anew."""
        for later in [other for other in self.steps() if other > step]:
            self._manager.delete(later)

    def restore(self, step: int, abstract_state) -> tuple[TrainState, dict[str, Any]]:
        """The state and progress saved at `step`.

        Args:
            abstract_state: `jax.ShapeDtypeStruct`s with the shardings that the restored arrays shall have; the run that
                saved may have had another number of devices.

        Raises:
            InputError: there is no such checkpoint, or it is of another model.
        """
        if step not in self._manager.all_steps():
            raise InputError(f"There is no checkpoint of step {step} in {self.directory}; there are {self.steps()}.")
        wanted = ocp.args.Composite(state=RestoreState(abstract_state), progress=RestoreJson())
        self._manager.wait_until_finished()
        self._check_fit(step, abstract_state)
        restored = self._manager.restore(step, args=wanted)
        return restored["state"], restored["progress"]

    def progress(self, step: int) -> dict[str, Any]:
        """What was saved beside the state of `step`, alone."""
        self._manager.wait_until_finished()
        return self._manager.restore(step, args=ocp.args.Composite(progress=RestoreJson()))["progress"]

    def newest_progress(self) -> dict[str, Any] | None:
        """What was saved beside the newest state of which that is undamaged; of the states nothing is read."""

        def undamaged() -> int | None:
            sound = (step for step in reversed(self.steps()) if not damage(self.directory / str(step) / "progress"))
            return next(sound, None)

        step = processes.from_first(undamaged)
        return None if step is None else self.progress(step)

    def _check_fit(self, step: int, abstract_state) -> None:
        """Compares names and shapes before Orbax reads anything: its own errors name files, not parameters."""
        leaves = jax.tree_util.tree_leaves_with_path
        saved = {leaf.name: tuple(leaf.shape) for _, leaf in leaves(self._manager.item_metadata(step)["state"].tree)}
        wanted = {
            jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
            for path, leaf in leaves(abstract_state)
        }
        differing = sorted(name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name))
        if differing:
            name = differing[0]
            raise InputError(
                f"The checkpoint {self.directory / str(step)} does not fit this run's model: {name} has shape "
                f"{saved.get(name, 'none')} there and {wanted.get(name, 'none')} here ({len(differing)} such "
                "differences). Give the arguments that the run was started with, or another --output_dir."
            )

    def steps(self) -> list[int]:
        """Global steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def wait(self) -> None:
        """Waits until what has been saved is on the disk.

        Raises:
            InputError: it cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on the disk.

        Raises:
            InputError: it cannot be written.
        """
        self.wait()
        self._manager.close()
