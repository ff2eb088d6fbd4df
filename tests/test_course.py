"""Where a run goes on from: its own newest checkpoint or the one that is named, and how much is read to know."""

from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtremes_jax.course import find_checkpoint
from xtremes_jax.errors import InputError
from xtremes_jax.resuming import _best_is_gone
from xtremes_jax.training import sealing
from xtremes_jax.training.checkpoint import Checkpoints
from xtremes_jax.training.state import create_state


def run_with(folder, rng, origin, steps=(1, 2)) -> Checkpoints:
    """A run's checkpoints, which has been told to go on from `origin`."""
    checkpoints = Checkpoints(folder / "checkpoints")
    for step in steps:
        kernel = jnp.asarray(rng.normal(size=(4, 3)).astype(np.float32))
        state = create_state({"kernel": kernel}, {}, optax.sgd(0.1), scale_loss=False)
        checkpoints.save(step, state, {"origin": origin})
    checkpoints.wait()
    return checkpoints


def break_state(checkpoints, step):
    files = Path(checkpoints.directory / str(step) / "state").rglob("*")
    largest = max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"!")


@pytest.fixture
def read(monkeypatch):
    """Which checkpoints' states are read in full."""
    found, digest = set(), sealing._digest

    def note(path):
        parts = path.parts
        if "state" in parts:
            at = parts.index("checkpoints")
            found.add(f"{parts[at - 1]}/{parts[at + 1]}")
        return digest(path)

    monkeypatch.setattr(sealing, "_digest", note)
    return found


def test_only_the_checkpoint_that_is_gone_on_from_is_read(tmp_path, rng, read):
    own, other = run_with(tmp_path / "own", rng, None), run_with(tmp_path / "other", rng, None)
    read.clear()  # writing has read them too
    assert find_checkpoint(None, own) == (own, 2, None) and read == {"own/2"}
    read.clear()
    named = str(other.directory / "1")
    source, step, origin = find_checkpoint(named, own)
    assert (source.directory, step, origin) == (other.directory, 1, named) and read == {"other/1"}
    read.clear()
    best = SimpleNamespace(begin=2, source=own, checkpoints=own)
    assert _best_is_gone(1, best) is None and _best_is_gone(2, best) is None and not read
    (own.directory / "1" / "progress" / "metadata").unlink()
    assert "progress/metadata is missing" in _best_is_gone(1, best)


def test_a_run_that_is_begun_from_another_goes_on_from_its_own(tmp_path, rng, read):
    named = str(run_with(tmp_path / "other", rng, None).directory / "1")
    own = run_with(tmp_path / "own", rng, named)
    read.clear()
    assert find_checkpoint(named, own) == (own, 2, named) and read == {"own/2"}
    break_state(own, 2)
    assert find_checkpoint(named, own) == (own, 1, named)
    break_state(own, 1)
    assert find_checkpoint(named, own)[1:] == (1, named)  # where it began
    with pytest.raises(InputError, match="Every checkpoint in"):
        find_checkpoint(None, own)
    with pytest.raises(InputError, match="there is no checkpoint in"):
        find_checkpoint("True", Checkpoints(tmp_path / "empty"))
