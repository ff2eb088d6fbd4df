"""Checkpoints of a run, through Orbax: the training state, and beside it what the state alone does not tell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from xtremes_jax.errors import InputError
from xtremes_jax.training.state import TrainState


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
        directory: Path,
        *,
        keep: int | None = None,
        best: Callable[[], int | None] = lambda: None,
        create: bool = True,
    ):
        self.directory = directory.absolute()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if keep is None else _Keep(keep, best),
            create=create,
            cleanup_tmp_directories=create,
        )
        # Given here and not only with each call, so that a fresh manager can read the metadata of an old run.
        handlers = {"state": ocp.StandardCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    @classmethod
    def at(cls, path: str | Path) -> tuple["Checkpoints", int]:
        """The checkpoint that `--resume_from_checkpoint` names: a step's directory, or a run's or its checkpoints'.

        Raises:
            InputError: there is none.
        """
        path = Path(path).absolute()
        parent = (
            path.parent if path.name.isdigit() else path / "checkpoints" if (path / "checkpoints").is_dir() else path
        )
        found = cls(parent, create=False) if parent.is_dir() else None
        step = int(path.name) if path.name.isdigit() else found.latest() if found else None
        if found is None or step is None or step not in found.steps():
            raise InputError(
                f"--resume_from_checkpoint {path}: there is no checkpoint. Name a run's output directory or one of the "
                "numbered folders in its checkpoints directory."
            )
        return found, step

    def save(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Starts writing the state after `step` updates; returns once it is copied off the devices.

        Args:
            step: global step; nothing is written if there is a checkpoint of it.
            progress: JSON-serialisable facts beside the state (best score, arguments, ...).
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        self._manager.save(step, args=items, force=True)

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
        wanted = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), progress=ocp.args.JsonRestore())
        self._manager.wait_until_finished()
        self._check_fit(step, abstract_state)
        restored = self._manager.restore(step, args=wanted)
        return restored["state"], restored["progress"]

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

    def latest(self) -> int | None:
        """Global step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Waits until what has been saved is on the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on the disk."""
        self._manager.wait_until_finished()
        self._manager.close()
