"""A run's model as a Transformers repository: at its end, and as of a checkpoint."""

import dataclasses
import importlib.metadata
import logging
import platform
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xtremes_jax import __version__, hub
from xtremes_jax.arguments import Arguments, describe
from xtremes_jax.assembly import Network
from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.corpus import Corpus
from xtremes_jax.data.characters import CharacterTokenizer
from xtremes_jax.evaluation.report import read_lines, write_json
from xtremes_jax.model_card import CardFacts, eval_results, model_card
from xtremes_jax.models import TranslationConfig, is_language_adapter, merge_factors, to_huggingface, unflatten_params
from xtremes_jax.models.families import config_class_of
from xtremes_jax.models.peft import to_peft
from xtremes_jax.models.weights import write_tensor_file
from xtremes_jax.run_files import METRICS
from xtremes_jax.starting import StartingPoint
from xtremes_jax.training.processes import from_first
from xtremes_jax.training.sharding import to_host

logger = logging.getLogger(__name__)

_VERSIONS_OF = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "datasets")
_SECONDS_PER_HOUR = 3600


def params_on_host(params: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Copies of parameters; every process takes part, as each may hold only parts of them."""
    return {name: to_host(value) for name, value in params.items()}


def export_run(directory: Path, network: Network, arguments: Arguments, corpus: Corpus, start: StartingPoint) -> None:
    """Writes config.json, model.safetensors, the processor's files and a model card without scores into `directory`.

    Every process takes part; the first one writes, and the others wait.
    """
    params = params_on_host(network.trainable | network.frozen)

    def write() -> None:
        facts = card_facts(directory, arguments, corpus, {}, start)
        write_model(directory, params, network, corpus, start, facts)
        logger.info("Wrote the model to %s: load it with Transformers or with xtremes_jax.load_model", directory)

    from_first(write)


def write_model(
    directory: Path,
    params: dict[str, np.ndarray],
    network: Network,
    corpus: Corpus,
    start: StartingPoint,
    facts: CardFacts,
) -> None:
    """Writes a repository with these parameters, in this process; of the network its architecture alone is used."""
    names, tokenizer, config = corpus.label_names, corpus.tokenizer, network.config
    translation = isinstance(config, TranslationConfig)
    speech = config.encoder if translation else config
    if not translation and config.head == "retrieval":
        config = dataclasses.replace(config, logit_scale=float(params["logit_scale"]))
    merged = params if network.lora is None else merge_factors(params, network.lora)
    tensors = to_huggingface(unflatten_params(merged), network.config)
    hub.export(
        directory,
        tensors=tensors,
        config=config.to_huggingface(**({} if translation else {"label_names": names})),
        tokenizer=tokenizer.as_transformers if isinstance(tokenizer, CharacterTokenizer) else tokenizer,
        preprocessor=start.preprocessor | {"return_attention_mask": speech.mask_padding},
        id2label=None if names is None else dict(enumerate(names)),
        model_card=model_card(facts),
        generation=network.generation.to_huggingface() if translation else None,
        target_lang=None if start.language is None else start.language.name,
    )
    _write_eval_results(directory, facts)
    if network.lora is None:
        _remove_adapter(directory / hub.ADAPTER_FOLDER)
    else:
        _write_adapter(directory, params, tensors, network, start)


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
    # The weights of the base are those of another language than the one that was asked for.
    of_language = [name for name in params if start.language is not None and is_language_adapter(name)]
    unlike_base = [*network.trainable, *of_language]
    tensors, settings = to_peft(params, ordinary, network.config, network.lora, unlike_base, start.source)
    folder = directory / hub.ADAPTER_FOLDER
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
    """Writes README.md, the model card, with the run's scores, and the scores for programs."""
    facts = card_facts(directory, arguments, corpus, results, start)
    (directory / "README.md").write_text(model_card(facts), encoding="utf-8")
    _write_eval_results(directory, facts)


def _write_eval_results(directory: Path, facts: CardFacts) -> None:
    """Writes `.eval_results/<task>.yaml`, in place of what an earlier export has left there."""
    folder = directory / hub.EVAL_RESULTS
    for path in folder.glob("*.yaml"):
        path.unlink()
    if (found := eval_results(facts)) is not None:
        folder.mkdir(exist_ok=True)
        (folder / found[0]).write_text(found[1], encoding="utf-8")


def card_facts(
    directory: Path,
    arguments: Arguments,
    corpus: Corpus,
    results: dict[str, Any],
    start: StartingPoint,
    progress: tuple[int, int] | None = None,
) -> CardFacts:
    """What the model card says; of the prediction split's scores, or else of the evaluation split's.

    Args:
        directory: of the run.
        arguments: of the run.
        corpus: of the run.
        results: scores by the names they have in `all_results.json`.
        start: what the run started from.
        progress: the step that the model is of, and the run's last; None for that of a finished run.
    """
    task, data = arguments.selection.task, arguments.data
    role = "predict" if "predict_samples" in results else "eval"
    split = data.predict_split_name if role == "predict" else data.eval_split_name
    most = data.max_predict_samples if role == "predict" else data.max_eval_samples
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
        family=config_class_of(start.config).family.partition(",")[0],
        clips={
            prepared.name: (len(prepared), int(prepared.num_samples.sum()) / SAMPLE_RATE / _SECONDS_PER_HOUR)
            for prepared in corpus.splits.values()
        },
        target_lang=None if start.language is None else start.language.name,
        limited_to=_limit(corpus, role, most),
        curve=_curve(directory / METRICS, task.metrics, progress),
        best_step=None
        if progress or results.get("model_step") != results.get("best_step")
        else results.get("best_step"),
        progress=progress,
        versions={"Python": platform.python_version(), "xtremes_jax": __version__}
        | {name: importlib.metadata.version(name) for name in _VERSIONS_OF},
    )


def _limit(corpus: Corpus, role: str, most: int | None) -> int | None:
    """To how many clips a scored split was cut, as `run.json` has it."""
    is_cut = most is not None and role in corpus.splits and len(corpus.splits[role].raw.clip_names) >= most
    return most if is_cut else None


def _curve(path: Path, metrics: tuple[str, ...], progress: tuple[int, int] | None) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl` by step, up to that of the progress; an evaluation has the last training loss."""
    rows: dict[int, dict[str, float]] = {}
    for line in read_lines(path) if path.is_file() else ():
        step = line.get("step", 0)
        if progress is not None and step > progress[0]:
            break
        row = rows.setdefault(step, {"step": step, "epoch": line.get("epoch")})
        names = {"train": ("loss",), "eval": [f"eval_{name}" for name in ("loss", *metrics)]}.get(line.get("kind"), ())
        for name in names:
            row[name if name.endswith("loss") else name.removeprefix("eval_")] = line.get(name)
    loss = None
    for row in rows.values():
        loss = row["loss"] = row.get("loss", loss)
    return list(rows.values())
