"""Products with parameters: ordinary gradients in float32, and sums that float16 could not hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.models.positional import grouped_convolution
from xtremes_jax.models.products import compare, convolve, multiply, spread


def plain_convolution(x, kernel, stride):
    return jax.lax.conv_general_dilated(x, kernel, (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))


CASES = {
    "multiply": (lambda x, w: multiply(x, w, jnp.float32), lambda x, w: x @ w, (3, 7, 5), (5, 4)),
    "multiply rows": (lambda x, w: multiply(x, w, jnp.float32), lambda x, w: x @ w, (7, 5), (5, 4)),
    "compare": (compare, lambda x, w: x @ w.T, (3, 7, 5), (4, 5)),
    "convolve": (lambda x, w: convolve(x, w, 2), lambda x, w: plain_convolution(x, w, 2), (2, 23, 4), (3, 4, 6)),
    "convolve, one channel": (
        lambda x, w: convolve(x, w, 5), lambda x, w: plain_convolution(x, w, 5), (2, 43, 1), (10, 1, 6)
    ),
    "convolve, stride beyond the width": (
        lambda x, w: convolve(x, w, 4), lambda x, w: plain_convolution(x, w, 4), (2, 23, 4), (2, 4, 3)
    ),
    "spread": (lambda x, w: x * spread(w, x.shape, x.dtype), lambda x, w: x * w, (3, 7, 5), (5,)),
}  # fmt: skip


@pytest.fixture(params=["cpu", "tpu"])
def platform(request, monkeypatch):
    """Takes the way of another platform: it is computed here all the same."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("name", CASES)
def test_float32_gradients_are_those_of_the_plain_product(name, rng):
    ours, plain, *shapes = CASES[name]
    x, parameter = (jnp.asarray(rng.standard_normal(shape).astype(np.float32)) for shape in shapes)
    weights = jnp.asarray(rng.standard_normal(plain(x, parameter).shape).astype(np.float32))

    def value_and_gradients(function):
        return jax.value_and_grad(lambda x, w: jnp.sum(function(x, w) * weights), argnums=(0, 1))(x, parameter)

    found, expected = value_and_gradients(ours), value_and_gradients(plain)
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize(
    ("product", "parameter_shape"),
    [
        (lambda x, w: multiply(x, w, jnp.float16), (3, 2)),
        (lambda x, w: compare(x, w).astype(jnp.float16), (2, 3)),
        (lambda x, w: convolve(x, w, 1), (2, 3, 2)),
        (lambda x, w: grouped_convolution(x, w, 1), (4, 3, 2)),
        (lambda x, w: x * spread(w, x.shape, x.dtype), (3,)),
    ],
    ids=["multiply", "compare", "convolve", "grouped_convolution", "spread"],
)
def test_sums_beyond_float16_stay_finite(product, parameter_shape, rng):
    x = jnp.asarray(rng.uniform(8, 10, (2, 500, 3)), jnp.float16)
    parameter = jnp.asarray(rng.standard_normal(parameter_shape), jnp.float32)
    output, pull = jax.vjp(product, x, parameter)
    gradient = pull(jnp.full(output.shape, 64.0, jnp.float16))[1]
    assert gradient.dtype == jnp.float32
    # Every entry is a sum of about 1,000 products of 64 with 8 to 10; float16 ends at 65,504.
    assert np.isfinite(gradient).all() and (gradient > 400_000).all() and (gradient < 700_000).all()
