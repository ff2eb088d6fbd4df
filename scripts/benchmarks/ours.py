"""xtremes_jax as a contender: the very steps that `xtremes_jax.train` compiles, on all devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import Prepared, batches_of, best_rate
from benchmarks.work import Work
from xtremes_jax.batch import Batch
from xtremes_jax.models import abstract_model, build_model, decays, flatten_params, is_feature_encoder, split_params
from xtremes_jax.training.losses import Objective
from xtremes_jax.training.optimizer import make_optimizer, make_schedule
from xtremes_jax.training.sharding import batch_sharding, make_mesh, tree_sharding
from xtremes_jax.training.state import TrainState, create_state
from xtremes_jax.training.step import make_eval_step, make_train_step

SEED = 42


def make_steps(work: Work, *, fsdp_devices: int = 1, accumulation: int = 1):
    """The mesh, an abstract state with shardings, a function that makes a real one, and both jitted steps."""
    dtype = jnp.dtype(work.dtype)
    config = work.model_config()
    mesh = make_mesh(fsdp_devices)

    def draw():
        return flatten_params(split_params(build_model(config, seed=jax.random.key(SEED), dtype=dtype))[1])

    graphdef, _ = split_params(abstract_model(config, dtype=dtype, remat=work.remat))
    names = jax.eval_shape(draw)
    schedule = make_schedule("linear", 3e-4, 500, 10_000)
    optimizer = make_optimizer(
        schedule,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        weight_decay=0.01,
        decay_mask={name: decays(name) for name in names if not _frozen(work, name)},
    )

    def create() -> TrainState:
        params = draw()
        frozen = {name: value for name, value in params.items() if _frozen(work, name)}
        trainable = {name: value for name, value in params.items() if name not in frozen}
        return create_state(trainable, frozen, optimizer, scale_loss=work.dtype == "float16")

    abstract = jax.eval_shape(create)
    shardings = tree_sharding(mesh, abstract)
    objective = Objective(config.head, blank=config.pad_token_id, reduction="mean")
    train_step = make_train_step(
        graphdef=graphdef,
        objective=objective,
        optimizer=optimizer,
        schedule=schedule,
        max_grad_norm=1.0,
        accumulation=accumulation,
        scale_loss=work.dtype == "float16",
        seed=SEED,
        mesh=mesh,
        state_sharding=shardings,
    )
    eval_step = make_eval_step(graphdef=graphdef, objective=objective, mesh=mesh)
    make = jax.jit(create, out_shardings=shardings)
    abstract = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), abstract, shardings
    )
    return mesh, abstract, make, train_step, eval_step


def _frozen(work: Work, name: str) -> bool:
    return work.freeze_feature_encoder and is_feature_encoder(name)


def prepare(work: Work) -> Prepared:
    """Random weights and batches on the devices, nothing compiled yet."""
    mesh, _, make, train_step, eval_step = make_steps(work)
    state = make()
    rows = batch_sharding(mesh)
    batches = itertools.cycle([Batch(*(jax.device_put(a, rows) for a in batch)) for batch in batches_of(work)])

    def run(kind: str, steps: int) -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            for _ in range(steps):
                if kind == "train":
                    state, out = train_step(state, next(batches))
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
