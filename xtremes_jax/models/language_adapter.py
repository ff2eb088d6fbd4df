"""The adapter of a language in each Transformer layer: a small bottleneck, the only part that languages do not share.

Follows `Wav2Vec2AttnAdapterLayer` of Transformers and MMS (Pratap et al. 2023, "Scaling Speech Technology to 1,000+
Languages"; the bottleneck is that of Houlsby et al. 2019).
"""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from xtremes_jax.models.config import ModelConfig
from xtremes_jax.models.layers import CONV_NORM_EPS, LayerNorm, activate, linear


class LanguageAdapter(nnx.Module):
    """A norm, a linear map to `adapter_attn_dim` features, ReLU, and a linear map back."""

    def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        width, narrow = config.hidden_size, config.adapter_attn_dim
        # As in Transformers, its epsilon is PyTorch's whatever `layer_norm_eps` says.
        self.norm = LayerNorm(width, epsilon=CONV_NORM_EPS)
        self.linear_1 = linear(config, width, narrow, dtype=dtype, rngs=rngs)
        self.linear_2 = linear(config, narrow, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch frames features"]) -> Float[Array, "batch frames features"]:
        """What is added to each frame."""
        return self.linear_2(activate("relu", self.linear_1(self.norm(x))))
