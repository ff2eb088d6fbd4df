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
    language_part,
    newly_drawn,
    split_params,
)
from xtremes_jax.starting import (
    StartingPoint,
    generation_config,
    has_new_adapters,
    initial_params,
)
from xtremes_jax.together import check_same_parameters
from xtremes_jax.training import sharding
from xtremes_jax.training.devices import describe_devices
from xtremes_jax.training.losses import Objective, PairObjective
from xtremes_jax.training.precision import compute_dtype
from xtremes_jax.training.state import parameter_count

logger = logging.getLogger(__name__)


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
    """What a pretrained model of this configuration lacks, of the parts that `_is_frozen` asks for: adapters that it
    did not have. Decoders are taken to have their cross-attention, as those of mBART have."""
    if start.directory is None:
        return ()
    if not isinstance(config, TranslationConfig):
        is_new = config.has_language_adapters and has_new_adapters(start)
        return tuple(name for name in language_part(config) if is_language_adapter(name)) if is_new else ()
    if start.is_joint:
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
    """Whether a parameter is one of the encoder's; adapters that the checkpoint lacks count with head or decoder."""
    is_new = any(
        is_adapter(name) and any(map(is_adapter, missing)) for is_adapter in (_is_length_adapter, is_language_adapter)
    )
    return name.startswith("encoder.") and not is_new


def _is_length_adapter(name: str) -> bool:
    """Whether a parameter is of the convolutions behind an encoder in translation, by either name."""
    return name.startswith("encoder.adapter.")


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
