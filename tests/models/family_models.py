"""What the tests of the families share: tiny models of each, and PyTorch's counterparts."""

import dataclasses

import numpy as np
from models.conftest import LAYOUTS

from xtremes_jax.models import FAMILIES, ModelConfig, to_huggingface

LENGTHS = (3600, 2345, 1100)
_KEYED = {"conv_depthwise_kernel_size": 5, "hidden_act": "swish", "position_embeddings_type": "relative_key"}
_NEAR = {"left_max_position_embeddings": 3, "right_max_position_embeddings": 2}
VARIANTS = {
    "mms": ("wav2vec2", "layer", {"adapter_attn_dim": 5}),
    "mms-wide": ("wav2vec2", "layer", {"adapter_attn_dim": 16, "layer_norm_eps": 1e-3, "hidden_act": "relu"}),
    "wav2vec2-without-place-for-adapters": ("wav2vec2", "group", {"adapter_attn_dim": 5}),
    "hubert-base": ("hubert", "group", {}),
    "hubert-large": ("hubert", "layer", {}),
    "hubert-adapters": ("hubert", "layer", {"adapter_attn_dim": 4}),
    "hubert-batch-norm": ("hubert", "group", {"conv_pos_batch_norm": True, "feat_proj_layer_norm": False}),
    "wavlm-base": ("wavlm", "group", {"num_buckets": 12, "max_bucket_distance": 9}),
    "wavlm-large": ("wavlm", "layer", {"num_buckets": 8, "max_bucket_distance": 5}),
    "unispeech": ("unispeech", "layer", {}),
    "unispeech-adapters": ("unispeech", "layer", {"adapter_attn_dim": 3}),
    "unispeech-group": ("unispeech", "group", {}),
    "unispeech-sat": ("unispeech-sat", "layer", {}),
    "unispeech-sat-adapters": ("unispeech-sat", "layer", {"adapter_attn_dim": 6}),
    "unispeech-sat-group": ("unispeech-sat", "group", {}),
    "data2vec": ("data2vec-audio", "layer", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}),
    "conformer-relative": ("wav2vec2-conformer", "layer", {"conv_depthwise_kernel_size": 5}),
    "conformer-rotary": (
        "wav2vec2-conformer", "group", {"conv_depthwise_kernel_size": 5, "position_embeddings_type": "rotary"},
    ),
    "conformer-none": (
        "wav2vec2-conformer", "layer", {"conv_depthwise_kernel_size": 3, "position_embeddings_type": "none"},
    ),
    "sew": ("sew", "group", {"num_conv_pos_embeddings": 6}),
    "sew-layer": ("sew", "layer", {"conv_dim": (6, 6, 6, 12), "squeeze_factor": 3}),
    # More distances than vectors on either side, and fewer on one.
    "bert": ("wav2vec2-bert", "layer", _KEYED | _NEAR),
    "bert-far": ("wav2vec2-bert", "layer", _KEYED),
    "bert-relative": ("wav2vec2-bert", "layer", _KEYED | {"position_embeddings_type": "relative"}),
    "bert-rotary": ("wav2vec2-bert", "layer", _KEYED | {"position_embeddings_type": "rotary", "layer_norm_eps": 1e-3}),
    "bert-none": ("wav2vec2-bert", "layer", _KEYED | {"position_embeddings_type": "none"}),
}  # fmt: skip


def variant(name: str, head: str | None = "ctc", **changes) -> ModelConfig:
    """The tiny configuration of a line of `VARIANTS`; fields that its family lacks keep their defaults."""
    model_type, layout, own = VARIANTS[name]
    kind = FAMILIES[model_type].config
    base = dataclasses.replace(LAYOUTS[layout], head=head)
    fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    # Rotary positions turn pairs of features: heads of an even width.
    fields |= own | {"num_attention_heads": 2} | changes
    return kind(**{name: value for name, value in fields.items() if name not in kind.lacking})


def torch_model(config, params):
    """The same model in PyTorch, in evaluation mode; every tensor has its place."""
    import torch
    import transformers

    ending = {"ctc": "ForCTC", "classification": "ForSequenceClassification"}[config.head]
    fields = config.to_huggingface()
    built = getattr(transformers, f"{config.architecture}{ending}")(transformers.AutoConfig.for_model(**fields)).eval()
    tensors = {name: torch.from_numpy(array.copy()) for name, array in to_huggingface(params, config).items()}
    built.load_state_dict(tensors, strict=True)
    return built


def torch_inputs(config, audio, lengths=LENGTHS):
    """What PyTorch's model is given of each clip, which is prepared alone: the waveform, or log-mel features."""
    import transformers

    extractor = getattr(transformers, config.feature_extractor)()
    for row, length in enumerate(lengths):
        clip = audio[row, :length].astype(np.float32) / 32768
        inputs = extractor(clip, sampling_rate=16_000, return_tensors="pt")
        if "input_values" in inputs:
            yield inputs.input_values
        else:  # an odd frame out makes half of one that the mask leaves out
            yield inputs.input_features[:, : int(inputs.attention_mask.sum())]


def torch_logits(model, config, audio, lengths=LENGTHS):
    """PyTorch's logits of each clip."""
    for inputs in torch_inputs(config, audio, lengths):
        yield model(inputs).logits[0]


def frames_of(config, audio, lengths=LENGTHS):
    """Where PyTorch's model reads features: the same, padded, so that models are compared on one input (see
    test_log_mel.py for the features); None where it reads the waveform."""
    if config.feature_extractor == "Wav2Vec2FeatureExtractor":
        return None
    frames = np.zeros((len(lengths), config.num_frames(max(lengths)), config.conv_dim[-1]), np.float32)
    for row, features in zip(frames, torch_inputs(config, audio, lengths), strict=True):
        row[: features.shape[1]] = features[0]
    return frames


def compare_gradients(ours, model):
    """Checks every parameter's gradient to 1e-3 of its largest element."""
    theirs = {
        name: np.zeros(value.shape, np.float32) if value.grad is None else value.grad.numpy()
        for name, value in model.named_parameters()
    }
    assert theirs.keys() <= ours.keys()
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    for name, expected in theirs.items():
        # The second term is for gradients that are 0 but for rounding (the bias of the keys).
        bound = 1e-3 * np.abs(expected).max() + 1e-6 * largest
        assert np.abs(ours[name] - expected).max() <= bound, name
