"""The whole model: padding, empty rows, randomness, dtypes, compilation, and the names of its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.errors import InputError
from xtremes_jax.models import (
    Randomness,
    abstract_model,
    build_model,
    decays,
    flatten_params,
    is_feature_encoder,
    merge,
    path_name,
    split_params,
    unflatten_params,
)

HEADS = {"ctc": ("ctc", False), "weighted": ("classification", True)}


def compiled(config, **options):
    """`(params, audio, lengths, randomness) -> output` under one jit."""
    graphdef, _ = split_params(abstract_model(config, **options))

    @jax.jit
    def apply(params, audio, lengths, randomness=None):
        return merge(graphdef, params)(audio, lengths, randomness=randomness)

    return apply


def keys(seed, rows):
    key = jax.random.key(seed)
    return Randomness(rows=jax.random.split(key, rows), shared=jax.random.fold_in(key, 1))


@pytest.mark.parametrize("layout", ["layer", "group"])
def test_padding_and_neighbours_change_no_valid_logit(layout, tiny_config, random_params, ragged_audio, rng):
    config = tiny_config(layout)
    params = random_params(config, rng)
    audio = ragged_audio(rng, (3000, 1500, 900))
    lengths = np.array([3000, 1500, 900], np.int32)
    apply = compiled(config)
    plain = apply(params, audio, lengths)
    noisy = np.pad(audio, ((0, 0), (0, 1111)))
    noisy[np.arange(noisy.shape[1]) >= lengths[:, None]] = 12345  # what lies in the padding does not count either
    padded = apply(params, noisy, lengths)
    np.testing.assert_array_equal(plain.logit_lengths, padded.logit_lengths)
    for row, frames in enumerate(plain.logit_lengths):
        np.testing.assert_allclose(plain.logits[row, :frames], padded.logits[row, :frames], atol=1e-5)
    alone = apply(params, audio[1:2, :1500], None)
    assert alone.logit_lengths[0] == alone.logits.shape[1] == plain.logit_lengths[1]
    np.testing.assert_allclose(alone.logits[0], plain.logits[1, : alone.logits.shape[1]], atol=1e-5)


@pytest.mark.parametrize("head", ["ctc", "weighted"])
def test_rows_of_length_zero_are_finite_and_leave_the_others_alone(head, tiny_config, random_params, ragged_audio, rng):
    kind, weighted = HEADS[head]
    config = tiny_config("group", kind, use_weighted_layer_sum=weighted)
    params = random_params(config, rng)
    audio = ragged_audio(rng, (1500, 1200))
    apply = compiled(config)

    @jax.jit
    def value_and_gradient(params, lengths):
        def loss(params):
            output = apply(params, audio, lengths, keys(3, 2))
            return jnp.sum(jnp.square(output.logits)), output

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, output), gradient = value_and_gradient(params, np.array([1500, 0], np.int32))
    (_, full), _ = value_and_gradient(params, np.array([1500, 1200], np.int32))
    assert np.isfinite(output.logits).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(output.logits[0], full.logits[0], atol=1e-5)


def test_training_draws_per_row_and_evaluation_draws_nothing(tiny_config, random_params, ragged_audio, rng):
    config = tiny_config(mask_time_prob=0.3, mask_time_length=2, mask_feature_prob=0.2, mask_feature_length=2)
    params = random_params(config, rng)
    audio = ragged_audio(rng, (4000, 2500, 3300))
    lengths = np.array([4000, 2500, 3300], np.int32)
    apply = compiled(config)
    one = apply(params, audio, lengths, keys(1, 3)).logits
    np.testing.assert_array_equal(one, apply(params, audio, lengths, keys(1, 3)).logits)
    assert np.abs(one - apply(params, audio, lengths, keys(2, 3)).logits).max() > 1e-2
    assert np.abs(one - apply(params, audio, lengths).logits).max() > 1e-2
    # The same rows in a smaller batch meet the same noise.
    part = Randomness(rows=keys(1, 3).rows[1:], shared=keys(1, 3).shared)
    np.testing.assert_allclose(apply(params, audio[1:], lengths[1:], part).logits, one[1:], atol=1e-5)


def test_spec_augment_puts_in_the_learned_vector(tiny_config, random_params, ragged_audio, rng):
    rates = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "final_dropout": 0.0}
    config = tiny_config(layerdrop=0.0, mask_time_prob=1.0, mask_time_length=1, **rates)
    params = random_params(config, rng)
    lengths = np.array([2500, 2500], np.int32)
    apply = compiled(config)
    # Every frame is masked, so what the clips hold no longer counts.
    one = apply(params, ragged_audio(rng, lengths), lengths, keys(1, 2)).logits
    other = apply(params, ragged_audio(rng, lengths), lengths, keys(2, 2)).logits
    np.testing.assert_allclose(one, other, atol=1e-6)
    params["encoder"]["masked_spec_embed"] = params["encoder"]["masked_spec_embed"] + rng.standard_normal(12)
    assert np.abs(apply(params, ragged_audio(rng, lengths), lengths, keys(1, 2)).logits - one).max() > 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 0.25), (jnp.float16, 0.04)])
def test_half_precision_is_close_and_gives_float32(dtype, tolerance, tiny_config, random_params, ragged_audio, rng):
    config = tiny_config()
    params = random_params(config, rng)
    audio = ragged_audio(rng, (1500, 1200))
    lengths = np.array([1500, 0], np.int32)
    exact = compiled(config)(params, audio, lengths).logits
    half = compiled(config, dtype=dtype)(params, audio, lengths).logits
    assert half.dtype == jnp.float32 and np.isfinite(half).all()
    difference = np.abs(half[0] - exact[0])
    assert 0 < difference.max() < tolerance


def test_one_compilation_for_each_shape(tiny_config, random_params, ragged_audio, rng):
    config = tiny_config(num_hidden_layers=1)
    apply = compiled(config)
    for _ in range(3):
        lengths = rng.integers(400, 1000, 2).astype(np.int32)
        apply(random_params(config, rng), ragged_audio(rng, (1000, 800)), lengths)
    assert apply._cache_size() == 1


def test_parameters_are_named_as_in_transformers_and_are_all_there_is(tiny_config):
    config = tiny_config()
    graphdef, params = split_params(build_model(config, seed=3))
    assert graphdef == split_params(abstract_model(config))[0] and isinstance(hash(graphdef), int)
    flat = flatten_params(params)
    assert flat["encoder.encoder.layers.attention.q_proj.kernel"].shape == (2, 12, 12)
    assert all(leaf.dtype == jnp.float32 for leaf in flat.values())
    jax.tree.map(np.testing.assert_array_equal, unflatten_params(flat), params)
    again = flatten_params(split_params(build_model(config, seed=3))[1])
    other = flatten_params(split_params(build_model(config, seed=4))[1])
    for name, leaf in flat.items():
        np.testing.assert_array_equal(leaf, again[name])
        assert leaf.std() == 0 or (leaf != other[name]).any(), name
    layers = flat["encoder.encoder.layers.attention.q_proj.kernel"]
    assert (layers[0] != layers[1]).any() and layers.std() == pytest.approx(0.02, rel=0.2)


def test_paths_may_be_names_keys_or_key_paths(tiny_config):
    _, params = split_params(abstract_model(tiny_config()))
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert sorted(names) == sorted(flatten_params(params))
    assert path_name(("lm_head", "bias")) == path_name("lm_head.bias") == "lm_head.bias"


def test_frozen_and_decayed_parameters(tiny_config):
    _, params = split_params(abstract_model(tiny_config("group", "classification", use_weighted_layer_sum=True)))
    names = flatten_params(params)
    frozen = [name for name in names if is_feature_encoder(name)]
    assert len(frozen) == 4 + 2 and all("conv_layers" in name for name in frozen)
    assert {name for name in names if not decays(name)} == {
        name for name in names if name.endswith(("bias", "norm.scale"))
    }
    assert decays("encoder.masked_spec_embed") and decays("layer_weights")
    assert decays("encoder.encoder.pos_conv_embed.weight_g")


def test_a_model_without_a_head_is_refused(tiny_config):
    with pytest.raises(InputError, match="no head"):
        build_model(tiny_config(head=None))
