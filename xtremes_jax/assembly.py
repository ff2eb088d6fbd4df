"""From arguments, a starting point and a corpus to what the steps of a run are made of."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from xtremes_jax.arguments import Arguments, ModelArguments
from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.corpus import Corpus
from xtremes_jax.data.loader import TrainLoader
from xtremes_jax.errors import InputError
from xtremes_jax.languages import check_vocabulary, of_language
from xtremes_jax.models import (
    GenerationConfig,
    Lora,
    ModelConfig,
    Report,
    TranslationConfig,
    abstract_model,
    flatten_params,
    is_factor,
    is_feature_encoder,
    is_fixed,
    is_language_adapter,
    is_retrieval,
    newly_drawn,
    split_params,
)
from xtremes_jax.models.config import LANGUAGE_ADAPTER
from xtremes_jax.starting import (
    StartingPoint,
    configure,
    configure_translator,
    generation_config,
    initial_params,
)
from xtremes_jax.together import check_same_parameters
from xtremes_jax.training import sharding
from xtremes_jax.training.devices import describe_devices
from xtremes_jax.training.losses import Objective, PairObjective
from xtremes_jax.training.precision import compute_dtype
from xtremes_jax.training.state import parameter_count

logger = logging.getLogger(__name__)

_FROM_FLAGS = (
    "attention_dropout activation_dropout feat_proj_dropout hidden_dropout final_dropout layerdrop mask_time_prob "
    "mask_time_length mask_feature_prob mask_feature_length ctc_zero_infinity ctc_loss_reduction use_weighted_layer_sum"
).split()
"""Fields of the model's configuration that flags of the same name override, as in the reference script."""

_EMBEDDING_DIM = 256
"""Width of new embeddings: of the order of the classifier's projection, so that the pool of keys stays small."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A model with its parameters on the devices, ready for steps."""

    config: ModelConfig | TranslationConfig
    graphdef: Any
    objective: Objective | PairObjective
    mesh: Mesh
    trainable: dict[str, jax.Array]
    frozen: dict[str, jax.Array]
    generation: GenerationConfig | None = None
    """How a translation is searched for."""
    lora: Lora | None = None
    """How the encoder is adapted; its factors are among the parameters."""
    late: frozenset[str] = frozenset()
    """Of `trainable`, what `--freeze_encoder_steps` leaves alone at first."""


def model_config(arguments: Arguments, start: StartingPoint, corpus: Corpus) -> ModelConfig | TranslationConfig:
    """The architecture with the task's head or decoder, and for training with regularisation as the flags say.

    Raises:
        InputError: the model has fewer outputs than its tokenizer has tokens; one that is only scored was not
            trained for retrieval; frames are to be cached that depend on padding; or only adapters are to be trained,
            and there are none.
    """
    kind = arguments.selection.task.kind
    changes: dict[str, Any] = {"mask_padding": arguments.model.mask_padding}
    if arguments.training.do_train:
        changes |= {name: getattr(arguments.model, name) for name in (*_FROM_FLAGS, LANGUAGE_ADAPTER)}
    if kind == "translation":
        config = _translation_config(arguments, start, corpus.tokenizer, changes)
    else:
        config = _config_with_head(arguments, start, corpus, changes)
    _check_padding(arguments.model, start, config.encoder if isinstance(config, TranslationConfig) else config)
    return config


def _config_with_head(
    arguments: Arguments, start: StartingPoint, corpus: Corpus, changes: dict[str, Any]
) -> ModelConfig:
    """With as many outputs as the data asks for, or to be scored as many as the checkpoint has."""
    kind = arguments.selection.task.kind
    if not arguments.training.do_train:
        config = configure(start, kind, changes)
        if kind == "retrieval" and not is_retrieval(start.config):
            raise InputError(
                f"{start.source} was not trained for retrieval (its config.json has no xtremes_jax_head). Fine-tune "
                "it with xtremes_jax.train --do_train, or choose a model of --task fleurs-retrieval."
            )
        if start.language is not None:
            return of_language(config, corpus.tokenizer, start.source)
        if corpus.tokenizer is not None:
            _check_tokenizer(corpus.tokenizer, config.vocab_size, start.source)
            _check_same_ids(("pad_token_id",), config, corpus.tokenizer, start.source)
        return config
    if start.language is not None and arguments.model.tokenizer_name_or_path is None:
        check_vocabulary(start.language, corpus.tokenizer, start.source)
    if corpus.tokenizer is not None:
        changes |= {"vocab_size": len(corpus.tokenizer), "pad_token_id": corpus.tokenizer.pad_token_id}
    elif kind == "retrieval":
        known = None if is_retrieval(start.config) else _EMBEDDING_DIM
        changes["num_labels"] = arguments.model.embedding_dim or known
    else:
        changes["num_labels"] = len(corpus.label_names)
    config = configure(start, kind, changes)
    if arguments.model.train_adapters_only and not config.has_language_adapters:
        raise InputError(
            f"--train_adapters_only: {start.source} has no adapters in its layers (adapter_attn_dim in its "
            "config.json). Add some with --adapter_attn_dim 16, or drop the flag."
        )
    return config


def _check_padding(flags: ModelArguments, start: StartingPoint, config: ModelConfig) -> None:
    """Says so where padding counts as silence, and refuses to keep frames that then depend on it."""
    if config.mask_padding:
        return
    if flags.cache_frontend:
        raise InputError(
            f"--cache_frontend keeps frames of each clip, and those of {start.source} depend on the padding of its "
            "batch, which this model does not mask. Add --mask_padding True, or drop --cache_frontend."
        )
    logger.info(
        "Padding is not masked, as in Transformers for %s: what a clip gives depends on the length of its batch. "
        "--mask_padding True makes it what the clip gives alone.", start.source,
    )  # fmt: skip


def _translation_config(
    arguments: Arguments, start: StartingPoint, tokenizer: Any, encoder: dict[str, Any]
) -> TranslationConfig:
    """A decoder with random weights speaks the tokenizer's vocabulary; a pretrained one has to know it already."""
    adapter = arguments.model.add_adapter
    if start.is_joint and adapter is not None and adapter != bool(start.encoder_config.get("add_adapter")):
        raise InputError(
            f"--add_adapter {adapter}: {start.source} was trained {'without' if adapter else 'with'} one, and its "
            "decoder knows nothing else. Drop the flag."
        )
    encoder = encoder | {"add_adapter": adapter}
    if start.decoder.directory is None:
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        start_id = tokenizer.eos_token_id if ids["bos_token_id"] is None else ids["bos_token_id"]
        decoder = {
            "vocab_size": len(tokenizer),
            "decoder_start_token_id": start_id,
            "forced_eos_token_id": tokenizer.eos_token_id,
            **ids,
        }
        return configure_translator(start, encoder, decoder)
    config = configure_translator(start, encoder, {})
    _check_tokenizer(tokenizer, config.vocab_size, start.decoder.source)
    _check_same_ids(("eos_token_id", "pad_token_id"), config, tokenizer, start.decoder.source)
    return config


def _check_tokenizer(tokenizer: Any, vocab_size: int, source: str) -> None:
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"{source} knows {vocab_size} tokens, but its tokenizer has {len(tokenizer)}: they do not belong together. "
            "Name the right one with --tokenizer_name_or_path."
        )


def _check_same_ids(names: tuple[str, ...], config: Any, tokenizer: Any, source: str) -> None:
    """The model's ids are the tokenizer's: of the end, and of the padding, which is the CTC blank as well."""
    for name in names:
        expected, found = getattr(config, name), getattr(tokenizer, name)
        if expected != found:
            raise InputError(
                f"{source} has {name} {expected}, but its tokenizer {found}: they do not belong together. Name the "
                "right one with --tokenizer_name_or_path, or mend the model's config.json."
            )


def assemble(
    arguments: Arguments, start: StartingPoint, corpus: Corpus, config: ModelConfig | TranslationConfig
) -> Network:
    """Reads or draws the parameters and puts them on the devices, float32, sharded as `--fsdp_devices` says.

    Raises:
        InputError: the checkpoint does not fit the configuration, or has no head for the task and is not to be trained;
            or the processes of the run have not all read the same one.
    """
    training = arguments.training
    mesh = sharding.make_mesh(training.fsdp_devices)
    params, report = initial_params(start, config, seed=training.seed, replace_head=training.do_train)
    if report is not None:
        _tell_of_mismatch(report, start, training.do_train)
    network = outline(arguments, start, corpus, config, mesh, () if report is None else report.missing)
    factors = [name for name in network.trainable if is_factor(name)]
    params |= newly_drawn(config, training.seed, factors, network.lora)
    check_same_parameters(params)
    if training.do_train:
        _warn_of_frozen_randomness(arguments.model, start, network.frozen)
    logger.info(
        "%s parameters, %s of them trained; %s; mesh %s; computing in %s",
        f"{parameter_count(params):,}",
        f"{parameter_count(network.trainable):,}" if training.do_train else "none",
        describe_devices(),
        dict(mesh.shape),
        np.dtype(compute_dtype(fp16=training.fp16, bf16=training.bf16)).name,
    )
    # One by one: no device ever holds the whole of a sharded model, and the host lets go of what lies there.
    trainable, frozen = (
        {name: sharding.place(params.pop(name), shape.sharding) for name, shape in shapes.items()}
        for shapes in (network.trainable, network.frozen)
    )
    return dataclasses.replace(network, trainable=trainable, frozen=frozen)


def outline(
    arguments: Arguments,
    start: StartingPoint,
    corpus: Corpus,
    config: ModelConfig | TranslationConfig,
    mesh: Mesh,
    missing: Sequence[str] | None = None,
) -> Network:
    """The network with `jax.ShapeDtypeStruct` and shardings in place of parameters: none are read, drawn or held.

    Args:
        mesh: that they are to lie on.
        missing: names of the parameters that the checkpoint lacks; None where it has not been read, and its
            configuration has to tell.

    Raises:
        InputError: every part of the model is frozen.
    """
    training = arguments.training
    dtype = compute_dtype(fp16=training.fp16, bf16=training.bf16)
    lora = _lora(arguments, start)
    graphdef, params = split_params(abstract_model(config, dtype=dtype, remat=training.remat_policy, lora=lora))
    missing = _new_parts(start, config) if missing is None else missing
    shapes = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.array_sharding(mesh, leaf.shape))
        for name, leaf in flatten_params(params).items()
    }
    model = arguments.model
    frozen = {name: leaf for name, leaf in shapes.items() if _is_frozen(name, model, missing)}
    trainable = {name: leaf for name, leaf in shapes.items() if name not in frozen}
    late = [name for name in trainable if model.freeze_encoder_steps and _is_of_encoder(name, missing)]
    if training.do_train and not trainable:
        raise InputError("Every part of the model is frozen, so there is nothing to train. Drop a --freeze_ flag.")
    if training.do_train and model.freeze_encoder_steps and len(late) == len(trainable):
        raise InputError(
            f"--freeze_encoder_steps {model.freeze_encoder_steps} leaves nothing to train at first, as the rest is "
            "frozen. Drop it, or --freeze_decoder."
        )
    return Network(
        config, graphdef, make_objective(arguments, config), mesh, trainable, frozen,
        generation=_generation(arguments, start, config, corpus.tokenizer), lora=lora, late=frozenset(late),
    )  # fmt: skip


def _lora(arguments: Arguments, start: StartingPoint) -> Lora | None:
    """How the flags have the encoder adapted."""
    model = arguments.model
    if model.lora_rank is None or not arguments.training.do_train:
        return None
    if start.adapted is not None:
        raise InputError(
            f"--lora_rank {model.lora_rank}: {start.source} is an adapter, and the base of another one has to be an "
            "ordinary checkpoint. Start from the merged model (what PEFT's merge_and_unload and save_pretrained write; "
            "of a run of this program, its output directory), or drop the flag."
        )
    return Lora(model.lora_rank, model.lora_alpha, model.lora_targets)


def _new_parts(start: StartingPoint, config: ModelConfig | TranslationConfig) -> tuple[str, ...]:
    """What a pretrained model of this configuration lacks, of the parts that `_is_frozen` asks for: an adapter that it
    did not have. Decoders are taken to have their cross-attention, as those of mBART have."""
    if not isinstance(config, TranslationConfig) or start.is_joint or start.directory is None:
        return ()
    new = config.encoder.add_adapter and not start.encoder_config.get("add_adapter")
    return ("encoder.adapter.",) if new else ()


def _generation(
    arguments: Arguments, start: StartingPoint, config: ModelConfig | TranslationConfig, tokenizer: Any
) -> GenerationConfig | None:
    if not isinstance(config, TranslationConfig):
        return None
    training = arguments.training
    limits = {"num_beams": training.generation_num_beams, "max_length": training.generation_max_length}
    return generation_config(start, config, tokenizer, **limits)


def _is_frozen(name: str, model: ModelArguments, missing: Sequence[str]) -> bool:
    """Whether a parameter stays as it was pretrained. Parts that are new to the checkpoint are always trained."""
    if is_fixed(name):
        return True
    if model.train_adapters_only:
        return name.startswith("encoder.") and not is_language_adapter(name)
    if is_factor(name):
        return False
    if ".encoder_attn" in name and any(".encoder_attn" in new for new in missing):
        return False
    as_pretrained = model.freeze_encoder or model.lora_rank is not None
    return (
        (model.freeze_feature_encoder and is_feature_encoder(name))
        or (as_pretrained and _is_of_encoder(name, missing))
        or (model.freeze_decoder and name.startswith("decoder."))
    )


def _is_of_encoder(name: str, missing: Sequence[str]) -> bool:
    """Whether a parameter is one of the encoder's; an adapter that the checkpoint lacks counts with the decoder."""
    is_new_adapter = name.startswith("encoder.adapter.") and any(new.startswith("encoder.adapter.") for new in missing)
    return name.startswith("encoder.") and not is_new_adapter


def _warn_of_frozen_randomness(model: ModelArguments, start: StartingPoint, names: Iterable[str]) -> None:
    """Says so when what was never trained is to stay as it is."""
    front_end = model.freeze_feature_encoder and any(is_feature_encoder(name) for name in names)
    frozen = {
        "--freeze_feature_encoder": ("convolutional front end", front_end, start.directory),
        "--freeze_encoder": ("encoder", model.freeze_encoder, start.directory),
        "--train_adapters_only": ("encoder", model.train_adapters_only, start.directory),
        "--freeze_decoder": ("decoder", model.freeze_decoder, start.decoder and start.decoder.directory),
    }
    for flag, (part, is_frozen, directory) in frozen.items():
        if is_frozen and directory is None:
            logger.warning("The %s has random weights and stays as it is; set %s False to train it.", part, flag)


def make_objective(arguments: Arguments, config: ModelConfig | TranslationConfig) -> Objective | PairObjective:
    """The loss of the model's head or decoder, as the flags say."""
    if isinstance(config, TranslationConfig):
        return Objective("translation", label_smoothing=arguments.training.label_smoothing_factor)
    if config.head == "retrieval":
        flags = arguments.model
        return PairObjective(flags.retrieval_loss, flags.retrieval_margin, flags.retrieval_negatives)
    return Objective(
        config.head,
        blank=config.pad_token_id,
        reduction=config.ctc_loss_reduction if config.head == "ctc" else "mean",
        zero_infinity=config.ctc_zero_infinity,
    )


def _tell_of_mismatch(report: Report, start: StartingPoint, do_train: bool) -> None:
    if report.new_head and not do_train:
        raise InputError(
            f"{start.source} holds no weights for this task's head ({', '.join(report.new_head)}): add --do_train to "
            "fine-tune it, or choose a fine-tuned model."
        )
    lacking = [name for name in report.missing if not name.endswith("masked_spec_embed")]  # of training alone
    if lacking and not do_train:
        raise InputError(
            f"{start.source} lacks parts of the model ({', '.join(lacking[:5])}{', …' if len(lacking) > 5 else ''}): "
            "there is nothing to score yet: add --do_train to fine-tune it, or choose a fine-tuned model."
        )
    if report.missing:
        logger.info("Newly drawn, as %s holds none that fit: %s", start.source, ", ".join(report.missing))
    if report.unexpected:
        logger.info("Left out of %s, not needed here: %s", start.source, ", ".join(report.unexpected))


def make_train_loader(arguments: Arguments, corpus: Corpus, mesh: Mesh) -> TrainLoader:
    """The training batches; each holds the rows of one update, over all devices and accumulated micro-batches.

    Raises:
        InputError: retrieval with one pair in an update: the loss of a pair without negatives is 0 whatever it is.
    """
    data, training = arguments.data, arguments.training
    multiple = mesh.size * training.gradient_accumulation_steps
    if corpus.pairs is not None and training.per_device_train_batch_size * multiple < 4:
        raise InputError(
            f"--per_device_train_batch_size {training.per_device_train_batch_size} makes one pair an update, which has "
            "no negatives to learn from. Raise it to 4 or more (clips, two a pair), or --gradient_accumulation_steps."
        )
    if data.max_batch_seconds is None:
        size = {"batch_size": training.per_device_train_batch_size * multiple}
    else:
        size = {"max_batch_samples": round(data.max_batch_seconds * SAMPLE_RATE) * multiple}
    return TrainLoader(
        corpus.splits["train"],
        multiple=multiple,
        max_buckets=data.max_buckets,
        seed=training.data_seed,
        group_by_length=data.group_by_length,
        drop_last=data.dataloader_drop_last,
        num_workers=data.dataloader_num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        sharding=sharding.batch_sharding(mesh),
        pairs=corpus.pairs,
        **size,
    )


def run_length(arguments: Arguments, steps_per_epoch: int) -> int:
    """Updates of the whole run: `--max_steps`, or `--num_train_epochs` times an epoch's, rounded up."""
    training = arguments.training
    if training.max_steps > 0:
        return training.max_steps
    return max(1, -int(-training.num_train_epochs * steps_per_epoch // 1))
