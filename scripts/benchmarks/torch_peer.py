"""PyTorch Transformers as a contender: `Wav2Vec2For…` with SDPA, trained as its Trainer trains it."""

import itertools

import numpy as np
import torch
import transformers

from benchmarks.contenders import Prepared, batches_of, best_rate
from benchmarks.work import Work
from xtremes_jax.batch import Batch

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CLASSES = {"ctc": "Wav2Vec2ForCTC", "classification": "Wav2Vec2ForSequenceClassification"}


def prepare(work: Work, *, compiled: bool) -> Prepared:
    """Random weights, autocast for half precision, fused AdamW, gradient clipping, `torch.compile` if asked for."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    config = work.model_config()
    settings = {**config.to_huggingface(), "attn_implementation": "sdpa"}
    model = getattr(transformers, _CLASSES[work.head])(transformers.Wav2Vec2Config(**settings)).to(device)
    if work.freeze_feature_encoder:
        model.freeze_feature_encoder()
    if work.remat != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=3e-4,
        weight_decay=0.01,
        fused=True,
    )
    scaler = torch.amp.GradScaler(device, enabled=work.dtype == "float16")
    forward = torch.compile(model) if compiled else model
    batches = itertools.cycle([_inputs(work, batch, device) for batch in batches_of(work)])

    def train() -> None:
        model.train()
        with torch.autocast(device, dtype=_DTYPES[work.dtype], enabled=_DTYPES[work.dtype] is not None):
            loss = forward(**next(batches)).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def evaluate() -> None:
        model.eval()
        with (
            torch.no_grad(),
            torch.autocast(device, dtype=_DTYPES[work.dtype], enabled=_DTYPES[work.dtype] is not None),
        ):
            forward(**next(batches)).logits.argmax(dim=-1)

    def run(kind: str, steps: int) -> None:
        for _ in range(steps):
            train() if kind == "train" else evaluate()
        if device == "cuda":
            torch.cuda.synchronize()

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    where = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return Prepared(
        run,
        lambda: _matmul_peak(device, _DTYPES[work.dtype] or torch.float32),
        lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None,
        f"{versions} on {where}, SDPA{', torch.compile' if compiled else ''}",
    )


def _matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large product."""
    size = 8192 if device == "cuda" else 3072
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()

    return best_rate(multiply, 2.0 * size**3)


def _inputs(work: Work, batch: Batch, device: str) -> dict[str, torch.Tensor]:
    """What the reference script's collator makes: normalised audio, a mask, labels with -100 in the padding."""
    mask = np.arange(batch.audio.shape[1]) < batch.audio_lengths[:, None]
    audio = batch.audio.astype(np.float32) / 32768
    count = mask.sum(axis=1, keepdims=True)
    centred = np.where(mask, audio - audio.sum(axis=1, keepdims=True) / count, 0)
    audio = centred / np.sqrt((centred**2).sum(axis=1, keepdims=True) / count + 1e-7)
    if work.head == "classification":
        labels = batch.labels[:, 0]
    else:
        labels = np.where(np.arange(batch.labels.shape[1]) < batch.label_lengths[:, None], batch.labels, -100)
    arrays = {
        "input_values": audio.astype(np.float32),
        "attention_mask": mask.astype(np.int64),
        "labels": labels.astype(np.int64),
    }
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
