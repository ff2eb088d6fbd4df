"""Named architectures, each written as its difference from another."""

import dataclasses

from xtremes_jax.models.config import ModelConfig
from xtremes_jax.models.wav2vec2_bert import Wav2Vec2BertConfig

_BASE = ModelConfig()
_XLS_R_300M = dataclasses.replace(
    _BASE,
    conv_bias=True,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
)
_SMALL = dataclasses.replace(
    _XLS_R_300M,
    conv_dim=(128,) * 7,
    hidden_size=256,
    num_hidden_layers=6,
    num_attention_heads=4,
    intermediate_size=1024,
    num_conv_pos_embeddings=32,
    classifier_proj_size=128,
)

PRESETS: dict[str, ModelConfig] = {
    "tiny": dataclasses.replace(
        _SMALL,
        conv_dim=(32,) * 7,
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=128,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=64,
    ),
    "small": _SMALL,
    "base": _BASE,
    "xls_r_300m": _XLS_R_300M,
    "xls_r_1b": dataclasses.replace(_XLS_R_300M, hidden_size=1280, num_hidden_layers=48, intermediate_size=5120),
    "xls_r_2b": dataclasses.replace(_XLS_R_300M, hidden_size=1920, num_hidden_layers=48, intermediate_size=7680),
    "w2v_bert_2": Wav2Vec2BertConfig(),
}
"""`base` is wav2vec 2.0 Base, `xls_r_*` are XLS-R, `w2v_bert_2` is w2v-BERT 2.0; `tiny` (for tests) and `small` (for
small corpora, from random weights) are laid out as XLS-R and never published. None has a head yet:
`dataclasses.replace(PRESETS[name], head="ctc", ...)`.
"""
