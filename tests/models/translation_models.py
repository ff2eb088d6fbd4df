"""What the tests of translation share: tiny configurations, random parameters, PyTorch's counterparts."""

import dataclasses

import numpy as np
from models.conftest import LAYOUTS

from xtremes_jax.models import (
    DecoderConfig,
    TranslationConfig,
    abstract_model,
    flatten_params,
    split_params,
    to_huggingface,
    unflatten_params,
)

DECODER = DecoderConfig(
    vocab_size=31,
    d_model=16,
    decoder_layers=2,
    decoder_attention_heads=4,
    decoder_ffn_dim=24,
    max_position_embeddings=40,
    scale_embedding=True,
)
ADAPTER = {"add_adapter": True, "num_adapter_layers": 2}
CASES = {
    # 12 features in the encoder, 16 in the decoder: projected.
    "plain": ("layer", {}),
    "projected adapter": ("layer", ADAPTER),
    "widening adapter": ("layer", ADAPTER | {"output_hidden_size": 16}),
    "equal widths": ("layer", ADAPTER | {"hidden_size": 16, "num_attention_heads": 4}),
    "language adapters": ("layer", {"adapter_attn_dim": 5}),
    "post-norm": ("group", {}),
}


def config_of(case: str, **changes) -> TranslationConfig:
    """One of `CASES`; `changes` are of the decoder."""
    layout, fields = CASES[case]
    encoder = dataclasses.replace(LAYOUTS[layout], num_labels=2, **fields)
    return TranslationConfig(encoder, dataclasses.replace(DECODER, **changes), decoder_start_token_id=3)


_LIVELY = {
    "embed_positions.embedding": 4,
    "fc2.kernel": 6,
    "fc1.kernel": 2,
    "encoder_attn.q_proj": 3,
    ".bias": 0.3,
    "decoder.layer_norm.bias": 0,
}


def parameters(config: TranslationConfig, rng: np.random.Generator, *, is_lively: bool = False) -> dict:
    """Parameters of which none is 0 or 1; `is_lively` for a decoder that does not repeat one token for ever."""
    _, shapes = split_params(abstract_model(config))
    params = {}
    for name, leaf in flatten_params(shapes).items():
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if name.endswith("kernel"):
            params[name] = noise * np.float32(np.prod(leaf.shape[-3:-1] if "conv" in name else leaf.shape[-2]) ** -0.5)
        elif name.endswith(("scale", "weight_g")):
            params[name] = np.float32(1) + np.float32(0.2) * noise
        elif name.endswith("embedding"):
            params[name] = np.float32(config.decoder.d_model**-0.5) * noise
        else:
            params[name] = np.float32(0.2) * noise
        for part, factor in _LIVELY.items():
            if is_lively and name.startswith("decoder.") and part in name:
                params[name] = params[name] * np.float32(factor)
    return unflatten_params(params)


def many_clips(rng: np.random.Generator, count: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Ragged int16 waveforms, and their lengths in samples."""
    lengths = rng.integers(3000, 15000, count).astype(np.int32)
    audio = np.zeros((count, lengths.max()), np.int16)
    for row, length in enumerate(lengths):
        audio[row, :length] = 1500 * rng.standard_normal(length) + 200 * (row + 1)
    return audio, lengths


def torch_model(config: TranslationConfig, params: dict):
    """The same model in PyTorch, in evaluation mode."""
    import torch
    import transformers

    torch.set_num_threads(1)  # for models so small, more of them only wait for one another
    fields = config.to_huggingface()
    built = transformers.SpeechEncoderDecoderModel(transformers.SpeechEncoderDecoderConfig(**fields)).eval()
    tensors = {name: torch.from_numpy(array.copy()) for name, array in to_huggingface(params, config).items()}
    assert not built.load_state_dict(
        tensors | {"decoder.lm_head.weight": tensors["decoder.model.decoder.embed_tokens.weight"]}, strict=True
    ).missing_keys
    return built


def torch_inputs(audio: np.ndarray, lengths, rows=None):
    """Clips normalised by the feature extractor: all of them padded with their mask, or those of some `rows`."""
    import transformers

    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    rows = range(len(lengths)) if rows is None else rows
    clips = [audio[row, : lengths[row]].astype(np.float32) / 32768 for row in rows]
    return extractor(clips, sampling_rate=16_000, padding=True, return_tensors="pt")
