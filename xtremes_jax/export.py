"""A finished run as a Transformers repository, and its way to the hub."""

import dataclasses
import importlib.metadata
import logging
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from xtremes_jax import hub
from xtremes_jax.arguments import Arguments, describe
from xtremes_jax.assembly import Network
from xtremes_jax.corpus import Corpus
from xtremes_jax.data.characters import CharacterTokenizer
from xtremes_jax.evaluation.report import write_json
from xtremes_jax.model_card import CardFacts, model_card
from xtremes_jax.models import TranslationConfig, merge_factors, to_huggingface, unflatten_params
from xtremes_jax.models.peft import to_peft
from xtremes_jax.models.weights import write_tensor_file
from xtremes_jax.starting import StartingPoint
from xtremes_jax.training.processes import from_first
from xtremes_jax.training.sharding import to_host

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "lora"
"""Of an output directory: the low-rank adapter alone."""

_VERSIONS_OF = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "datasets")


def export_run(directory: Path, network: Network, arguments: Arguments, corpus: Corpus, start: StartingPoint) -> None:
    """Writes config.json, model.safetensors, the processor's files and a model card without scores into `directory`.

    Every process takes part, as each may hold only parts of the parameters; the first one writes, and the others wait.
    """
    params = {name: to_host(value) for name, value in (network.trainable | network.frozen).items()}
    from_first(lambda: _write(directory, params, network, arguments, corpus, start))


def _write(
    directory: Path,
    params: dict[str, np.ndarray],
    network: Network,
    arguments: Arguments,
    corpus: Corpus,
    start: StartingPoint,
) -> None:
    names, tokenizer, config = corpus.label_names, corpus.tokenizer, network.config
    translation = isinstance(config, TranslationConfig)
    if not translation and config.head == "retrieval":
        config = dataclasses.replace(config, logit_scale=float(params["logit_scale"]))
    merged = params if network.lora is None else merge_factors(params, network.lora)
    tensors = to_huggingface(unflatten_params(merged), network.config)
    hub.export(
        directory,
        tensors=tensors,
        config=config.to_huggingface(**({} if translation else {"label_names": names})),
        tokenizer=tokenizer.as_transformers if isinstance(tokenizer, CharacterTokenizer) else tokenizer,
        preprocessor=start.preprocessor,
        id2label=None if names is None else dict(enumerate(names)),
        model_card=model_card(_facts(directory, arguments, corpus, {}, start)),
        generation=network.generation.to_huggingface() if translation else None,
    )
    if network.lora is None:
        _remove_adapter(directory / ADAPTER_FOLDER)
    else:
        _write_adapter(directory, params, tensors, network, start)
    logger.info("Wrote the model to %s: load it with Transformers or with xtremes_jax.load_model", directory)


def _write_adapter(
    directory: Path,
    params: dict[str, np.ndarray],
    ordinary: dict[str, np.ndarray],
    network: Network,
    start: StartingPoint,
) -> None:
    """Writes the low-rank adapter alone into a folder of an exported model, in PEFT's format.

    With it go the small files of the model, so that the folder says by itself what its outputs stand for.
    """
    tensors, settings = to_peft(params, ordinary, network.config, network.lora, network.trainable, start.source)
    folder = directory / ADAPTER_FOLDER
    folder.mkdir(exist_ok=True)
    write_tensor_file(folder / hub.ADAPTER_WEIGHTS[0], tensors)
    write_json(folder / hub.ADAPTER_CONFIG, settings)
    for name in hub.CONFIG_FILES:
        if (directory / name).is_file():
            shutil.copyfile(directory / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def _remove_adapter(folder: Path) -> None:
    """Removes the adapter that an earlier run has left there: it is of another model."""
    if not folder.is_dir():
        return
    for name in (hub.ADAPTER_CONFIG, *hub.ADAPTER_WEIGHTS, *hub.CONFIG_FILES):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def write_card(
    directory: Path, arguments: Arguments, corpus: Corpus, results: dict[str, Any], start: StartingPoint
) -> None:
    """Writes README.md, the model card, with the run's scores."""
    text = model_card(_facts(directory, arguments, corpus, results, start))
    (directory / "README.md").write_text(text, encoding="utf-8")


def _facts(
    directory: Path, arguments: Arguments, corpus: Corpus, results: dict[str, Any], start: StartingPoint
) -> CardFacts:
    """What the model card says; of the prediction split's scores, or else of the evaluation split's."""
    task, data = arguments.selection.task, arguments.data
    role = "predict" if "predict_samples" in results else "eval"
    split = data.predict_split_name if role == "predict" else data.eval_split_name
    languages = sorted(set(corpus.splits["train"].languages))
    metrics = {name: results[f"{role}_{name}"] for name in task.metrics if f"{role}_{name}" in results}
    per_language = {
        language: {name: results[f"{role}_{name}_{language}"] for name in task.metrics}
        for language in languages
        if f"{role}_{task.metrics[0]}_{language}" in results
    }
    return CardFacts(
        model_name=arguments.training.hub_model_id or directory.resolve().name,
        kind=task.kind,
        task=task.name,
        dataset_name=data.dataset_name,
        dataset_config_name=data.dataset_config_name,
        languages=languages,
        split=split,
        metrics=metrics,
        per_language=per_language,
        base_model=start.source if start.directory is not None else None,
        decoder_model=start.decoder.source
        if start.decoder and not start.is_joint and start.decoder.directory
        else None,
        synthetic=corpus.synthetic,
        arguments=describe(arguments, only_changed=True),
        model_type=start.encoder_config["model_type"],
        versions={"Python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _VERSIONS_OF},
    )


def push_run(directory: Path, arguments: Arguments) -> None:
    """Uploads the output directory (`--push_to_hub`)."""
    training = arguments.training
    url = hub.push(
        directory,
        repo_id=training.hub_model_id or directory.resolve().name,
        token=training.hub_token,
        # Unset means the owner's own setting, which may well be private.
        private=training.hub_private_repo or None,
        commit_message=f"Fine-tuned on {arguments.data.dataset_config_name} with xtremes_jax",
    )
    logger.info("Uploaded to %s", url)
