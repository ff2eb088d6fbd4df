"""What all processes of a run have to hold alike: what is compared, and what may differ."""

import os
import shutil

import numpy as np
import pytest
from corpora import write_corpus
from runs import flags

from xtremes_jax import together
from xtremes_jax.arguments import parse_arguments
from xtremes_jax.corpus import SkippedClips, load_corpus
from xtremes_jax.errors import InputError
from xtremes_jax.starting import starting_point
from xtremes_jax.training import processes
from xtremes_jax.training.signals import StopRequest


def load(folder, output):
    """The data that a process finds in its folder, with a cache of its own."""
    arguments = parse_arguments(flags(folder, output, "mls.all"))
    output.mkdir()
    return load_corpus(arguments, starting_point(arguments.model), SkippedClips(output, 0))


def test_machines_with_copies_of_the_data_agree_on_them(tmp_path):
    """Copies lie elsewhere and are younger, and so is what `datasets` makes of them."""
    mine = write_corpus(tmp_path / "mine")
    shutil.copytree(mine, tmp_path / "theirs", copy_function=shutil.copy)
    for file in (tmp_path / "theirs").rglob("*.parquet"):
        os.utime(file, (1e9, 1e9))
    found = [together._fingerprints(load(tmp_path / name, tmp_path / f"run-{name}")) for name in ("mine", "theirs")]
    assert found[0] == found[1] and set(found[0]) == {"vocabulary or classes", "clips of train", "clips of eval"}
    other = together._fingerprints(load(write_corpus(tmp_path / "other", seed=1), tmp_path / "run-other"))
    assert other["clips of train"] != found[0]["clips of train"]


def test_a_process_with_other_parameters_is_found_out(rng, monkeypatch):
    kernel = rng.standard_normal((3, 2), np.float32)
    said = []
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "gather", lambda facts: said.append(facts) or [said[0], facts])
    together.check_same_parameters({"encoder.kernel": kernel, "scale": np.float32(1)})
    together.check_same_parameters({"encoder.kernel": kernel.T.copy().T, "scale": np.float32(1)})  # in another order
    with pytest.raises(InputError, match=r"Parameters: process 1 has encoder\.kernel .* \(1 such differences\)"):
        together.check_same_parameters({"encoder.kernel": np.nextafter(kernel, np.inf), "scale": np.float32(1)})


def test_steps_and_batches_are_signs_of_life(tmp_path):
    beats = []
    steps = together.Together(StopRequest(), SkippedClips(tmp_path, 1.0), lambda: beats.append(1))
    assert steps.at_step((), old_at=7) == 7 and len(beats) == 1
    steps.at_batch(())
    assert len(beats) == 2
