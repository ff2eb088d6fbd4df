"""What all processes of a run have to do at the same step, whichever of them it comes from."""

import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from xtremes_jax.arguments import Arguments, describe
from xtremes_jax.corpus import Corpus, SkippedClips
from xtremes_jax.data.prepare import SkippedClip
from xtremes_jax.training import processes
from xtremes_jax.training.processes import Agreement, Wishes
from xtremes_jax.training.signals import StopRequest


class Together:
    """Has a run's processes stop, save and learn of unreadable clips at the same step; alone, a process just does so.

    Args:
        stop: signals of this process.
        skipped: clips that were left out.
        beat: called at each step and batch, as a sign of life.
    """

    def __init__(self, stop: StopRequest, skipped: SkippedClips, beat: Callable[[], None] = lambda: None):
        self._agreement, self._stop, self._skipped, self._beat = Agreement(), stop, skipped, beat

    def at_step(self, unreadable: Sequence[SkippedClip], old_at: int) -> int:
        """After each step, in every process. `stop.received` is the same in all afterwards.

        Args:
            unreadable: clips of this process that could not be decoded.
            old_at: this step, where this process finds that the last checkpoint is old; else 0.

        Returns:
            The last step at which any process has found so, as far as all know of it by now; 0 if none has.

        Raises:
            InputError: in all processes: too many clips of a split are left out by now.
        """
        self._beat()
        self._skipped.add(unreadable)
        agreed = self._agreement(Wishes(self._stop.asked or 0, old_at, self._skipped.untold))
        if self._stop.shared and agreed.stop:
            self._stop.obey(agreed.stop)
        if agreed.untold:
            self._skipped.tell()
        return agreed.old_at

    def at_batch(self, unreadable: Sequence[SkippedClip]) -> None:
        """The same before each batch of an evaluation, which a signal breaks off.

        Raises:
            Interrupted: in all processes: one of them has had a signal.
            InputError: as `at_step`.
        """
        self.at_step(unreadable, old_at=0)
        if self._stop.shared:
            self._stop.check()


_OF_A_PROCESS = {
    "cache_dir", "compilation_cache_dir", "disable_tqdm", "log_level", "preprocessing_num_workers", "process_id",
}  # fmt: skip
"""Flags that each process may have its own value of."""

_VERSIONS_OF = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "datasets", "transformers")


def check_same_run(arguments: Arguments, corpus: Corpus) -> None:
    """Compares flags, libraries, devices and data of all processes: where they differ, so would programs and batches.

    Raises:
        InputError: in all processes: they do not agree.
    """
    if not processes.several():
        return
    flags = {name: value for name, value in describe(arguments).items() if name not in _OF_A_PROCESS}
    processes.check_same("Flags", flags, "Give every process the same command line.")
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS_OF}
    processes.check_same("Libraries", versions, "Install the same versions on every machine.")
    devices = {"platform": jax.default_backend(), "local devices": jax.local_device_count()}
    processes.check_same("Devices", devices, "Give every process as many devices, of one kind.")
    processes.check_same(
        "Data", _fingerprints(corpus), "Give every process the same files: copy them, or share one directory."
    )


def check_same_parameters(params: Mapping[str, np.ndarray]) -> None:
    """Compares the parameters that all processes have read or drawn: each puts its own on its devices.

    Raises:
        InputError: in all processes: they differ, which no step would tell.
    """
    if not processes.several():
        return
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda value: hashlib.sha256(np.ascontiguousarray(value)).hexdigest()[:16], params.values())
        found = dict(zip(params, digests, strict=True))
    processes.check_same(
        "Parameters", found, "Give every process the same files of the model; random weights need machines of one kind."
    )


def _fingerprints(corpus: Corpus) -> dict[str, str]:
    """What the batches and the head depend on, in few bytes. Times and places of files are others for copies."""
    labels = corpus.label_names if corpus.tokenizer is None else sorted(corpus.tokenizer.get_vocab().items())
    splits = dict(corpus.splits) | ({} if corpus.distractors is None else {"distractors": corpus.distractors})
    found = {"vocabulary or classes": hashlib.sha256(repr(labels).encode()).hexdigest()}
    for role, split in splits.items():
        digest = hashlib.sha256(repr(split.is_float).encode())
        for array in (split.rows, split.num_samples, split.has_loss, *split.labels):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(repr((split.references, split.languages)).encode())
        found[f"clips of {role}"] = digest.hexdigest()
    return found
