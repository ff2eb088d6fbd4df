"""The options that steps are compiled with."""

import jax
import jax.numpy as jnp
import pytest

from xtremes_jax.training import devices


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are those of CPUs")
def test_steps_on_cpus_are_compiled_with_options_that_xla_knows():
    options = devices.compiler_options()
    assert options == devices._CPU_OPTIONS
    assert jax.jit(lambda x: x + 1, compiler_options=options)(jnp.float32(2.0)) == 3.0


def test_an_option_that_xla_does_not_know_is_done_without(monkeypatch):
    monkeypatch.setattr(devices, "_CPU_OPTIONS", {"xla_cpu_no_such_option": True})
    assert devices._cpu_options.__wrapped__() is None


def test_accelerators_are_left_alone(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert devices.compiler_options() is None
