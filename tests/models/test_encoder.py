"""The scanned encoder: against a loop over layers, its remat policies, dropouts and skipped layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xtremes_jax.errors import InputError
from xtremes_jax.models.encoder import Encoder, EncoderLayer
from xtremes_jax.models.masking import Randomness
from xtremes_jax.models.stacked import REMAT_POLICIES

LENGTHS = (8, 5, 0)


def encoder_of(config, remat="none"):
    """A graph definition and parameters."""
    graphdef, state = nnx.split(Encoder(config, dtype=jnp.float32, remat=remat, rngs=nnx.Rngs(7)))
    # Norms away from ones and zeros, so that leaving one out would show.
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), nnx.to_pure_dict(state))
    return graphdef, params


def run(graphdef, params, x, lengths, randomness=None, weights=None):
    return nnx.merge(graphdef, params)(x, lengths, randomness, weights)


def frames(rng, config, rows=3):
    return jnp.asarray(rng.standard_normal((rows, 8, config.hidden_size)).astype(np.float32))


def keys(seed, rows=3):
    key = jax.random.key(seed)
    return Randomness(rows=jax.random.split(key, rows), shared=jax.random.fold_in(key, 9))


@pytest.mark.parametrize("layout", ["layer", "group"])
def test_the_scan_is_a_loop_over_layers(layout, tiny_config, rng):
    config = tiny_config(layout, num_hidden_layers=3)
    graphdef, params = encoder_of(config)
    x, lengths = frames(rng, config), jnp.array(LENGTHS)
    weights = jnp.array([0.1, 0.2, 0.3, 0.4])
    last, mixed = jax.jit(lambda params, x: run(graphdef, params, x, lengths, weights=weights))(params, x)

    @jax.jit
    def loop(params, x):
        encoder = nnx.merge(graphdef, params)
        layer_graphdef = nnx.graphdef(EncoderLayer(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
        x = jnp.where((jnp.arange(8) < lengths[:, None])[:, :, None], x, 0)
        x = x + encoder.pos_conv_embed(x)
        if layout == "group":
            x = encoder.layer_norm(x)
        states = [x]
        for index in range(3):
            layer_params = jax.tree.map(lambda leaf, i=index: leaf[i], params["layers"])
            states.append(nnx.merge(layer_graphdef, layer_params)(states[-1], lengths, None))
        last = encoder.layer_norm(states[-1]) if layout == "layer" else states[-1]
        return last, sum(weight * state for weight, state in zip(weights, states, strict=True))

    expected_last, expected_mixed = loop(params, x)
    np.testing.assert_allclose(last, expected_last, atol=1e-5)
    np.testing.assert_allclose(mixed, expected_mixed, atol=1e-5)


def test_remat_changes_no_gradient_even_with_randomness(tiny_config, rng):
    config = tiny_config(layerdrop=0.3)
    x, lengths = frames(rng, config), jnp.array(LENGTHS)
    found = {}
    for remat in REMAT_POLICIES:
        graphdef, params = encoder_of(config, remat)
        gradient = jax.grad(lambda params, g=graphdef: jnp.sum(jnp.sin(run(g, params, x, lengths, keys(2))[0])))
        found[remat] = jax.jit(gradient)(params)
    for other in ("full", "dots"):
        for one, two in zip(jax.tree.leaves(found["none"]), jax.tree.leaves(found[other]), strict=True):
            np.testing.assert_allclose(one, two, atol=2e-5)


def test_full_remat_keeps_less_than_none(tiny_config, rng):
    config = tiny_config()
    x = frames(rng, config)

    def kept(remat):
        graphdef, params = encoder_of(config, remat)
        _, pullback = jax.eval_shape(lambda params: jax.vjp(lambda p: run(graphdef, p, x, None)[0], params), params)
        return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(pullback))

    none, dots, full = kept("none"), kept("dots"), kept("full")
    assert full < dots < none


def test_an_unknown_policy_is_an_error(tiny_config):
    with pytest.raises(InputError, match="'some'.*none, full, dots"):
        Encoder(tiny_config(), dtype=jnp.float32, remat="some", rngs=nnx.Rngs(0))


def test_layerdrop_skips_whole_layers_for_all_rows_alike(tiny_config, rng):
    rates = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    config = tiny_config(num_hidden_layers=2, layerdrop=0.5, **rates)
    graphdef, params = encoder_of(config)
    x = frames(rng, config)
    graphdefs = {n: encoder_of(dataclasses.replace(config, num_hidden_layers=n))[0] for n in (1, 2)}

    def only(chosen):
        """The encoder with nothing but these layers."""
        taken = dict(params, layers=jax.tree.map(lambda leaf: leaf[jnp.array(chosen)], params["layers"]))
        return np.asarray(run(graphdefs[len(chosen)], taken, x, None)[0])

    step = jax.jit(lambda randomness: run(graphdef, params, x, None, randomness)[0])
    outputs = [np.asarray(step(keys(seed))) for seed in range(40)]
    subsets = {(0,): only([0]), (1,): only([1]), (0, 1): only([0, 1])}
    seen = [
        next((name for name, expected in subsets.items() if np.allclose(output, expected, atol=1e-5)), ())
        for output in outputs
    ]
    assert set(seen) == {(), (0,), (1,), (0, 1)}
    assert 0.3 < np.mean([len(chosen) / 2 for chosen in seen]) < 0.7


@pytest.mark.parametrize("rate", ["hidden_dropout", "attention_dropout", "activation_dropout"])
def test_each_dropout_acts_per_row(rate, tiny_config, rng):
    rates = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0}
    config = tiny_config(num_hidden_layers=1, **rates | {rate: 0.4})
    graphdef, params = encoder_of(config)
    x, lengths = frames(rng, config), jnp.array([8, 5, 8])
    step = jax.jit(lambda x, lengths, randomness: run(graphdef, params, x, lengths, randomness)[0])
    whole = step(x, lengths, keys(1))
    assert np.abs(whole - step(x, lengths, keys(2))).max() > 1e-3
    np.testing.assert_array_equal(whole, step(x, lengths, keys(1)))
    part = Randomness(rows=keys(1).rows[1:2], shared=keys(1).shared)
    np.testing.assert_allclose(whole[1:2], step(x[1:2], lengths[1:2], part), atol=1e-5)
