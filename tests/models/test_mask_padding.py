"""A padded batch as Transformers computes it: with an attention mask, and without one (`mask_padding` False).

Needs torch. Clips are normalised one at a time and then padded with 0, as the reference script does.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import translation_models
from models.family_models import LENGTHS, VARIANTS, compare_gradients, torch_inputs, torch_model, variant
from models.translation_models import config_of, parameters

from xtremes_jax.batch import Batch
from xtremes_jax.models import abstract_model, merge, split_params, to_huggingface
from xtremes_jax.training.losses import Objective

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WAVEFORM = [name for name in VARIANTS if not name.startswith("bert")]
LABELS = np.array([[3, 4, 4, 1], [5, 2, 0, 0], [6, 0, 0, 0]], np.int32)
LABEL_LENGTHS = np.array([4, 2, 1], np.int32)


def padded(config, audio) -> "torch.Tensor":
    """`[batch, samples]` of clips that were prepared alone."""
    clips = [inputs[0] for inputs in torch_inputs(config, audio)]
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)


def attention_mask() -> "torch.Tensor":
    return torch.from_numpy(np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None])


SEALED = ["hubert-large", "wavlm-large", "unispeech", "unispeech-sat"]
"""Where an attention mask keeps padding out in Transformers, too. Past it, the convolutions of data2vec's positions and
of the Conformer's layers read padding there; here, each clip gives what it gives alone (see test_families.py)."""
POOLED = ["hubert-base", "wavlm-large", "conformer-none"]


@pytest.mark.parametrize(
    ("name", "head"), [(name, "ctc") for name in WAVEFORM] + [(name, "classification") for name in POOLED]
)
def test_an_unmasked_batch_is_transformers(name, head, random_params, ragged_audio, rng):
    config = variant(name, head, mask_padding=False)
    params = random_params(config, rng)
    audio = ragged_audio(rng, LENGTHS)
    model = torch_model(config, params)
    theirs = model(padded(config, audio)).logits
    weights = rng.standard_normal(theirs.shape).astype(np.float32)
    (theirs * torch.from_numpy(weights)).sum().backward()
    graphdef, _ = split_params(abstract_model(config))

    def loss(params):
        output = merge(graphdef, params)(audio, np.array(LENGTHS, np.int32))
        return jnp.sum(output.logits * weights), output

    gradients, ours = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(ours.logits, theirs.detach(), atol=1e-4)
    compare_gradients(to_huggingface(gradients, config), model)
    if head == "ctc":  # padding takes part in the loss, too
        assert (np.asarray(ours.logit_lengths) == theirs.shape[1]).all()


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")  # of PyTorch, about WavLM's mask
@pytest.mark.parametrize("name", SEALED)
def test_a_masked_batch_is_transformers(name, random_params, ragged_audio, rng):
    config = variant(name)
    params = random_params(config, rng)
    audio = ragged_audio(rng, LENGTHS)
    with torch.no_grad():
        theirs = torch_model(config, params)(padded(config, audio), attention_mask=attention_mask()).logits
    graphdef, _ = split_params(abstract_model(config))
    ours = jax.jit(lambda params: merge(graphdef, params)(audio, np.array(LENGTHS, np.int32)))(params)
    for row, length in enumerate(config.num_frames(np.array(LENGTHS))):
        np.testing.assert_allclose(ours.logits[row, :length], theirs[row, :length], atol=1e-4)


@pytest.mark.parametrize("name", ["hubert-base", "wavlm-base"])
def test_the_unmasked_loss_is_transformers(name, random_params, ragged_audio, rng):
    config = variant(name, mask_padding=False, ctc_loss_reduction="mean")
    params = random_params(config, rng)
    audio = ragged_audio(rng, LENGTHS)
    labels = np.where(np.arange(LABELS.shape[1]) < LABEL_LENGTHS[:, None], LABELS, -100)
    model = torch_model(config, params)
    expected = model(padded(config, audio), labels=torch.from_numpy(labels).long()).loss
    graphdef, _ = split_params(abstract_model(config))
    output = jax.jit(lambda params: merge(graphdef, params)(audio, np.array(LENGTHS, np.int32)))(params)
    batch = Batch(
        audio=audio, audio_lengths=np.array(LENGTHS, np.int32), labels=LABELS, label_lengths=LABEL_LENGTHS,
        weight=np.ones(3, np.float32), sample_ids=np.arange(3, dtype=np.int32),
    )  # fmt: skip
    objective = Objective("ctc", blank=config.pad_token_id)
    batch = jax.tree.map(jnp.asarray, batch)
    loss = objective.loss_sum(output, batch) / objective.weight(batch)
    np.testing.assert_allclose(loss, expected.detach(), rtol=1e-4)


def test_an_unmasked_translation_is_transformers(ragged_audio, rng):
    config = config_of("post-norm")
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, mask_padding=False))
    params = parameters(config, rng)
    audio = ragged_audio(rng, (9600, 6433, 3321))
    tokens = rng.integers(4, config.vocab_size, (3, 5)).astype(np.int32)
    clips = [translation_models.torch_inputs(audio, (9600, 6433, 3321), [row]).input_values[0] for row in range(3)]
    inputs = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    with torch.no_grad():
        theirs = translation_models.torch_model(config, params)(inputs, labels=torch.from_numpy(tokens).long()).logits
    graphdef, _ = split_params(abstract_model(config))
    lengths = np.array((9600, 6433, 3321), np.int32)
    ours = jax.jit(lambda params: merge(graphdef, params)(audio, lengths, tokens).logits)(params)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", POOLED)
def test_both_are_one_where_nothing_is_padded(name, random_params, ragged_audio, rng):
    config = variant(name)
    params = random_params(config, rng)
    audio = ragged_audio(rng, LENGTHS[:1] * 2)
    lengths = np.array(LENGTHS[:1] * 2, np.int32)
    logits = []
    for mask in (True, False):
        graphdef, _ = split_params(abstract_model(dataclasses.replace(config, mask_padding=mask)))
        run = jax.jit(lambda params, graphdef=graphdef: merge(graphdef, params)(audio, lengths).logits)
        logits.append(run(params))
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-5)
