"""Short trainings of tiny models by the training step, and the same written plainly in PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.batch import Batch
from xtremes_jax.models import PRESETS, build_model, decays, flatten_params, is_factor, is_feature_encoder, split_params
from xtremes_jax.training.losses import Objective
from xtremes_jax.training.optimizer import make_optimizer, make_schedule, with_latecomers
from xtremes_jax.training.sharding import make_mesh, tree_sharding
from xtremes_jax.training.state import create_state
from xtremes_jax.training.step import make_train_step

QUIET = dict(
    hidden_dropout=0.0, activation_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0,
    layerdrop=0.0, mask_time_prob=0.0, mask_feature_prob=0.0,
)  # fmt: skip
LENGTHS = (4000, 9000, 6001, 7777)


def tiny(head, **changes):
    fields = {**QUIET, **changes}
    return dataclasses.replace(PRESETS["tiny"], head=head, vocab_size=11, num_labels=5, pad_token_id=10, **fields)


def make_batch(rng, config, lengths=LENGTHS):
    rows, width = len(lengths), max(lengths)
    audio = np.zeros((rows, width), np.int16)
    for row, length in enumerate(lengths):
        audio[row, :length] = rng.normal(size=length) * 3000
    labels = rng.integers(0, 10 if config.head == "ctc" else 5, (rows, 4 if config.head == "ctc" else 1))
    label_lengths = np.asarray([2, 4, 3, 1] * rows)[:rows] if config.head == "ctc" else np.ones(rows)
    return Batch(
        audio, np.asarray(lengths, np.int32), labels.astype(np.int32), label_lengths.astype(np.int32),
        np.ones(rows, np.float32), np.arange(rows, dtype=np.int32) + 100,
    )  # fmt: skip


def objective_of(config):
    return Objective(config.head, blank=config.pad_token_id)


def adamw(schedule, names):
    decay_mask = {name: decays(name) for name in names}
    return make_optimizer(schedule, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.05, decay_mask=decay_mask)


class Run:
    """A model, its state and its compiled step."""

    def __init__(
        self, config, *, dtype=jnp.float32, accumulation=1, scale_loss=False, learning_rate=1e-3, freeze=True,
        late_updates=0, lora=None, fsdp=1,
    ):  # fmt: skip
        self.config = config
        self.graphdef, params = split_params(build_model(config, seed=3, dtype=dtype, lora=lora))
        flat = flatten_params(params)
        trainable = {name: value for name, value in flat.items() if not (freeze and is_feature_encoder(name))}
        if lora is not None:
            trainable = {name: flat[name] for name in flat if is_factor(name) or not name.startswith("encoder.")}
        frozen = {name: value for name, value in flat.items() if name not in trainable}
        schedule = make_schedule("linear", learning_rate, 5, 40)
        late = frozenset(name for name in trainable if late_updates and name.startswith("encoder."))
        optimizer = adamw(schedule, trainable.keys() - late)
        if late:
            after = adamw(lambda count: schedule(count + late_updates), late)
            optimizer = with_latecomers(optimizer, after, late, late_updates)
        mesh = make_mesh(fsdp)
        # A copy: the step donates its state, and tests compare with the start.
        state = jax.tree.map(jnp.copy, create_state(trainable, frozen, optimizer, scale_loss=scale_loss))
        sharding = tree_sharding(mesh, state)
        self.state = jax.device_put(state, sharding)
        self.start = {**trainable, **frozen}
        self.step = make_train_step(
            graphdef=self.graphdef, objective=objective_of(config), optimizer=optimizer, schedule=schedule,
            max_grad_norm=1.0, accumulation=accumulation, scale_loss=scale_loss, seed=17, mesh=mesh,
            state_sharding=sharding, late=late, late_updates=late_updates,
        )  # fmt: skip
        self.mesh = mesh

    def losses(self, batches):
        values = []
        for batch in batches:
            self.state, metrics = self.step(self.state, batch)
            values.append(float(metrics.loss))
        return values


def torch_losses(config, tensors, batches):
    """The same training written plainly in PyTorch: the reference for loss, gradient, clipping, AdamW and schedule."""
    return torch_run(config, tensors, batches)[0]


def torch_run(config, tensors, batches, *, late_updates=0):
    """The same, and the parameters that it ends with. Encoders have no gradient in the first `late_updates` updates."""
    torch = pytest.importorskip("torch")
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForSequenceClassification, get_scheduler
    from transformers.trainer_pt_utils import get_parameter_names

    cls = Wav2Vec2ForCTC if config.head == "ctc" else Wav2Vec2ForSequenceClassification
    model = cls(Wav2Vec2Config(**{**config.to_huggingface(), "ctc_loss_reduction": "mean"}))
    model.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()}, strict=False)
    model.freeze_feature_encoder()
    model.train()
    with_norms = get_parameter_names(model, [torch.nn.LayerNorm])
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if name in with_norms and "bias" not in name]
    others = [p for name, p in named if not (name in with_norms and "bias" not in name)]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=1e-3
    )
    scheduler = get_scheduler("linear", reference, num_warmup_steps=5, num_training_steps=40)
    values = []
    for update, batch in enumerate(batches):
        waveforms = torch.zeros(batch.audio.shape)
        for row, length in enumerate(batch.audio_lengths):
            clip = batch.audio[row, :length].astype(np.float64) / 32768
            waveforms[row, :length] = torch.tensor((clip - clip.mean()) / np.sqrt(clip.var() + 1e-7))
        mask = torch.arange(waveforms.shape[1])[None] < torch.tensor(batch.audio_lengths)[:, None]
        labels = torch.tensor(batch.labels, dtype=torch.long)
        if config.head == "ctc":
            positions = torch.arange(labels.shape[1])[None]
            labels = labels.masked_fill(positions >= torch.tensor(batch.label_lengths)[:, None], -100)
        else:
            labels = labels[:, 0]
        loss = model(waveforms, attention_mask=mask.long(), labels=labels).loss
        reference.zero_grad()
        loss.backward()
        for name, parameter in named:
            if update < late_updates and name.startswith("wav2vec2."):
                parameter.grad = None
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        reference.step()
        scheduler.step()
        values.append(loss.item())
    return values, {name: value.detach().numpy() for name, value in model.named_parameters()}
