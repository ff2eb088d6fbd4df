"""Which kind of device a program is written for."""

from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from xtremes_jax.models.platform import platform, written_for


def test_it_is_this_processs_own_unless_one_is_named():
    own = jax.default_backend()
    assert platform() == own
    with written_for("tpu"):
        assert platform() == "tpu"
        with written_for("gpu"):
            assert platform() == "gpu"
        assert platform() == "tpu"
        with ThreadPoolExecutor(1) as other:
            assert other.submit(platform).result() == own
    assert platform() == own


def test_an_error_on_the_way_leaves_nothing_behind():
    with pytest.raises(KeyError), written_for("tpu"):
        raise KeyError
    assert platform() == jax.default_backend()
