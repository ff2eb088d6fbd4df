"""Steps compiled before they are needed: one program for each batch shape, in threads, while the loader warms up.

XLA compiles without holding Python's lock, so the programs of later batches are compiled while the first steps run, and
reading a checkpoint costs no time of the compiler's. A step whose program is not there yet waits for that one alone.
What evaluation runs comes after what training does, in the same threads.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from xtremes_jax.batch import SAMPLE_RATE, Batch
from xtremes_jax.errors import InputError
from xtremes_jax.models.platform import platform
from xtremes_jax.processors import available_cpus
from xtremes_jax.training.signals import Interrupted

logger = logging.getLogger(__name__)

_CORES_PER_COMPILATION = 4
_MOST_COMPILATIONS = 4
"""At a time: each takes as much host memory as a large model's program needs, some GB."""

_HIT = "/jax/compilation_cache/cache_hits"
_events = threading.local()


def _count_hit(event: str, **_: Any) -> None:
    if event == _HIT:
        _events.hits = getattr(_events, "hits", 0) + 1


jax.monitoring.register_event_listener(_count_hit)


class OutOfMemory(InputError):
    """A step does not fit into the devices' memory. Where it had begun, the state that it took is gone with it."""

    def __init__(self, batch: Batch, error: Exception):
        super().__init__(
            f"The devices' memory does not hold {_described(batch)}. Lower --per_device_train_batch_size and raise "
            "--gradient_accumulation_steps by as much (the result stays the same), or --per_device_eval_batch_size if "
            "it was scoring; add --gradient_checkpointing, --bf16 or --fsdp_devices; or leave long clips out of "
            "training with --max_duration_in_seconds, and score them in windows with --chunk_length_s. XLA says: "
            f"{str(error).strip().splitlines()[0]}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA says with this error that memory is lacking, when it compiles or when it runs."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


@contextmanager
def memory_for(batch: Batch) -> Iterator[None]:
    """Context of work on a batch; memory that is lacking is told with the batch's size.

    Raises:
        OutOfMemory: of the devices.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if is_out_of_memory(error):
            raise OutOfMemory(batch, error) from error
        raise


class CompilationFailed(Exception):
    """A step's program could not be compiled, so the step has not run; the state that it was to take is as it was."""


class Program(NamedTuple):
    """A compiled step for one batch shape."""

    run: jax.stages.Compiled
    cached: bool
    """Whether it came from the persistent compilation cache."""
    seconds: float
    """For tracing, lowering and compiling it."""


def worker_count() -> int:
    """Programs compiled at a time by this process: XLA is itself parallel in part, so one for every four cores."""
    return max(1, min(_MOST_COMPILATIONS, available_cpus() // _CORES_PER_COMPILATION))


class CompiledAhead:
    """A jitted step `(*leading, batch) -> ...`, called as it would be itself, whose programs are compiled ahead.

    Every program is compiled for exact shapes, types and shardings, so that none is compiled twice. Programs appear in
    `programs` by `shape_of(batch)` as they become ready; shapes that were not announced are compiled when they come.
    Use it in a `with` statement, or `close` it: that ends its threads, until more is announced. Programs stay.

    Args:
        step: from `jax.jit`, with its donation and shardings.
        mesh: what it is compiled under.
        leading: arrays, or `jax.ShapeDtypeStruct` with shardings, of the arguments before the batch.
        workers: programs compiled at a time.
        waiting: context entered while a call waits for its program, in which a signal may raise `Interrupted`: nothing
            has been done to the call's arguments by then.
    """

    def __init__(
        self,
        step: Any,
        *,
        mesh: Mesh,
        leading: tuple[Any, ...],
        workers: int | None = None,
        waiting: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self._waiting = waiting
        self._step, self._mesh, self._leading = step, mesh, jax.tree.map(abstract, leading)
        self._workers = worker_count() if workers is None else workers
        self._pool: ThreadPoolExecutor | None = None
        self._futures: dict[tuple, Future[Program]] = {}
        self.programs: dict[tuple, Program] = {}

    def announce(self, batches: Iterable[Batch], after: "CompiledAhead | None" = None) -> None:
        """Has programs compiled for batches of these shapes (arrays or `jax.ShapeDtypeStruct`), in this order.

        Nothing is done ahead on GPUs with several processes: their compilers time kernels together, each process some
        of them, and wait for one another without end. So each has to be asked for the same programs, neither more nor
        fewer, and one that stops early would leave the others waiting. Other compilers know of no other process.

        Args:
            batches: of each shape one or more.
            after: a step whose threads do this, after all that it has been told of so far. When it is closed, what has
                not been begun is left, and may be announced again.
        """
        if jax.process_count() > 1 and platform() == "gpu":
            return
        pool = (self if after is None else after)._threads()
        for batch in batches:
            shape = shape_of(batch)
            if shape not in self._futures or self._futures[shape].cancelled():
                self._futures[shape] = pool.submit(self._compile_ahead, jax.tree.map(abstract, batch))

    def __call__(self, *arguments: Any) -> Any:
        """Runs the step, as soon as its program is ready.

        Raises:
            CompilationFailed: its program could not be compiled, and not at a second try either.
            OutOfMemory: of the devices.
            Interrupted: by a signal, while it waited for its program.
        """
        shape = shape_of(arguments[-1])
        program = self.programs.get(shape)
        if program is None:
            with self._waiting():
                program = self._wait(shape, arguments[-1])
        with memory_for(arguments[-1]):
            return program.run(*arguments)

    @property
    def announced(self) -> int:
        """Programs that are compiled or waited for."""
        return len(self._futures)

    @property
    def cached(self) -> int:
        """Programs that came from the persistent compilation cache, so far."""
        return sum(program.cached for program in list(self.programs.values()))

    def close(self, wait: bool = True) -> None:
        """Leaves what has not been begun, and waits for what is being compiled if asked to. May be called again."""
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> "CompiledAhead":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Who stops a run does not give it the minutes that a compiler may take; nor may other processes wait so long
        # to hear of an error.
        self.close(wait=kind is None or not (issubclass(kind, Interrupted) or jax.process_count() > 1))

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, "compile")
        return self._pool

    def _wait(self, shape: tuple, batch: Batch) -> Program:
        future = self._futures.get(shape)
        if future is None or future.cancel():  # not begun: it does not have to queue behind the others
            self._futures[shape] = future = self._begin(batch)
        wait([future])
        if future.exception() is not None:  # it was told of: memory that it lacked beside other work may be there now
            self._futures[shape] = future = self._begin(batch)
            wait([future])
        try:
            return future.result()
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemory(batch, error) from error
            raise CompilationFailed(f"The step for {_described(batch)} cannot be compiled: {error}") from error

    def _begin(self, batch: Batch) -> "Future[Program]":
        """Compiles at once, in a thread of its own: Python sees a signal only while its main thread is free."""
        future: Future[Program] = Future()

        def compile_it() -> None:
            try:
                future.set_result(self._compile(jax.tree.map(abstract, batch)))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=compile_it, name="compile-now", daemon=True).start()
        return future

    def _compile_ahead(self, batch: Batch) -> Program:
        try:
            return self._compile(batch)
        except Exception as error:
            logger.warning(
                "The step for %s could not be compiled ahead; this is tried again when such a batch comes. %s",
                _described(batch), error,
            )  # fmt: skip
            raise

    def lower(self, batch: Batch) -> jax.stages.Lowered:
        """The program for batches of this shape, not compiled yet."""
        with jax.set_mesh(self._mesh):  # a thread has a mesh of its own
            return self._step.lower(*self._leading, jax.tree.map(abstract, batch))

    def _compile(self, batch: Batch) -> Program:
        begun, hits = time.perf_counter(), getattr(_events, "hits", 0)
        run = self.lower(batch).compile()
        program = Program(run, getattr(_events, "hits", 0) > hits, time.perf_counter() - begun)
        self.programs[shape_of(batch)] = program
        return program


def shape_of(batch: Batch) -> tuple:
    """What tells the batches of one run apart: the shapes of audio (or of frames in its place) and of labels."""
    return (batch.audio if batch.frames is None else batch.frames).shape, batch.labels.shape


def _described(batch: Batch) -> str:
    rows, length = shape_of(batch)[0][:2]
    each = f"{length / SAMPLE_RATE:.1f} s" if batch.frames is None else f"{length} frames"
    return f"batches of {rows} clips of {each} with {batch.labels.shape[1]} labels each"


def abstract(array: Any) -> jax.ShapeDtypeStruct:
    """Shape, type and sharding alone."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=getattr(array, "sharding", None))
