"""Which architecture a run's model has: the checkpoint's, with the task's head or decoder, and as the flags say."""

import logging
from typing import Any

from xtremes_jax.arguments import Arguments, ModelArguments
from xtremes_jax.corpus import Corpus
from xtremes_jax.errors import InputError
from xtremes_jax.languages import check_vocabulary, of_language
from xtremes_jax.models import ModelConfig, TranslationConfig, is_retrieval
from xtremes_jax.models.config import LANGUAGE_ADAPTER
from xtremes_jax.starting import StartingPoint, configure, configure_translator

logger = logging.getLogger(__name__)

_FROM_FLAGS = (
    "attention_dropout activation_dropout feat_proj_dropout hidden_dropout final_dropout layerdrop mask_time_prob "
    "mask_time_length mask_feature_prob mask_feature_length ctc_zero_infinity ctc_loss_reduction use_weighted_layer_sum"
).split()
"""Fields of the model's configuration that flags of the same name override, as in the reference script."""

_EMBEDDING_DIM = 256
"""Width of new embeddings: of the order of the classifier's projection, so that the pool of keys stays small."""


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
    said = "as --mask_padding says" if flags.mask_padding is False else f"as in Transformers for {start.source}"
    logger.info(
        "Padding is not masked, %s: what a clip gives depends on the length of its batch. --mask_padding True makes it "
        "what the clip gives alone.", said,
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
