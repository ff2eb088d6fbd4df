"""What flags must not say together, found before any work is done."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from xtremes_jax.arguments.fields import Arguments, DataArguments, ModelArguments, TrainingArguments
from xtremes_jax.arguments.parse import FLAGS, Given
from xtremes_jax.errors import InputError
from xtremes_jax.tasks import XTREME_S, Selection, nearest


def check_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Refuses to be one of several processes that a PyTorch launcher started: they would all write the same files.

    Raises:
        InputError: `LOCAL_RANK` is set and `WORLD_SIZE` is above 1.
    """
    if "LOCAL_RANK" in environment and environment.get("WORLD_SIZE", "1") not in ("", "1"):
        raise InputError(
            f"This is process {environment['LOCAL_RANK']} of {environment['WORLD_SIZE']} that torchrun or another "
            "PyTorch launcher started. One process drives all devices of a machine: start it once, with "
            "python -m xtremes_jax.train and without a launcher, or unset LOCAL_RANK and WORLD_SIZE. On several "
            "machines start it with srun, or with --coordinator_address, --num_processes and --process_id."
        )


def check_model(model: ModelArguments, training: TrainingArguments, given: Given) -> None:
    """Exactly one source of weights, and no scoring of random ones."""
    if model.model_name_or_path is None and model.config_name is None:
        raise InputError(
            "There is no model to start from. Add --model_name_or_path (pretrained weights) or --config_name (random "
            "weights, for example --config_name small)."
        )
    if model.model_name_or_path is not None and model.config_name is not None:
        raise InputError(
            f"{given.source('model_name_or_path')} (pretrained weights) and {given.source('config_name')} (random "
            "weights) exclude each other. Drop one of the two."
        )
    if model.config_name is not None and not training.do_train:
        raise InputError(
            f"{given.source('config_name')} gives random weights, which are of no use without training. Add "
            "--do_train, or name a trained model with --model_name_or_path."
        )


def check_adapters(model: ModelArguments, selection: Selection, given: Given) -> None:
    """Files of languages hold a head for recognition; a decoder has no adapters."""
    kind = selection.task.kind
    if model.target_lang is not None and kind != "ctc":
        raise InputError(
            f"{given.source('target_lang')} {model.target_lang} chooses adapters and a head for recognition, and "
            f"{selection.task.name} is a task of {selection.task.family}. Drop it."
        )
    for name in ("adapter_attn_dim", "train_adapters_only"):
        if getattr(model, name) and kind == "translation":
            raise InputError(
                f"{given.source(name)} is for models with a head, and {selection.task.name} has a decoder. Drop it; "
                "--freeze_encoder leaves the decoder alone to be trained."
            )


def check_frozen(model: ModelArguments, given: Given) -> None:
    """Low-rank factors beside an encoder that was pretrained, and that nothing else freezes or trains."""
    if model.lora_rank is None:
        return
    wanted = given.source("lora_rank")
    if model.model_name_or_path is None:
        raise InputError(
            f"{wanted} adapts a pretrained encoder, and {given.source('config_name')} gives one of random weights. "
            "Name one with --model_name_or_path, or drop the flag to train it as a whole."
        )
    if model.train_adapters_only:
        raise InputError(
            f"{wanted} trains factors in the encoder, and {given.source('train_adapters_only')} nothing there but a "
            "language's adapters. Drop one of the two."
        )
    if model.freeze_encoder:
        raise InputError(
            f"{wanted} trains factors in the encoder, and {given.source('freeze_encoder')} nothing in it. Drop one of "
            "the two."
        )
    if not model.freeze_feature_encoder:
        raise InputError(
            f"{wanted} keeps the encoder as it was pretrained, and {given.source('freeze_feature_encoder')} False "
            "trains its front end. Drop one of the two."
        )


def check_frontend_cache(model: ModelArguments, given: Given) -> None:
    """Frames are kept only of a front end that does not change."""
    frozen = model.freeze_feature_encoder or model.freeze_encoder or model.train_adapters_only
    if model.cache_frontend and not frozen:
        raise InputError(
            f"{given.source('cache_frontend')} keeps what the convolutional front end computes, and "
            f"{given.source('freeze_feature_encoder')} False trains it, so that this changes with every step. Drop one "
            "of the two."
        )


def check_data(data: DataArguments, given: Given) -> None:
    """Durations that leave something to train on, and one way of sizing a batch."""
    longest, shortest = data.max_duration_in_seconds, data.min_duration_in_seconds
    if longest is not None and shortest >= longest:
        raise InputError(
            f"{given.source('min_duration_in_seconds')} {shortest:g} leaves no clip below "
            f"{given.source('max_duration_in_seconds')} {longest:g}. Lower the first or raise the second."
        )
    if data.max_batch_seconds is None:
        return
    if "per_device_train_batch_size" in given.values:
        raise InputError(
            f"{given.source('max_batch_seconds')} and {given.source('per_device_train_batch_size')} are two ways to "
            "size a batch. Drop one of the two."
        )
    if longest is None or data.max_batch_seconds < longest:
        limit = "there is no limit" if longest is None else f"{longest:g} s are allowed"
        raise InputError(
            f"{given.source('max_batch_seconds')} {data.max_batch_seconds:g} may not hold the longest clip ({limit}). "
            f"Set --max_duration_in_seconds to at most {data.max_batch_seconds:g}, or raise --max_batch_seconds."
        )


def check_scored_batches(data: DataArguments, given: Given) -> None:
    """One way of sizing the batches that are scored."""
    if data.max_eval_batch_seconds is not None and "per_device_eval_batch_size" in given.values:
        raise InputError(
            f"{given.source('max_eval_batch_seconds')} and {given.source('per_device_eval_batch_size')} are two ways "
            "to size a batch. Drop one of the two."
        )


def check_training(training: TrainingArguments, given: Given) -> None:
    """Something to do, somewhere to write, one precision, one warm-up, strategies that fit each other."""
    if not (training.do_train or training.do_eval or training.do_predict):
        raise InputError("There is nothing to do. Add --do_train, --do_eval or --do_predict (or several).")
    if training.output_dir is None:
        raise InputError("There is nowhere to write results. Add --output_dir with the name of a directory.")
    for name in ("output_dir", "logging_dir"):
        if "://" in (getattr(training, name) or ""):
            raise InputError(
                f"{given.source(name)} {getattr(training, name)} is no directory of this machine. Give one; "
                "checkpoints alone can lie in a bucket (--checkpoint_dir)."
            )
    if training.fp16 and training.bf16:
        raise InputError(f"{given.source('fp16')} and {given.source('bf16')} exclude each other. Drop one of the two.")
    if training.warmup_steps and training.warmup_ratio:
        raise InputError(
            f"{given.source('warmup_steps')} and {given.source('warmup_ratio')} both set the warm-up. Drop one of "
            "the two."
        )
    if training.max_steps == 0:
        raise InputError(f"{given.source('max_steps')} 0 trains nothing. Use -1 for no limit, or leave out --do_train.")
    if training.gradient_checkpointing and training.remat_policy == "none":
        raise InputError(
            f"{given.source('gradient_checkpointing')} and {given.source('remat_policy')} none contradict each other. "
            "Drop one of the two."
        )
    for name in ("eval_steps", "save_steps", "logging_steps", "warmup_steps"):
        value = getattr(training, name)
        if value is not None and value >= 1 and value != int(value):
            raise InputError(f"{given.source(name)} {value:g} must be whole, or below 1 for a share of the run.")
    _check_fresh_start(training, given)
    if {"none"} < set(training.report_to):
        raise InputError(f"{given.source('report_to')} {' '.join(training.report_to)}: none excludes the others.")


def _check_fresh_start(training: TrainingArguments, given: Given) -> None:
    """Refuses to resume from what the run is to overwrite."""
    wanted = training.resume_from_checkpoint
    if not (training.do_train and training.overwrite_output_dir and wanted is not None):
        return
    removed = [training.output_dir] + [training.checkpoint_dir] * (training.checkpoint_dir is not None)
    if wanted in ("True", "true") or any(_lies_in(wanted, folder) for folder in removed):
        raise InputError(
            f"{given.source('overwrite_output_dir')} would delete the checkpoint that "
            f"{given.source('resume_from_checkpoint')} {wanted} names. To go on from it, leave out the former; to "
            "start afresh, the latter; or write to another --output_dir."
        )


def _lies_in(path: str, folder: str) -> bool:
    """Whether a path is a folder or in it. Of a bucket, too: its names are resolved alike, if not to a real place."""
    inner, outer = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return inner == outer or outer in inner.parents


def check_translation(model: ModelArguments, training: TrainingArguments, selection: Selection, given: Given) -> None:
    """One decoder at most, and what only translation can honour in translation alone.

    Whether the model that is named brings a decoder of its own is known when its config.json is read.
    """
    if model.decoder_name_or_path is not None and model.decoder_config_name is not None:
        raise InputError(
            f"{given.source('decoder_name_or_path')} (pretrained weights) and {given.source('decoder_config_name')} "
            "(random weights) exclude each other. Drop one of the two."
        )
    for name in ("decoder_name_or_path", "decoder_config_name", "add_adapter"):
        if getattr(model, name) is not None and not training.do_train:
            raise InputError(
                f"{given.source(name)} joins parts that have not been trained together, which is of no use without "
                "training. Add --do_train, or name a trained model with --model_name_or_path alone."
            )
    if selection.task.kind == "translation":
        scores = training.do_eval or training.do_predict or training.eval_strategy != "no"
        if training.predict_with_generate is False and scores:
            raise InputError(
                f"{given.source('predict_with_generate')} false leaves nothing to score: BLEU is of what the model "
                "writes. Drop it, or leave out --do_eval, --do_predict and --eval_strategy."
            )
        if model.config_name is not None and model.decoder_name_or_path is None and model.decoder_config_name is None:
            raise InputError(
                f"{selection.task.name} needs a decoder, and {given.source('config_name')} gives an encoder alone. Add "
                "--decoder_name_or_path (pretrained weights) or --decoder_config_name (random ones, for example tiny)."
            )
    elif training.label_smoothing_factor:
        raise InputError(
            f"{given.source('label_smoothing_factor')} is for translation: the losses of {selection.task.name} are not "
            "smoothed. Drop it."
        )


def check_windows(training: TrainingArguments, selection: Selection, given: Given) -> None:
    """Windows in recognition alone, where logits can be joined, and of them more than their strides take."""
    chunk, strides = training.chunk_length_s, training.stride_length_s
    for name in ("chunk_length_s", "stride_length_s"):
        if getattr(training, name) is not None and selection.task.kind != "ctc":
            raise InputError(
                f"{given.source(name)} joins windows on the logits of CTC, which {selection.task.name}, a task of "
                f"{selection.task.family}, has none of: its clips are computed whole. Drop it."
            )
    if strides is None:
        return
    if chunk is None:
        raise InputError(f"{given.source('stride_length_s')} needs --chunk_length_s, the length of the windows.")
    shown = " ".join(f"{seconds:g}" for seconds in strides)
    if len(strides) not in (1, 2):
        raise InputError(
            f"{given.source('stride_length_s')} {shown}: give one number for both ends of a window, or left and right."
        )
    if strides[0] + strides[-1] >= chunk:
        raise InputError(
            f"{given.source('stride_length_s')} {shown} leaves nothing of windows of {chunk:g} s. Lower it, or raise "
            "--chunk_length_s."
        )


def check_retrieval(arguments: Arguments, given: Given) -> None:
    """Flags of retrieval in a task of retrieval alone, and there none that its batches of pairs cannot honour."""
    model, data, training = arguments.model, arguments.data, arguments.training
    if arguments.selection.task.kind != "retrieval":
        for name, value in given.values.items():
            if value is not None and "retrieval" in FLAGS[name].metadata["needs"]:
                raise InputError(
                    f"{given.source(name)} is for retrieval, not for {arguments.selection.task.name}. Drop it, or use "
                    "--task fleurs-retrieval."
                )
        return
    for name in ("retrieval_margin", "retrieval_negatives"):
        if name in given.values and model.retrieval_loss != "margin":
            raise InputError(
                f"{given.source(name)} belongs to --retrieval_loss margin, but the loss is {model.retrieval_loss}. "
                "Drop it, or choose the margin loss."
            )
    for name in ("distractor_dataset_config_name", "distractor_split_name"):
        if given.values.get(name) is not None and data.distractor_dataset_name is None:
            raise InputError(f"{given.source(name)} needs --distractor_dataset_name, the data set that it is part of.")
    _check_distractors(data, training, given)
    if not training.do_train:
        return
    if data.max_batch_seconds is not None:
        raise InputError(
            f"{given.source('max_batch_seconds')} would give short utterances more negatives than long ones: retrieval "
            "has the same number of pairs in every batch. Use --per_device_train_batch_size and --group_by_length."
        )
    if data.dataloader_drop_last:
        raise InputError(
            f"{given.source('dataloader_drop_last')} cannot be had with retrieval: several batches of an epoch may not "
            "be full, so that no sentence comes twice in one. Drop it."
        )
    if training.per_device_train_batch_size % 2:
        raise InputError(
            f"{given.source('per_device_train_batch_size')} {training.per_device_train_batch_size} is odd, and a pair "
            "for retrieval is two clips. Use an even number."
        )


def _check_distractors(data: DataArguments, training: TrainingArguments, given: Given) -> None:
    """Distractors are other clips than those that are scored: as distractors, right answers would count as wrong."""
    name, config = data.distractor_dataset_name, data.distractor_dataset_config_name
    if name is None:
        return
    if name == XTREME_S and config is None:
        raise InputError(
            f"{given.source('distractor_dataset_name')} {name} has many configs. Choose one in the language of the "
            "keys with --distractor_dataset_config_name, such as mls.en."
        )
    same_data = name == data.dataset_name or os.path.realpath(name) == os.path.realpath(data.dataset_name)
    scored = [data.eval_split_name] if training.do_eval else []
    scored += [data.predict_split_name] if training.do_predict else []
    # Configs that differ in the language alone hold the keys all the same.
    same_config = config is None or config.partition(".")[0] == data.dataset_config_name.partition(".")[0]
    split = data.distractor_split_name or "test"
    if same_data and same_config and split in scored:
        raise InputError(
            f"{given.source('distractor_dataset_name')} {name}: its split {split} is what is scored, so that the right "
            "answers would be among the distractors. Choose another split with --distractor_split_name, or another "
            "data set."
        )


def check_best_model(training: TrainingArguments, selection: Selection, given: Given) -> None:
    """A metric this task has, and evaluations where checkpoints are written (as Transformers demands)."""
    metric = training.metric_for_best_model
    known = ("loss", *selection.task.metrics)
    if metric is not None and metric not in known:
        raise InputError(
            f"{given.source('metric_for_best_model')} {metric} is no metric of {selection.task.name}"
            f"{nearest(metric, known)} Choose one of {', '.join(known)}."
        )
    if not training.load_best_model_at_end:
        return
    wanted = given.source("load_best_model_at_end")
    if not training.do_train:
        raise InputError(f"{wanted} needs training. Add --do_train, or drop it.")
    if training.eval_strategy == "no" or training.eval_strategy != training.save_strategy:
        raise InputError(
            f"{wanted} needs checkpoints where the model is scored, but --eval_strategy is {training.eval_strategy} "
            f"and --save_strategy is {training.save_strategy}. Set both to steps, or both to epoch."
        )
    if training.eval_strategy == "steps":
        _check_multiple(training.save_steps, training.eval_steps, wanted)


def _check_multiple(save_steps: float, eval_steps: float, wanted: str) -> None:
    mixed = (save_steps < 1) != (eval_steps < 1)
    # Shares of the run are compared in whole millionths, which floats of this size hold exactly.
    save, evaluate = (max(1, round(steps * 1_000_000)) for steps in (save_steps, eval_steps))
    if mixed or save % evaluate:
        raise InputError(
            f"{wanted} needs --save_steps ({save_steps:g}) to be a multiple of --eval_steps ({eval_steps:g}), so that "
            "every checkpoint is scored. Set both to the same number."
        )


NEEDS: dict[str, tuple[str, Callable[[Arguments], bool]]] = {
    "train": ("without --do_train", lambda run: run.training.do_train),
    "eval": ("without --do_eval", lambda run: run.training.do_eval),
    "predict": ("without --do_predict", lambda run: run.training.do_predict),
    "scores": ("without --do_eval or --do_predict", lambda run: run.training.do_eval or run.training.do_predict),
    "text": ("in a task of {family}", lambda run: run.selection.task.predicts_text),
    "ctc": ("in a task of {family}", lambda run: run.selection.task.kind == "ctc"),
    "translation": ("in a task of {family}", lambda run: run.selection.task.kind == "translation"),
    "own_decoder": (
        "where the decoder brings its vocabulary",
        lambda run: run.model.decoder_config_name is not None,
    ),
    "encoder_trains": ("beside --freeze_encoder", lambda run: not run.model.freeze_encoder),
    "lora": ("without --lora_rank", lambda run: run.model.lora_rank is not None),
    "pooled": ("in a task of {family}", lambda run: run.selection.task.kind in ("classification", "retrieval")),
    "retrieval": ("in a task of {family}", lambda run: run.selection.task.kind == "retrieval"),
    "own_tokenizer": ("beside --tokenizer_name_or_path", lambda run: run.model.tokenizer_name_or_path is None),
    "frontend_cache": ("without --cache_frontend", lambda run: run.model.cache_frontend),
    "batch_size": (
        "beside --max_batch_seconds, which groups clips by length",
        lambda run: run.data.max_batch_seconds is None or run.data.group_by_length,
    ),
    "epochs": ("beside --max_steps", lambda run: run.training.max_steps < 0),
    "warmup": (
        "without --lr_scheduler_type other than constant",
        lambda run: run.training.lr_scheduler_type != "constant",
    ),
    "eval_steps": ("without --eval_strategy steps", lambda run: run.training.eval_strategy == "steps"),
    "save_steps": ("without --save_strategy steps", lambda run: run.training.save_strategy == "steps"),
    "log_steps": ("without --logging_strategy steps", lambda run: run.training.logging_strategy == "steps"),
    "best": (
        "without an --eval_strategy and a --save_strategy: there is no checkpoint with a score to choose from",
        lambda run: "no" not in (run.training.eval_strategy, run.training.save_strategy),
    ),
    "metric": (
        "without --metric_for_best_model or --load_best_model_at_end",
        lambda run: run.training.metric_for_best_model is not None,
    ),
    "tensorboard": ("without --report_to tensorboard", lambda run: bool(run.training.report_to)),
    "push": ("without --push_to_hub", lambda run: run.training.push_to_hub),
}
"""Words of `flag(needs=...)` -> how a note says that the run lacks it, and whether a run has it; `{family}` stands for
what the run's task is one of."""


def find_idle(arguments: Arguments, given: Given) -> tuple[str, ...]:
    """One sentence for each reason for which flags that were given change nothing in this run, whatever their value.

    Args:
        arguments: made definite; see `Arguments`.
        given: only what was given is told of, and a flag once.
    """
    idle: dict[str, list[str]] = {}
    for name, value in given.values.items():
        lacking = [words for words, holds in map(NEEDS.get, FLAGS[name].metadata["needs"]) if not holds(arguments)]
        if lacking and value is not None:
            words = lacking[0].format(family=arguments.selection.task.family)
            idle.setdefault(words, []).append(given.source(name))
    return tuple(f"{_listed(names)} no effect {words}." for words, names in idle.items())


def _listed(names: list[str]) -> str:
    """ "a has", "a and b have", "a, b and c have"."""
    return f"{names[0]} has" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} have"
