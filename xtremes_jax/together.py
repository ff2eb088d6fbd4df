"""What all processes of a run have to do at the same step, whichever of them it comes from."""

import hashlib
import importlib.metadata
from collections.abc import Sequence

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
    """

    def __init__(self, stop: StopRequest, skipped: SkippedClips):
        self._agreement, self._stop, self._skipped = Agreement(), stop, skipped

    def at_step(self, unreadable: Sequence[SkippedClip], save_due: bool) -> bool:
        """After each step, in every process: whether to save now. `stop.received` is the same in all afterwards.

        Args:
            unreadable: clips of this process that could not be decoded.
            save_due: whether this process finds that it is time for a checkpoint.

        Raises:
            InputError: in all processes: too many clips of a split are left out by now.
        """
        self._skipped.add(unreadable)
        agreed = self._agreement(Wishes(self._stop.asked or 0, int(save_due), self._skipped.untold))
        if self._stop.shared and agreed.stop:
            self._stop.obey(agreed.stop)
        if agreed.untold:
            self._skipped.tell()
        return bool(agreed.save)

    def at_batch(self, unreadable: Sequence[SkippedClip]) -> None:
        """The same before each batch of an evaluation, which a signal breaks off.

        Raises:
            Interrupted: in all processes: one of them has had a signal.
            InputError: as `at_step`.
        """
        self.at_step(unreadable, save_due=False)
        if self._stop.shared:
            self._stop.check()


_OF_A_PROCESS = {
    "cache_dir", "compilation_cache_dir", "disable_tqdm", "log_level", "preprocessing_num_workers", "process_id",
}  # fmt: skip
"""Flags that each process may have its own value of."""

_VERSIONS_OF = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "datasets", "transformers")


def check_same_run(arguments: Arguments, corpus: Corpus) -> None:
    """Compares flags, libraries and data of all processes: where they differ, so would the programs and batches.

    Raises:
        InputError: in all processes: they do not agree.
    """
    if not processes.several():
        return
    flags = {name: value for name, value in describe(arguments).items() if name not in _OF_A_PROCESS}
    processes.check_same("Flags", flags, "Give every process the same command line.")
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS_OF}
    processes.check_same("Libraries", versions, "Install the same versions on every machine.")
    processes.check_same(
        "Data", _fingerprints(corpus), "Give every process the same files: copy them, or share one directory."
    )


def _fingerprints(corpus: Corpus) -> dict[str, str]:
    """What the batches and the head depend on, in few bytes."""
    labels = corpus.label_names if corpus.tokenizer is None else sorted(corpus.tokenizer.get_vocab().items())
    splits = dict(corpus.splits) | ({} if corpus.distractors is None else {"distractors": corpus.distractors})
    found = {"vocabulary or classes": hashlib.sha256(repr(labels).encode()).hexdigest()}
    for role, split in splits.items():
        digest = hashlib.sha256(split.fingerprint.encode())
        for array in (split.rows, split.num_samples, *split.labels):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(repr(split.references).encode())
        found[f"clips of {role}"] = digest.hexdigest()
    return found
