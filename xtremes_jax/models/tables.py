"""The tables of names that families share: parts of an encoder, heads, and the decoder of a translation model."""

from xtremes_jax.models.naming import CONV, Rule, layers, linear, norm

WEIGHT_NORM = "encoder.pos_conv_embed.conv.parametrizations.weight"

BACKBONE: tuple[Rule, ...] = (
    Rule("feature_extractor.conv_layers.{i}.conv.kernel", "feature_extractor.conv_layers.{i}.conv.weight", CONV),
    Rule("feature_extractor.conv_layers.{i}.conv.bias", "feature_extractor.conv_layers.{i}.conv.bias"),
    *norm("feature_extractor.conv_layers.{i}.layer_norm"),
    *norm("feature_projection.layer_norm"),
    *linear("feature_projection.projection"),
    Rule("masked_spec_embed", "masked_spec_embed"),
    Rule("encoder.pos_conv_embed.weight_g", f"{WEIGHT_NORM}.original0", CONV),
    Rule("encoder.pos_conv_embed.weight_v", f"{WEIGHT_NORM}.original1", CONV),
    Rule("encoder.pos_conv_embed.bias", "encoder.pos_conv_embed.conv.bias"),
    *norm("encoder.layer_norm"),
    *(
        rule.below("encoder", "encoder")
        for rule in layers(
            *(linear(f"attention.{name}") for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
            *(linear(f"feed_forward.{name}") for name in ("intermediate_dense", "output_dense")),
            norm("layer_norm"),
            norm("final_layer_norm"),
            norm("adapter_layer.norm"),
            *(linear(f"adapter_layer.{name}") for name in ("linear_1", "linear_2")),
        )
    ),
    *linear("adapter.proj"),
    *norm("adapter.proj_layer_norm"),
    Rule("adapter.layers.{i}.conv.kernel", "adapter.layers.{i}.conv.weight", CONV),
    Rule("adapter.layers.{i}.conv.bias", "adapter.layers.{i}.conv.bias"),
)
"""Every parameter of wav2vec 2.0 below the root of a checkpoint's names. Families that add to it, or whose model has
other parts, have a table of their own beside their modules (see `families.FAMILIES`)."""

OLD_SPELLINGS = {
    "encoder.pos_conv_embed.conv.weight_g": f"{WEIGHT_NORM}.original0",
    "encoder.pos_conv_embed.conv.weight_v": f"{WEIGHT_NORM}.original1",
}
"""What files from before PyTorch 2 call the two halves of the weight norm."""

HEADS: tuple[Rule, ...] = (
    *linear("lm_head"),
    *linear("projector"),
    *linear("classifier"),
    Rule("layer_weights", "layer_weights"),
)
"""Every parameter of every head."""

_DECODER = "decoder.model.decoder"
_DECODER_LAYER = f"{_DECODER}.layers.{{layer}}"

DECODER: tuple[Rule, ...] = (
    *linear("enc_to_dec_proj"),
    Rule("decoder.embed_tokens.embedding", f"{_DECODER}.embed_tokens.weight"),
    Rule("decoder.embed_positions.embedding", f"{_DECODER}.embed_positions.weight"),
    *(
        rule
        for attention in ("self_attn", "encoder_attn")
        for name in ("k_proj", "v_proj", "q_proj", "out_proj")
        for rule in linear(f"decoder.layers.{attention}.{name}", f"{_DECODER_LAYER}.{attention}.{name}")
    ),
    *linear("decoder.layers.fc1", f"{_DECODER_LAYER}.fc1"),
    *linear("decoder.layers.fc2", f"{_DECODER_LAYER}.fc2"),
    *(
        rule
        for name in ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
        for rule in norm(f"decoder.layers.{name}", f"{_DECODER_LAYER}.{name}")
    ),
    *norm("decoder.layernorm_embedding", f"{_DECODER}.layernorm_embedding"),
    *norm("decoder.layer_norm", f"{_DECODER}.layer_norm"),
)
"""What a translation model has beside its encoder. The tied output is its embedding of tokens."""

EMBEDDING = f"{_DECODER}.embed_tokens.weight"
TIED_OUTPUT = "decoder.lm_head.weight"
"""In a translation checkpoint, the same tensor as `EMBEDDING`: either or both may be there."""
