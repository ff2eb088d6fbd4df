"""Flags of the reference script and of Transformers' trainer that are refused, each with its reason.

A refused flag may still be given at a value that asks for what happens here anyway; most of these are the values that
switch it off. Every other flag of Transformers 4.18 to 5.23 is a field in `fields.py`; a test holds the two against the
list of all names.
"""

from typing import NamedTuple

OFF = ("none", "false", "0")
"""How "off" is spelled; an empty string counts as none."""


class Refused(NamedTuple):
    """Why a flag is refused, and the values (lower case) at which it is not."""

    reason: str
    accepted: tuple[str, ...] = OFF


_COMPILED = "steps are compiled by XLA already"
_SHARDING = "parameters are sharded with --fsdp_devices N"
_ONE_PROCESS = (
    "one process drives all devices of a machine. Start it with python -m xtremes_jax.train, on several machines with "
    "srun or with --coordinator_address, --num_processes and --process_id"
)
_DDP = "it tunes PyTorch's DistributedDataParallel, which is not used: gradients are summed inside the compiled step"
_LOADER = "it tunes PyTorch's DataLoader, which is not used. See --dataloader_num_workers"
_GENERATION = (
    "the settings of a generation_config.json are read from the model's directory; --generation_num_beams and "
    "--generation_max_length change them"
)
_WHOLE_PRECISION = "evaluation already computes in the precision that --fp16 or --bf16 sets"
_TRACKIO = "runs are logged to TensorBoard (--report_to tensorboard) and metrics.jsonl only"
_TPU = "TPUs are found by JAX without a flag"
_TOKENS = "tokens of text are not what is fed in: audio-seconds a second are shown, and written to metrics.jsonl"
_METRICS = "the metrics are those of XTREME-S, which compare predictions with references"
_LENGTHS = "lengths are read from the audio headers, in no column"

REFUSED: dict[str, Refused] = {
    # The reference script's own.
    "use_auth_token": Refused(
        "the token of `hf auth login` is sent whenever there is one; set HF_HUB_DISABLE_IMPLICIT_TOKEN=1 against that",
        ("true",),
    ),
    "phoneme_language": Refused("targets are the characters of the transcript; phonemes are not supported"),
    "trust_remote_code": Refused("code from a hub is never run"),
    # Optimiser and loss.
    "optim": Refused(
        "AdamW is the only optimizer", ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_hf", "adamw_jax")
    ),
    "adafactor": Refused("AdamW is the only optimizer"),
    "optim_args": Refused("AdamW has flags of its own: --adam_beta1, --adam_beta2, --adam_epsilon, --weight_decay"),
    "optim_target_modules": Refused("AdamW updates all parameters; --freeze_feature_encoder exempts the front end"),
    "lr_scheduler_kwargs": Refused("the schedules have no further settings"),
    "neftune_noise_alpha": Refused("it adds noise to embeddings of text, and there are none"),
    "average_tokens_across_devices": Refused(
        "losses are always averaged over the clips of all devices, so a device count changes nothing", ("true",)
    ),
    "auto_find_batch_size": Refused(
        "the longest bucket runs first, so a batch that does not fit fails in the first minute. Lower "
        "--per_device_train_batch_size, or set --max_batch_seconds"
    ),
    # Precision and compilation.
    "half_precision_backend": Refused("half precision is XLA's own", ("auto", *OFF)),
    "fp16_backend": Refused("half precision is XLA's own", ("auto", *OFF)),
    "fp16_opt_level": Refused("Apex is not used; --fp16 is the equal of its level O1", ("o1",)),
    "fp16_full_eval": Refused(_WHOLE_PRECISION),
    "bf16_full_eval": Refused(_WHOLE_PRECISION),
    "activation_checkpointing_kwargs": Refused("choose what is computed again with --remat_policy"),
    "gradient_checkpointing_kwargs": Refused("choose what is computed again with --remat_policy"),
    "torch_compile": Refused(_COMPILED),
    "torch_compile_backend": Refused(_COMPILED),
    "torch_compile_mode": Refused(_COMPILED),
    "torchdynamo": Refused(_COMPILED),
    "jit_mode_eval": Refused(_COMPILED),
    "use_ipex": Refused("PyTorch's extension for Intel processors is not used"),
    "use_mps_device": Refused("PyTorch's back end for Apple processors is not used"),
    "use_liger_kernel": Refused("its kernels are PyTorch's"),
    "liger_kernel_config": Refused("its kernels are PyTorch's"),
    "use_cache": Refused("the encoder has no cache of keys and values"),
    "torch_empty_cache_steps": Refused("XLA plans the memory of a step when it is compiled"),
    "full_determinism": Refused(
        "runs repeat by themselves on CPUs and TPUs; on NVIDIA GPUs set XLA_FLAGS=--xla_gpu_deterministic_ops=true"
    ),
    # Devices and processes.
    "local_rank": Refused(_ONE_PROCESS, ("-1", "none")),
    "_n_gpu": Refused(_ONE_PROCESS),
    "deepspeed": Refused(_SHARDING),
    "fsdp": Refused(_SHARDING),
    "fsdp_config": Refused(_SHARDING),
    "fsdp_min_num_params": Refused(_SHARDING),
    "fsdp_transformer_layer_cls_to_wrap": Refused(_SHARDING),
    "sharded_ddp": Refused(_SHARDING),
    "parallelism_config": Refused(_SHARDING),
    "accelerator_config": Refused("Accelerate is not used"),
    "dispatch_batches": Refused("Accelerate is not used"),
    "split_batches": Refused("batch sizes are per device"),
    "mp_parameters": Refused("SageMaker's model parallelism is not used"),
    "ddp_backend": Refused(_DDP),
    "xpu_backend": Refused(_DDP),
    "ddp_broadcast_buffers": Refused(_DDP),
    "ddp_bucket_cap_mb": Refused(_DDP),
    "ddp_find_unused_parameters": Refused(_DDP),
    "ddp_static_graph": Refused(_DDP),
    "ddp_timeout": Refused(_DDP, ()),
    "tpu_num_cores": Refused(_TPU),
    "tpu_metrics_debug": Refused(_TPU),
    "ray_scope": Refused("Ray's search of hyperparameters is not used", ("last",)),
    # Data loading.
    "dataloader_pin_memory": Refused("batches are copied to the devices ahead of their use by JAX", ("true",)),
    "dataloader_persistent_workers": Refused("training keeps its workers for the whole run", ("true",)),
    "dataloader_prefetch_factor": Refused(_LOADER, ("none",)),
    "dataloader_multiprocessing_context": Refused(_LOADER, ("none",)),
    "dataloader_in_order": Refused("batches always come in the order of the plan, so that a run repeats", ("true",)),
    "sortish_sampler": Refused("use --group_by_length"),
    "length_column_name": Refused(_LENGTHS, ("length",)),
    "remove_unused_columns": Refused("columns that are not used are never read", ("true",)),
    "label_names": Refused("the target is chosen with --target_column_name", ("labels",)),
    "ignore_data_skip": Refused("a resumed run goes on at its exact place in the data, at no cost"),
    # Evaluation.
    "eval_delay": Refused("the first evaluation comes after the first --eval_steps or epoch"),
    "eval_on_start": Refused("score a checkpoint before training with python -m xtremes_jax.evaluate"),
    "eval_accumulation_steps": Refused("predictions leave the devices after every batch", ("none", "1")),
    "eval_do_concat_batches": Refused("scores are those of the whole split", ("true",)),
    "batch_eval_metrics": Refused("scores are those of the whole split"),
    "eval_use_gather_object": Refused("every process has all predictions from the devices"),
    "prediction_loss_only": Refused("leave out --do_eval and --do_predict if no score is wanted"),
    "include_for_metrics": Refused(_METRICS),
    "include_inputs_for_metrics": Refused(_METRICS),
    "use_legacy_prediction_loop": Refused("there is one loop"),
    "past_index": Refused("the encoder has no memory between batches", ("-1", "none")),
    "generation_config": Refused(_GENERATION),
    # Logging.
    "debug": Refused("set JAX_DEBUG_NANS=true to find a value that is not finite"),
    "logging_nan_inf_filter": Refused(
        "steps with a loss or gradients that are not finite are left out of the mean that is logged, and counted",
        ("true",),
    ),
    "log_level_replica": Refused("processes other than the first show errors alone", ("warning",)),
    "log_on_each_node": Refused("the first of all processes logs", ("true", *OFF)),
    "include_num_input_tokens_seen": Refused(_TOKENS, (*OFF, "no")),
    "include_tokens_per_second": Refused(_TOKENS),
    "skip_memory_metrics": Refused("profile memory with jax.profiler", ("true",)),
    "project": Refused(_TRACKIO),
    "trackio_space_id": Refused(_TRACKIO),
    "trackio_bucket_id": Refused(_TRACKIO),
    "trackio_static_space_id": Refused(_TRACKIO),
    # Checkpoints and the hub.
    "save_safetensors": Refused("weights are written as safetensors", ("true",)),
    "save_only_model": Refused("a checkpoint without the optimizer's state could not be resumed from"),
    "save_on_each_node": Refused("all machines share one --output_dir, where checkpoints are written once"),
    "enable_jit_checkpoint": Refused("SIGTERM always saves a checkpoint", ("true",)),
    "restore_callback_states_from_checkpoint": Refused("there are no callbacks"),
    "hub_revision": Refused("the upload goes to the repository's main branch", ("none", "main")),
    "push_to_hub_model_id": Refused("give the repository's whole name with --hub_model_id"),
    "push_to_hub_organization": Refused("give the repository's whole name with --hub_model_id"),
}
