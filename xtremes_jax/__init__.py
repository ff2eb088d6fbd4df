"""Fine-tune speech encoders on XTREME-S in JAX, from audio to a scored Transformers checkpoint.

From Python:

    import xtremes_jax

    model = xtremes_jax.load_model("path or hub id")
    output = model(audio, audio_lengths)            # raw 16 kHz audio [batch, samples]; output.logits
    texts = xtremes_jax.transcribe(model, ["clip.flac"])
    sentences = xtremes_jax.translate("a speech encoder-decoder", ["clip.flac"])

From the shell: `python -m xtremes_jax.train --help`, and likewise `xtremes_jax.evaluate` and `xtremes_jax.score`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xtremes_jax.errors import InputError
    from xtremes_jax.inference import transcribe, translate
    from xtremes_jax.loading import Model, Translator, load_model

__version__ = "0.1.0"

__all__ = ["InputError", "Model", "Translator", "load_model", "transcribe", "translate"]

_HOMES = {
    "InputError": "xtremes_jax.errors",
    "Model": "xtremes_jax.loading",
    "Translator": "xtremes_jax.loading",
    "load_model": "xtremes_jax.loading",
    "transcribe": "xtremes_jax.inference",
    "translate": "xtremes_jax.inference",
}


def __getattr__(name: str):
    # Imported when asked for: bad flags on the command line are answered before JAX is loaded.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'xtremes_jax' has no attribute {name!r}")
