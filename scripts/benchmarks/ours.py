"""xtremes_jax as a contender: the very steps that `xtremes_jax.train` compiles, on all devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import Prepared, batches_of, best_rate
from benchmarks.lowering import Setting, abstract_network, train_step
from benchmarks.work import Work
from xtremes_jax.models import build_model, flatten_params, split_params
from xtremes_jax.training.sharding import batch_sharding, make_mesh
from xtremes_jax.training.state import TrainState, create_state
from xtremes_jax.training.step import make_eval_step


def setting_of(work: Work) -> Setting:
    """The same work as the other benchmarks of our own steps take it."""
    return Setting(
        config=work.config,
        head=work.head,
        rows=work.batch,
        seconds=work.seconds,
        dtype=work.dtype,
        remat=work.remat,
        freeze_feature_encoder=work.freeze_feature_encoder,
        vocab_size=work.vocab_size,
        changes=tuple((name, getattr(work.model_config(), name)) for name in ("mask_time_prob", "mask_feature_prob")),
    )


def prepare(work: Work) -> Prepared:
    """Random weights and batches on the devices, nothing compiled yet."""
    setting, mesh = setting_of(work), make_mesh()
    network = abstract_network(setting, mesh)
    step = train_step(setting, network, mesh)
    eval_step = make_eval_step(graphdef=network.graphdef, objective=setting.objective(), mesh=mesh)

    def draw() -> TrainState:
        params = flatten_params(split_params(build_model(setting.model_config(), seed=jax.random.key(42)))[1])
        parts = ({name: params[name] for name in part} for part in (network.state.trainable, network.state.frozen))
        return create_state(*parts, network.optimizer, scale_loss=work.dtype == "float16")

    state = jax.jit(draw, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, network.state))()
    rows = batch_sharding(mesh)
    batches = itertools.cycle([jax.device_put(batch, rows) for batch in batches_of(work)])

    def run(kind: str, steps: int) -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            for _ in range(steps):
                if kind == "train":
                    state, out = step(state, next(batches))
                else:
                    out = eval_step(state.trainable, state.frozen, next(batches))
        jax.block_until_ready(out)

    def matmul_peak() -> float:
        size = 8192 if jax.default_backend() != "cpu" else 3072
        dtype = jnp.dtype(work.dtype)
        a, b = (jnp.asarray(np.random.default_rng(i).standard_normal((size, size)), dtype) for i in range(2))
        product = jax.jit(jnp.matmul)
        return best_rate(lambda: product(a, b).block_until_ready(), 2.0 * size**3)

    def accelerator_peak() -> int | None:
        stats = jax.local_devices()[0].memory_stats()
        return None if jax.default_backend() == "cpu" or not stats else stats.get("peak_bytes_in_use")

    where = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return Prepared(run, matmul_peak, accelerator_peak, f"jax {jax.__version__} on {where}")
