"""What a run sends to the hub as it goes on (`--hub_strategy`) and at its end.

The model of a checkpoint is copied off the devices, and training goes on; a thread writes it to the disk in
Transformers' format, another uploads it. While one upload is under way, the newest model that has been written waits
and those before it are passed over; with `--hub_always_push` and `--hub_strategy all_checkpoints` all of them wait.
Nothing that the hub does ends a run that has begun: what failed is counted and told, with the command to upload later.
"""

import concurrent.futures
import dataclasses
import logging
import os
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from xtremes_jax import hub
from xtremes_jax.arguments import Arguments, TrainingArguments
from xtremes_jax.assembly import Network
from xtremes_jax.corpus import Corpus
from xtremes_jax.course import Course
from xtremes_jax.errors import InputError
from xtremes_jax.export import card_facts, params_on_host, write_model
from xtremes_jax.starting import StartingPoint
from xtremes_jax.training.ahead import abstract
from xtremes_jax.training.checkpoint import Checkpoints, damage_of_checkpoint
from xtremes_jax.training.processes import from_first, is_first
from xtremes_jax.training.state import TrainState
from xtremes_jax.upload import AT_START, LATER, Repository, Unreachable

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last-checkpoint"
"""Folder of the newest checkpoint in the repository, as Transformers calls it."""
ALL_CHECKPOINTS = "checkpoints"
"""Folder of all of them, as in a run's own directory."""
_STAGING = ".export-hub-"
_FINISHED = -1
"""Stands for the finished run among the steps whose models are under way."""
_POLL_SECONDS = 0.2
_TELL_SECONDS = 30.0


class _Failure(NamedTuple):
    step: int
    reason: str


class _Waiting(NamedTuple):
    """The newest model that has been written, from then on."""

    sending: Future
    step: int
    folder: Path


class Uploads:
    """The uploads of one run, made by its first process, one at a time.

    Args:
        training: what to upload where.
        folder: the run's output directory.
        beat: called while the end of uploads is waited for.

    Raises:
        InputError: there is no token to upload with.
    """

    def __init__(self, training: TrainingArguments, folder: Path, beat: Callable[[], None]):
        self._training, self._folder, self._beat = training, folder, beat
        self._repository = Repository(
            training.hub_model_id or folder.resolve().name,
            token=training.hub_token, private=training.hub_private_repo,
        )  # fmt: skip
        self._over, self._all_saved = threading.Event(), threading.Event()
        # One thread each, so that steps come in their order; a checkpoint is taken before the run removes it.
        self._taker = ThreadPoolExecutor(1, "hub-taker")
        self._writer = ThreadPoolExecutor(1, "hub-writer")
        self._sender = ThreadPoolExecutor(1, "hub-sender")
        self._all_wait = training.hub_always_push or training.hub_strategy == "all_checkpoints"
        self._under_way: set[int] = set()
        self._newest: _Waiting | None = None
        self._sent, self._passed_over, self._failed = 0, 0, list[_Failure]()
        self._had_bars = not are_progress_bars_disabled()

    def open(self) -> None:
        """Asks the hub whether the run may upload; where it cannot be had now, that is only said.

        Raises:
            InputError: it may not, or there is nothing that could be uploaded.
        """
        if not self._training.do_train and not (self._folder / "config.json").is_file():
            raise InputError(
                f"--push_to_hub: {self._folder} holds no exported model, and without --do_train there will be none."
            )
        try:
            self._repository.open(AT_START, self._over.wait)
        except Unreachable as error:
            logger.warning(
                "--push_to_hub: %s. The run begins without knowing whether it may upload; it is tried again when there "
                "is something to upload.", error,
            )  # fmt: skip

    def offer(self, step: int, write: Callable[[Path], None], checkpoints: Checkpoints) -> None:
        """Has the model of a checkpoint uploaded in the background.

        Args:
            step: global step of the checkpoint, which may still be on its way to the disk.
            write: writes the model into a folder; called later, in another thread.
            checkpoints: where the checkpoint lies.
        """
        if self._had_bars:
            disable_progress_bars()  # the client's would tear that of training
        self._under_way.add(step)
        self._taker.submit(self._take, step, write, checkpoints)

    def _take(self, step: int, write: Callable[[Path], None], checkpoints: Checkpoints) -> None:
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self._folder))
            kept = {"checkpoint": LAST_CHECKPOINT, "all_checkpoints": ALL_CHECKPOINTS}.get(self._training.hub_strategy)
            if kept is not None:
                self._add_checkpoint(folder / kept / str(step), step, checkpoints)
            self._writer.submit(self._write, step, folder, write)
        except Exception as error:  # of the disk, for example, or because the run ends
            self._fail(step, error, folder)

    def _write(self, step: int, folder: Path, write: Callable[[Path], None]) -> None:
        try:
            write(folder)
            if not self._all_wait:
                self._pass_over()
            self._newest = _Waiting(self._sender.submit(self._send, step, folder), step, folder)
        except Exception as error:
            self._fail(step, error, folder)

    def _pass_over(self) -> None:
        """Drops the model that was the newest until now, unless its upload has begun: the disk has room for few."""
        if self._newest is None or not self._newest.sending.cancel():
            return
        self._passed_over += 1
        logger.info("The model of step %d is not uploaded: a newer one waits.", self._newest.step)
        self._done_with(self._newest.step, self._newest.folder)

    def _add_checkpoint(self, folder: Path, step: int, checkpoints: Checkpoints) -> None:
        """Takes a checkpoint along as soon as all of it is on the disk; the run may remove its own afterwards.

        Raises:
            FileNotFoundError: the run has removed it before, or meanwhile: what a folder that goes away still lists may
                be a part of it; or it is damaged.
        """
        is_last_look = False
        while not checkpoints.is_complete(step):
            if self._over.wait(_POLL_SECONDS):
                raise InterruptedError("the run ended before the checkpoint was on the disk")
            if is_last_look:
                raise FileNotFoundError(f"the checkpoint of step {step} is damaged: not all of it is on the disk")
            is_last_look = self._all_saved.is_set()
        _link(checkpoints.directory / str(step), folder)
        if (wrong := damage_of_checkpoint(epath.Path(folder), contents=False)) is not None:
            raise FileNotFoundError(f"its checkpoint was removed while it was taken: {wrong}")

    def _send(self, step: int, folder: Path) -> None:
        try:
            url = self._repository.send(
                folder,
                f"Training in progress, step {step}",
                files=hub.files_to_push(folder) + _files_below(folder, (LAST_CHECKPOINT, ALL_CHECKPOINTS)),
                replaces=LAST_CHECKPOINT if self._training.hub_strategy == "checkpoint" else None,
                patience=LATER,
                pause=self._over.wait,
            )
            self._sent += 1
            logger.info("Uploaded the model of step %d: %s", step, url)
            self._done_with(step, folder)
        except Exception as error:
            self._fail(step, error, folder)

    def _done_with(self, step: int, folder: Path | None) -> None:
        self._under_way.discard(step)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _fail(self, step: int, error: Exception, folder: Path | None) -> None:
        self._done_with(step, folder)
        if self._over.is_set():
            return
        self._failed.append(_Failure(step, str(error)))
        logger.error("The model of step %d was not uploaded, and the run goes on: %s", step, error)

    def finish(self, message: str) -> None:
        """Waits for what is under way, uploads the finished run, and tells what has come of all uploads.

        All checkpoints are on the disk by now.
        """
        self._all_saved.set()
        if self._under_way:
            logger.info("Waiting for the uploads of checkpoints to end.")
        for executor in (self._taker, self._writer, self._sender):  # each gives to the next
            self._wait_for(executor)
        if self._had_bars:
            enable_progress_bars()
        files = hub.files_to_push(self._folder)
        size = sum((self._folder / name).stat().st_size for name in files)
        logger.info("Uploading %d files (%.1f MB) to %s", len(files), size / 1e6, self._repository.name)
        sender = ThreadPoolExecutor(1, "hub-sender")
        upload = sender.submit(
            self._repository.send, self._folder, message, files=files, patience=LATER, pause=self._over.wait
        )
        self._under_way.add(_FINISHED)
        self._wait_for(sender, upload)
        self._under_way.discard(_FINISHED)
        error = upload.exception()
        if error is None:
            logger.info("Uploaded to %s", upload.result())
        if self._sent or self._passed_over or self._failed:
            logger.info(
                "Models of checkpoints: %d uploaded, %d passed over for a newer one, %d failed%s",
                self._sent, self._passed_over, len(self._failed),
                "".join(f"; step {step}: {reason}" for step, reason in self._failed),
            )  # fmt: skip
        if error is not None:
            logger.error(
                "The finished run was NOT uploaded to %s: %s\nIt lies in %s. Upload it later (after `hf auth "
                "login`) with\n    %s\nor give the run's command again: it uploads what is finished.",
                self._repository.name, error, self._folder, self._command(files),
            )  # fmt: skip

    def _command(self, files: list[str]) -> str:
        """What uploads the same files by hand."""
        words = ["hf", "upload", self._repository.name, str(self._folder), "."]
        words += [word for name in files for word in ("--include", name)]
        if self._training.hub_private_repo is not None:
            words.append("--private" if self._training.hub_private_repo else "--no-private")
        return shlex.join(words)

    def _wait_for(self, executor: ThreadPoolExecutor, *more: Future) -> None:
        """Waits until an executor has done what it has been given; a signal is heard meanwhile."""
        under_way = [executor.submit(lambda: None), *more]  # the first is done after all that was given before it
        told = time.monotonic()
        while concurrent.futures.wait(under_way, timeout=_POLL_SECONDS).not_done:
            self._beat()
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                logger.info("Still uploading to %s", self._repository.name)
        executor.shutdown()

    def close(self) -> None:
        """Ends all that is under way; nothing is waited for."""
        self._over.set()
        cut_off = bool(self._under_way)
        for executor in (self._taker, self._writer, self._sender):
            executor.shutdown(wait=False, cancel_futures=True)
        for left in self._folder.glob(f"{_STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)
        if cut_off:
            logger.warning("The upload to %s that was under way is broken off.", self._repository.name)
        if self._had_bars:
            enable_progress_bars()


@contextmanager
def uploading(arguments: Arguments, folder: Path, beat: Callable[[], None]) -> Iterator[Uploads | None]:
    """Context of the uploads of a run; None where there are none to make: without `--push_to_hub`, with
    `--preprocessing_only`, and in processes other than the first.

    Raises:
        InputError: in all processes, if the hub would refuse them.
    """
    if not arguments.training.push_to_hub or arguments.data.preprocessing_only:
        yield None
        return
    uploads: list[Uploads] = []

    def begin() -> None:
        uploads.append(Uploads(arguments.training, folder, beat))
        uploads[0].open()

    try:
        from_first(begin)
        yield uploads[0] if is_first() else None
    finally:
        for one in uploads:
            one.close()


def publish_checkpoint(
    arguments: Arguments,
    start: StartingPoint,
    corpus: Corpus,
    network: Network,
    course: Course,
    folder: Path,
    uploads: Uploads | None,
    state: TrainState,
    step: int,
    scores: dict[str, Any],
) -> None:
    """Has the repository get what a run that had ended with this checkpoint would leave.

    Every process takes part, as each may hold only parts of the parameters.

    Args:
        folder: the run's output directory.
        uploads: of the process that makes them.
        state: of the checkpoint. It is copied here: the next step takes it.
        step: the checkpoint's.
        scores: of an evaluation at this step, by the names they have in `all_results.json`.
    """
    params = params_on_host(state.trainable | state.frozen)
    if uploads is None:
        return
    shapes = {part: jax.tree.map(abstract, getattr(state, part)) for part in ("trainable", "frozen")}
    architecture = dataclasses.replace(network, **shapes)

    def write(place: Path) -> None:
        facts = card_facts(folder, arguments, corpus, scores, start, (step, course.total_steps))
        write_model(place, params, architecture, corpus, start, facts)

    uploads.offer(step, write, course.checkpoints)


def _files_below(folder: Path, parts: Iterable[str]) -> list[str]:
    """Files in some of a folder's folders, by their names in the first."""
    found = (path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _link(source: epath.Path, target: Path) -> None:
    """A folder once more, without its bytes taking room again where the file system can do that."""
    target.mkdir(parents=True)
    for entry in source.iterdir():
        place = target / entry.name
        if entry.is_dir():
            _link(entry, place)
            continue
        try:
            os.link(entry, place)
        except OSError:  # another file system, or a bucket
            entry.copy(place)
