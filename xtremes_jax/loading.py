"""Models from disk or from the hub: weights, configuration, tokenizer and class names, put together."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtremes_jax import hub
from xtremes_jax.arguments import ModelArguments
from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.errors import InputError
from xtremes_jax.models import (
    PRESETS,
    ModelConfig,
    ModelOutput,
    Report,
    abstract_model,
    build_model,
    flatten_params,
    from_huggingface,
    merge,
    split_params,
    unflatten_params,
)
from xtremes_jax.models.weights import read_json_object, read_tensors
from xtremes_jax.tasks import nearest


@dataclass(frozen=True)
class StartingPoint:
    """What a run starts from, before its own head and regularisation are set."""

    source: str
    """Hub id, directory, or the preset or config.json of random weights."""
    directory: Path | None
    """Where the checkpoint lies; None for random weights."""
    config: dict[str, Any]
    """Contents of the checkpoint's config.json."""
    preprocessor: dict[str, Any]

    @property
    def label_names(self) -> list[str]:
        """Names of the checkpoint's classes by class id; empty if it names none."""
        labels = self.config.get("id2label") or {}
        return [str(labels[key]) for key in sorted(labels, key=int)]


def starting_point(model: ModelArguments, *, token: str | None = None) -> StartingPoint:
    """Finds a checkpoint (downloading it if it is on the hub), or the configuration for random weights.

    Raises:
        InputError: it is not there, is of another architecture, or its files are damaged.
    """
    config_name, source = model.config_name, model.model_name_or_path
    if source is not None:
        directory = hub.resolve_model(source, cache_dir=model.cache_dir, token=token)
        return StartingPoint(source, directory, hub.read_config(directory), hub.read_preprocessor(directory))
    path = Path(config_name)
    if path.is_dir():
        config = hub.read_config(path)
    elif path.suffix == ".json":
        config = read_json_object(path)
    elif config_name in PRESETS:
        config = PRESETS[config_name].to_huggingface()
    else:
        raise InputError(
            f"--config_name {config_name} is neither a config.json nor a preset{nearest(config_name, PRESETS)} "
            f"Presets: {', '.join(PRESETS)}."
        )
    # As published models have it: those with a group norm were trained without attention mask.
    masked = config.get("feat_extract_norm", "group") == "layer"
    preprocessor = {"do_normalize": True, "return_attention_mask": masked, "sampling_rate": SAMPLE_RATE}
    return StartingPoint(config_name, None, config, preprocessor)


def configure(start: StartingPoint, head: str, changes: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a starting point with a head, and with the fields of `changes` set (None leaves a field)."""
    config = ModelConfig.from_huggingface(
        start.config, head=head, normalize_waveform=bool(start.preprocessor.get("do_normalize", True))
    )
    return dataclasses.replace(config, **{name: value for name, value in changes.items() if value is not None})


def initial_params(
    start: StartingPoint, config: ModelConfig, *, seed: int, replace_head: bool
) -> tuple[dict[str, np.ndarray], Report | None]:
    """Parameters by dotted name (float32, on the host), and what of the checkpoint did not match.

    Args:
        seed: for whatever is drawn anew.
        replace_head: draw a new head where the checkpoint's has another number of labels, instead of refusing it.
    """
    if start.directory is None:
        _, params = split_params(jax.jit(lambda: build_model(config, seed=jax.random.key(seed)))())
        return {name: np.asarray(value) for name, value in flatten_params(params).items()}, None
    params, report = from_huggingface(read_tensors(start.directory), config, seed=seed, replace_head=replace_head)
    return flatten_params(params), report


class Model:
    """A fine-tuned model ready for use: `model(audio, audio_lengths)`.

    Attributes:
        config: the architecture.
        tokenizer: of a CTC model, else None.
        label_names: of a classification model, by class id, else None.
    """

    def __init__(self, graphdef, params, config: ModelConfig, *, tokenizer=None, label_names=None):
        self.graphdef, self.params, self.config = graphdef, params, config
        self.tokenizer, self.label_names = tokenizer, label_names

    @cached_property
    def _forward(self) -> Callable:
        graphdef = self.graphdef
        return jax.jit(lambda params, audio, lengths: merge(graphdef, params)(audio, lengths))

    def __call__(self, audio, audio_lengths=None) -> ModelOutput:
        """Computes logits; compiled once for each shape of `audio`.

        Args:
            audio: `[batch, samples]` raw 16 kHz audio, int16 or float32 in [-1, 1]; the checkpoint's own normalisation
                is applied here.
            audio_lengths: `[batch]` valid samples of each row; each clip then gives what it gives alone. None: all are.

        Returns:
            `.logits`: `[batch, frames, vocabulary]` (CTC), `[batch, classes]` (classification) or `[batch, embedding]`
            of length 1 (retrieval), float32; `.logit_lengths`: `[batch]` valid frames for CTC, else None.

        Raises:
            InputError: `audio` is not two-dimensional, is of another dtype, or is too short for one frame.
        """
        audio = np.asarray(audio) if not isinstance(audio, jax.Array) else audio
        if audio.ndim != 2:
            raise InputError(f"audio must have the axes [batch, samples]; its shape is {tuple(audio.shape)}.")
        if audio.dtype == np.float64:
            audio = audio.astype(np.float32)
        if audio.dtype not in (np.int16, np.float32):
            raise InputError(f"audio must be int16 or float32, not {audio.dtype}.")
        lengths = None if audio_lengths is None else jnp.asarray(audio_lengths, jnp.int32)
        return self._forward(self.params, audio, lengths)


def load_model(
    path_or_id: str | Path, *, dtype: Any = jnp.float32, cache_dir: str | None = None, token: str | None = None
) -> Model:
    """Loads a fine-tuned wav2vec 2.0 / XLS-R model from a directory or the Hugging Face hub.

    Args:
        path_or_id: a Transformers directory (a run's output directory is one) or a hub id.
        dtype: what is computed in; logits are float32 in any case.
        cache_dir, token: for the hub.

    Raises:
        InputError: there is no such model, it is of another architecture, or it has no fine-tuned head.
    """
    start = starting_point(ModelArguments(model_name_or_path=str(path_or_id), cache_dir=cache_dir), token=token)
    config = ModelConfig.from_huggingface(
        start.config, normalize_waveform=bool(start.preprocessor.get("do_normalize", True))
    )
    if config.head is None:
        raise InputError(
            f"{path_or_id} has no head for recognition, classification or retrieval (architectures: "
            f"{start.config.get('architectures')}). Fine-tune it first: python -m xtremes_jax.train --help."
        )
    params, report = initial_params(start, config, seed=0, replace_head=False)
    if report is not None and report.new_head:
        raise InputError(f"{path_or_id} holds no weights for its head: {', '.join(report.new_head)} are missing.")
    graphdef, _ = split_params(abstract_model(config, dtype=dtype))
    tokenizer = hub.load_tokenizer(start.directory) if config.head == "ctc" else None
    names = (start.label_names or None) if config.head == "classification" else None
    nested = jax.tree.map(jnp.asarray, unflatten_params(params))
    return Model(graphdef, nested, config, tokenizer=tokenizer, label_names=names)
