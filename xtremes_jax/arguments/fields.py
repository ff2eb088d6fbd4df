"""The flags, one dataclass field each: model, data, training.

Names, defaults and meanings are those of `run_xtreme_s.py` and of Transformers' `TrainingArguments`; what is ours alone
is marked "(ours)" in its help.
"""

from dataclasses import dataclass

from xtremes_jax.arguments import retrieval
from xtremes_jax.arguments.flag import flag
from xtremes_jax.tasks import XTREME_S, Selection

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt")
LOG_LEVELS = ("passive", "debug", "info", "warning", "error", "critical")


@dataclass(frozen=True)
class ModelArguments:
    """Which weights to start from, and how they are regularised while training."""

    model_name_or_path: str | None = flag(
        None, "Hub id or directory of the Transformers checkpoint to start from.", scoring=True
    )
    config_name: str | None = flag(
        None,
        "Start from random weights in this shape: a preset (tiny, small, base, xls_r_300m, xls_r_1b, xls_r_2b) or the "
        "path of a config.json (ours: in Transformers' scripts it only replaces the configuration).",
    )
    tokenizer_name_or_path: str | None = flag(
        None,
        "Hub id or directory of the tokenizer; without it the vocabulary is made from the transcripts.",
        scoring=True,
        needs=("ctc",),
    )
    cache_dir: str | None = flag(
        None, "Folder for downloads and prepared data, in place of the Hugging Face cache.", scoring=True
    )
    freeze_feature_encoder: bool = flag(
        True,
        "Keep the convolutional front end as it was pretrained.",
        old=("freeze_feature_extractor",),
        needs=("train",),
    )
    attention_dropout: float = flag(
        0.0, "Dropout rate of the attention weights.", at_least=0, below=1, needs=("train",)
    )
    activation_dropout: float = flag(
        0.0, "Dropout rate inside the feed-forward blocks.", at_least=0, below=1, needs=("train",)
    )
    feat_proj_dropout: float = flag(
        0.0, "Dropout rate of the projected features.", at_least=0, below=1, needs=("train",)
    )
    hidden_dropout: float = flag(
        0.0, "Dropout rate of the hidden states in the encoder.", at_least=0, below=1, needs=("train",)
    )
    final_dropout: float = flag(0.0, "Dropout rate before the CTC head.", at_least=0, below=1, needs=("train", "ctc"))
    mask_time_prob: float = flag(
        0.05, "Share of frames that SpecAugment masks, at most.", at_least=0, at_most=1, needs=("train",)
    )
    mask_time_length: int = flag(10, "Length of a masked span, in frames.", at_least=1, needs=("train",))
    mask_feature_prob: float = flag(
        0.0, "Share of feature channels that SpecAugment masks.", at_least=0, at_most=1, needs=("train",)
    )
    mask_feature_length: int = flag(10, "Width of a masked span, in feature channels.", at_least=1, needs=("train",))
    layerdrop: float = flag(
        0.0, "Probability of leaving out an encoder layer in a step.", at_least=0, below=1, needs=("train",)
    )
    ctc_zero_infinity: bool = flag(
        False, "Count clips whose transcript cannot be aligned as loss 0, not infinity.", needs=("train", "ctc")
    )
    ctc_loss_reduction: str = flag(
        "mean",
        "Whether a batch's CTC loss is the mean per label or the sum.",
        choices=("mean", "sum"),
        needs=("train", "ctc"),
    )
    use_weighted_layer_sum: bool | None = flag(
        None,
        "Feed the head for classification or retrieval a learned mix of all layers (ours; unset: as the checkpoint "
        "says).",
        needs=("train", "pooled"),
    )
    embedding_dim: int | None = retrieval.EMBEDDING_DIM
    retrieval_loss: str = retrieval.RETRIEVAL_LOSS
    retrieval_margin: float = retrieval.RETRIEVAL_MARGIN
    retrieval_negatives: int = retrieval.RETRIEVAL_NEGATIVES


@dataclass(frozen=True)
class DataArguments:
    """What to train on and what to score, how it is cleaned and how it is put into batches."""

    dataset_name: str = flag(
        XTREME_S,
        "Hub id, local directory, CSV/TSV/JSONL manifest, or demo for the built-in synthetic corpus.",
        scoring=True,
    )
    dataset_config_name: str | None = flag(
        None, "Config of the data set, such as mls.all or minds14.fr-FR; says task and language at once.", scoring=True
    )
    data_dir: str | None = flag(
        None,
        "Directory of data that is not downloaded: the LDC's BABEL packages, or for google/xtreme_s a mirror of the "
        "hub; of other data sets, the folder of the repository to read.",
        scoring=True,
    )
    task: str | None = flag(
        None, "Task of XTREME-S; see the table of tasks (unset: from --dataset_config_name).", scoring=True
    )
    language: str | None = flag(
        None,
        "One language as the data set's configs spell it, or all (unset: as the config says, else all).",
        scoring=True,
    )
    language_group: str | None = flag(
        None, "A geographical group of FLEURS languages, such as western_european_we.", scoring=True
    )
    train_split_name: str = flag("train", "Name of the split to train on.", needs=("train",))
    eval_split_name: str = flag(
        "validation", "Name of the split that is scored during and after training.", needs=("eval",)
    )
    predict_split_name: str = flag(
        "test", "Name of the split that is scored at the end.", scoring=True, needs=("predict",)
    )
    audio_column_name: str = flag("audio", "Name of the column that holds the clips.", scoring=True)
    target_column_name: str | None = flag(
        None, "Name of the column to predict (unset: the task's, such as transcription).", scoring=True
    )
    chars_to_ignore: tuple[str, ...] | None = flag(
        tuple(', ? . ! - ; : " “ % ‘ ” �'.split()),
        "Characters to strip from transcripts, put between [ and ] of one regular expression as the reference does.",
        scoring=True,
        needs=("ctc",),
    )
    max_duration_in_seconds: float | None = flag(
        30.0, "Train only on clips shorter than this (none: no limit).", above=0, needs=("train",)
    )
    min_duration_in_seconds: float = flag(0.0, "Train only on clips longer than this.", at_least=0, needs=("train",))
    max_train_samples: int | None = flag(
        None, "Use only the first so many clips for training.", at_least=1, needs=("train",)
    )
    max_eval_samples: int | None = flag(
        None, "Use only the first so many clips of the evaluation split.", at_least=1, needs=("eval",)
    )
    max_predict_samples: int | None = flag(
        None, "Use only the first so many clips of the prediction split.", at_least=1, scoring=True, needs=("predict",)
    )
    preprocessing_only: bool = flag(False, "Stop after the data is prepared and cached.")
    preprocessing_num_workers: int | None = flag(
        None, "Threads that read the clips' headers (unset: as many as there are cores).", at_least=1, scoring=True
    )
    overwrite_cache: bool = flag(False, "Prepare the data anew even if a cached copy is there.", scoring=True)
    per_lang_metrics: bool = flag(
        True,
        "Score each language by itself and report their unweighted average; false pools all clips.",
        scoring=True,
        needs=("scores",),
    )
    unk_token: str = flag(
        "[UNK]",
        "Token for characters outside the vocabulary, in a tokenizer made from the data.",
        needs=("train", "ctc", "own_tokenizer"),
    )
    pad_token: str = flag(
        "[PAD]",
        "Padding token and CTC blank, in a tokenizer made from the data.",
        needs=("train", "ctc", "own_tokenizer"),
    )
    word_delimiter_token: str = flag(
        "|",
        "Token that stands for the space, in a tokenizer made from the data.",
        needs=("train", "ctc", "own_tokenizer"),
    )
    max_skipped_fraction: float = flag(
        0.01,
        "Stop if more than this share of a split's clips cannot be used (ours).",
        at_least=0,
        at_most=1,
        scoring=True,
    )
    group_by_length: bool = flag(
        False,
        "Put clips of about the same length into one batch.",
        old=("train_sampling_strategy",),
        needs=("train", "batch_size"),
    )
    max_batch_seconds: float | None = flag(
        None,
        "Fill each device's training batch with up to so many seconds of padded audio, in place of "
        "--per_device_train_batch_size clips; groups by length (ours).",
        above=0,
        needs=("train",),
    )
    max_buckets: int = flag(
        16,
        "Number of lengths that batches are padded to, at most; each is compiled once (ours).",
        at_least=1,
        scoring=True,
    )
    dataloader_num_workers: int = flag(
        0,
        "Processes that decode audio ahead of the devices; 0 decodes in threads of this one.",
        at_least=0,
        scoring=True,
    )
    dataloader_drop_last: bool = flag(
        False, "Leave out the last batch of an epoch if it is not full.", needs=("train",)
    )
    key_language: str = retrieval.KEY_LANGUAGE
    distractor_dataset_name: str | None = retrieval.DISTRACTOR_DATASET_NAME
    distractor_dataset_config_name: str | None = retrieval.DISTRACTOR_DATASET_CONFIG_NAME
    distractor_split_name: str | None = retrieval.DISTRACTOR_SPLIT_NAME
    write_embeddings: bool = retrieval.WRITE_EMBEDDINGS


@dataclass(frozen=True)
class TrainingArguments:
    """What to do, for how long, how precisely, and what to write."""

    output_dir: str | None = flag(None, "Directory for the model, checkpoints and results.", scoring=True)
    overwrite_output_dir: bool = flag(
        False, "Start afresh in an output directory that is in use, in place of resuming from it.", needs=("train",)
    )
    do_train: bool = flag(False, "Train.")
    do_eval: bool = flag(False, "Score the evaluation split.")
    do_predict: bool = flag(False, "Score the prediction split at the end.", scoring=True)
    per_device_train_batch_size: int = flag(
        8, "Clips a device trains on at a time.", old=("per_gpu_train_batch_size",), at_least=1, needs=("train",)
    )
    per_device_eval_batch_size: int = flag(
        8,
        "Clips a device scores at a time.",
        old=("per_gpu_eval_batch_size",),
        at_least=1,
        scoring=True,
        needs=("scores",),
    )
    gradient_accumulation_steps: int = flag(
        1, "Batches whose gradients are added up for one update.", at_least=1, needs=("train",)
    )
    learning_rate: float = flag(5e-5, "Peak learning rate.", at_least=0, needs=("train",))
    weight_decay: float = flag(
        0.0, "Decay of weights by AdamW; biases and norms have none.", at_least=0, needs=("train",)
    )
    adam_beta1: float = flag(0.9, "AdamW's decay of the first moment.", at_least=0, below=1, needs=("train",))
    adam_beta2: float = flag(0.999, "AdamW's decay of the second moment.", at_least=0, below=1, needs=("train",))
    adam_epsilon: float = flag(1e-8, "AdamW's constant against division by zero.", above=0, needs=("train",))
    max_grad_norm: float = flag(
        1.0, "Scale gradients down to this norm; 0 leaves them alone.", at_least=0, needs=("train",)
    )
    num_train_epochs: float = flag(
        3.0, "Passes over the training data; may be a fraction.", above=0, needs=("train", "epochs")
    )
    max_steps: int = flag(
        -1, "Updates to make, in place of --num_train_epochs; -1 for no such limit.", at_least=-1, needs=("train",)
    )
    lr_scheduler_type: str = flag(
        "linear", "Course of the learning rate after the warm-up.", choices=SCHEDULES, needs=("train",)
    )
    warmup_steps: float = flag(
        0.0,
        "Updates in which the learning rate rises; below 1, a share of the run.",
        at_least=0,
        needs=("train", "warmup"),
    )
    warmup_ratio: float = flag(
        0.0, "Share of the run in which the learning rate rises.", at_least=0, at_most=1, needs=("train", "warmup")
    )
    eval_strategy: str = flag(
        "no",
        "When to score during training.",
        old=("evaluation_strategy",),
        choices=("no", "steps", "epoch"),
        needs=("train",),
    )
    eval_steps: float | None = flag(
        None,
        "Updates between evaluations; below 1, a share of the run (unset: --logging_steps).",
        above=0,
        needs=("train", "eval_steps"),
    )
    save_strategy: str = flag("steps", "When to write checkpoints.", choices=("no", "steps", "epoch"), needs=("train",))
    save_steps: float = flag(
        500, "Updates between checkpoints; below 1, a share of the run.", above=0, needs=("train", "save_steps")
    )
    save_total_limit: int | None = flag(
        None, "Keep only so many checkpoints, the best one among them.", at_least=1, needs=("train",)
    )
    logging_strategy: str = flag(
        "steps", "When to log the training loss.", choices=("no", "steps", "epoch"), needs=("train",)
    )
    logging_steps: float = flag(
        500, "Updates between log lines; below 1, a share of the run.", above=0, needs=("train", "log_steps")
    )
    logging_first_step: bool = flag(False, "Log the first update too.", needs=("train", "log_steps"))
    logging_dir: str | None = flag(
        None, "Folder for TensorBoard (unset: runs/ in the output directory).", needs=("train", "tensorboard")
    )
    fp16: bool = flag(False, "Compute in float16 with a dynamic loss scale.", scoring=True)
    bf16: bool = flag(False, "Compute in bfloat16.", scoring=True)
    tf32: bool | None = flag(
        None, "Multiply float32 matrices in TensorFloat-32, or not (unset: as JAX does by itself).", scoring=True
    )
    gradient_checkpointing: bool = flag(
        False,
        "Compute activations again in the backward pass, to save memory.",
        old=("activation_checkpointing",),
        needs=("train",),
    )
    remat_policy: str | None = flag(
        None,
        "What the backward pass computes again: none, full layers, or all but the matrix products (dots) (ours; unset: "
        "full with --gradient_checkpointing, else none).",
        choices=("none", "full", "dots"),
        needs=("train",),
    )
    load_best_model_at_end: bool = flag(False, "End with the best checkpoint in place of the last.", needs=("train",))
    metric_for_best_model: str | None = flag(
        None,
        "Score that decides which checkpoint is best, for --load_best_model_at_end and for --save_total_limit, which "
        "keeps it: loss or one of the task's metrics (unset: loss with the former, else none).",
        needs=("train", "best"),
    )
    greater_is_better: bool | None = flag(
        None, "Whether a greater score is better (unset: as the metric is).", needs=("train", "best", "metric")
    )
    resume_from_checkpoint: str | None = flag(
        None, "Checkpoint to go on from (unset: the newest one in the output directory, if any).", needs=("train",)
    )
    seed: int = flag(
        42,
        "Seed of everything random: new weights, dropout, masks, order of clips.",
        at_least=0,
        at_most=2**32 - 1,
        needs=("train",),
    )
    data_seed: int | None = flag(
        None, "Seed of the order of clips alone (unset: --seed).", at_least=0, at_most=2**32 - 1, needs=("train",)
    )
    report_to: tuple[str, ...] = flag(
        (),
        "Write TensorBoard files: tensorboard, all or none.",
        choices=("none", "tensorboard", "all"),
        needs=("train",),
    )
    run_name: str | None = flag(
        None, "Folder of this run in TensorBoard's (unset: none of its own).", needs=("train", "tensorboard")
    )
    push_to_hub: bool = flag(False, "Upload the finished output directory to the Hugging Face hub.")
    hub_model_id: str | None = flag(
        None, "Repository to upload to (unset: named like the output directory).", needs=("push",)
    )
    hub_token: str | None = flag(
        None,
        "Token of the hub, for downloads of models and for the upload (unset: that of `hf auth login`).",
        old=("push_to_hub_token",),
        scoring=True,
    )
    hub_private_repo: bool = flag(False, "Make a repository that does not exist yet private.", needs=("push",))
    fsdp_devices: int = flag(
        1, "Devices that share one copy of the parameters; must divide their number (ours).", at_least=1, scoring=True
    )
    use_cpu: bool = flag(False, "Run on the CPU even if there is an accelerator.", old=("no_cuda",), scoring=True)
    compilation_cache_dir: str | None = flag(
        None, "Folder where compiled steps are kept for the next run (ours; unset: as JAX is configured).", scoring=True
    )
    disable_tqdm: bool = flag(False, "Show no progress bar.", scoring=True)
    log_level: str = flag(
        "passive", "Least serious log lines to show; passive is info.", choices=LOG_LEVELS, scoring=True
    )


@dataclass(frozen=True)
class Arguments:
    """All flags of one run, checked and made definite.

    What a flag leaves open is filled in: task, language, config and target column from `selection`; `do_eval` when
    there is an `eval_strategy`; `eval_steps` from `logging_steps`; `remat_policy`; `data_seed`; `metric_for_best_model`
    (without its "eval_") and `greater_is_better` when the best model is wanted; `report_to` as () or ("tensorboard",).
    """

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    selection: Selection
    notes: tuple[str, ...] = ()
    """Sentences for the log: flags that were given but change nothing in this run, and why."""
