"""Flags that say what to do, for how long, how precisely, and what to write.

Names, defaults and meanings are those of `run_xtreme_s.py` and of Transformers' `TrainingArguments`; what is ours alone
is marked "(ours)" in its help.
"""

from dataclasses import dataclass

from xtremes_jax.arguments.flag import flag

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt")
HUB_STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")
LOG_LEVELS = ("passive", "debug", "info", "warning", "error", "critical")


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
    save_seconds: float | None = flag(
        None,
        "Write a checkpoint too when the last one is so many seconds old (unset: only as --save_strategy says).",
        above=0,
        needs=("train",),
    )
    checkpoint_dir: str | None = flag(
        None,
        "Where checkpoints lie, a directory or gs://BUCKET/FOLDER of this run alone (ours; unset: checkpoints/ in the "
        "output directory).",
        needs=("train",),
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
    label_smoothing_factor: float = flag(
        0.0,
        "Share of the target's probability that training spreads over the whole vocabulary, in translation.",
        at_least=0,
        below=1,
        needs=("train", "translation"),
    )
    ctc_beams: int = flag(
        1,
        "Beams of CTC prefix beam search for a transcript, without a language model; 1 takes the likeliest token of "
        "each frame, as the reference script does (ours).",
        at_least=1,
        scoring=True,
        needs=("scores", "ctc"),
    )
    chunk_length_s: float | None = flag(
        None,
        "Recognition: score recordings longer than so many seconds in overlapping windows of that length, joined on "
        "their logits, in memory that does not grow with them (unset: every clip in one pass).",
        above=0,
        scoring=True,
        needs=("scores", "ctc"),
    )
    stride_length_s: tuple[float, ...] | None = flag(
        None,
        "Seconds at the left and right end of a window that are cut off its logits: one number for both, or two "
        "(unset: a sixth of --chunk_length_s).",
        at_least=0,
        scoring=True,
        needs=("scores", "ctc"),
    )
    predict_with_generate: bool | None = flag(
        None,
        "Score what the model writes by itself, as BLEU needs it (unset: yes; cannot be switched off in translation).",
        scoring=True,
        needs=("scores", "translation"),
    )
    generation_num_beams: int | None = flag(
        None,
        "Beams of the search for a translation; 1 is greedy (unset: as the checkpoint says, else 1).",
        at_least=1,
        scoring=True,
        needs=("translation",),
    )
    generation_max_length: int | None = flag(
        None,
        "Most tokens of a translation, its start token among them; what is cut off there is counted (unset: as the "
        "checkpoint says, else 128).",
        at_least=2,
        scoring=True,
        needs=("translation",),
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
    max_nonfinite_steps: int = flag(
        100,
        "Stop when the gradients of so many steps in a row are not finite (fp16 adapts its scale in fewer).",
        at_least=1,
        needs=("train",),
    )
    stall_timeout: float | None = flag(
        1800.0,
        "Seconds without a step, a scored batch, a prepared clip or a new phase after which the run says where it "
        "stands and what every thread does; it goes on.",
        above=0,
        scoring=True,
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
    push_to_hub: bool = flag(False, "Upload the model, its card and its scores to the Hugging Face hub.")
    hub_model_id: str | None = flag(
        None, "Repository to upload to (unset: named like the output directory).", needs=("push",)
    )
    hub_token: str | None = flag(
        None,
        "Token of the hub, for downloads of models and for the upload (unset: that of `hf auth login`).",
        old=("push_to_hub_token",),
        scoring=True,
    )
    hub_private_repo: bool | None = flag(
        None,
        "Whether a repository that does not exist yet is made private (unset: as the owner's settings on the hub say).",
        needs=("push",),
    )
    hub_strategy: str = flag(
        "every_save",
        "When to upload, and what: the finished run (end), the model of every checkpoint too (every_save), with that "
        "also the newest checkpoint, as last-checkpoint (checkpoint), or all of them (all_checkpoints).",
        choices=HUB_STRATEGIES,
        needs=("train", "push"),
    )
    hub_always_push: bool = flag(
        False,
        "Upload every checkpoint's model, however many wait for an upload that is under way (else the newest does).",
        needs=("train", "push"),
    )
    fsdp_devices: int = flag(
        1, "Devices that share one copy of the parameters; must divide their number (ours).", at_least=1, scoring=True
    )
    coordinator_address: str | None = flag(
        None,
        "Of a run of several processes: host:port of process 0 (ours; unset: as JAX_COORDINATOR_ADDRESS, Slurm, a TPU "
        "pod, Kubernetes or Open MPI says).",
        scoring=True,
    )
    num_processes: int | None = flag(
        None, "Their number; 1 looks for no others (ours; unset: as the environment says).", at_least=1, scoring=True
    )
    process_id: int | None = flag(
        None, "Number of this one, from 0 on (ours; unset: as the environment says).", at_least=0, scoring=True
    )
    use_cpu: bool = flag(False, "Run on the CPU even if there is an accelerator.", old=("no_cuda",), scoring=True)
    compilation_cache_dir: str | None = flag(
        None,
        "Private folder where compiled steps are kept for the next run, up to 10 GiB of them, or none (ours; unset: as "
        "JAX is configured, else ~/.cache/xtremes_jax/compiled).",
        scoring=True,
    )
    disable_tqdm: bool = flag(False, "Show no progress bar.", scoring=True)
    log_level: str = flag(
        "passive", "Least serious log lines to show; passive is info.", choices=LOG_LEVELS, scoring=True
    )
