"""`python -m xtremes_jax.plan`: compiles a run for hardware that nobody holds: does it fit, what will it cost."""

import dataclasses
import json
import logging
import math
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from xtremes_jax import command
from xtremes_jax.architecture import model_config
from xtremes_jax.arguments import Arguments, PlanArguments, describe, parse_plan_arguments
from xtremes_jax.assembly import Network, make_train_loader, outline, run_length
from xtremes_jax.batch import SAMPLE_RATE, Batch
from xtremes_jax.corpus import Corpus, SkippedClips, load_corpus
from xtremes_jax.data.buckets import PlannedBatch
from xtremes_jax.data.cache import default_cache_dir, write_atomically
from xtremes_jax.data.loader import TrainLoader
from xtremes_jax.errors import InputError
from xtremes_jax.frontend_cache import UNDER_WAY, check_process_count, shapes_on_frames
from xtremes_jax.models.platform import written_for
from xtremes_jax.optimization import Optimization, make_optimization, make_step
from xtremes_jax.planned_corpus import assumptions, planned_corpus
from xtremes_jax.planning.cost import compile_and_measure, device_bytes
from xtremes_jax.planning.report import Bucket, Found, Plan, Trial, as_json, as_text
from xtremes_jax.planning.search import largest_that_fits
from xtremes_jax.planning.topology import GIB, Target, find_target
from xtremes_jax.scoring import make_scorer
from xtremes_jax.starting import StartingPoint, starting_point
from xtremes_jax.streams import say
from xtremes_jax.together import Together
from xtremes_jax.training.ahead import CompiledAhead, shape_of
from xtremes_jax.training.devices import configure_jax
from xtremes_jax.training.frames import make_frames_step
from xtremes_jax.training.sharding import make_mesh
from xtremes_jax.training.signals import StopRequest

logger = logging.getLogger("xtremes_jax.plan")  # also where this file is what Python runs

_BATCHES_WAITING = 2
"""Batches that the loader has put on the devices before they are asked for."""

_MOST_ROWS = 4096
"""Clips on a device beyond which no larger batch is looked for."""

_TRAINING = ("train", "frames")
"""Roles of the parts whose batches are those of training."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A step of the run, and the batches that it is compiled for."""

    role: str
    """"train", "frames" (the front end of `--cache_frontend`), "eval" or "predict"."""
    step: CompiledAhead
    shapes: list[Batch]
    """Of `jax.ShapeDtypeStruct`."""
    lengths: list[int]
    """Padded samples of each."""
    times: list[int]
    """Batches of each in an epoch, or in a pass over a scored split."""
    resident: Callable[[Batch], int]
    """Bytes on each device that lie beside the step and its batch: batches that wait, and what other steps need."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status: see `command.run_command`."""
    try:
        return command.run_command(parse_plan_arguments, run, sys.argv[1:] if argv is None else argv, alone=True)
    except KeyboardInterrupt:  # nothing is lost
        print("Stopped.", file=sys.stderr)
        return 128 + signal.SIGINT


def run(arguments: PlanArguments) -> dict[str, Any]:
    """Plans the run, prints what was found, and returns what `--json` holds."""
    flags, planned = arguments.flags, arguments.run
    for note in planned.notes:
        logger.warning(note)
    if flags.json is not None:
        _check_writable(Path(flags.json))
    target = find_target(flags.topology)
    check_process_count(planned, target.processes)
    # A program that is read back from the cache may not tell what memory it needs.
    configure_jax(
        use_cpu=True, tf32=planned.training.tf32, compilation_cache_dir="none", default_cache_root=default_cache_dir()
    )
    mesh = make_mesh(planned.training.fsdp_devices, target.devices)
    translation = planned.selection.task.kind == "translation"
    start = starting_point(
        planned.model, translation=translation, token=planned.training.hub_token, weights=False, trains=True
    )
    with _skipped_clips(planned) as skipped, written_for(target.platform):
        corpus = _corpus(arguments, start, skipped, mesh.size)
        config = model_config(planned, start, corpus)
        network = outline(planned, start, corpus, config, mesh)
        loader = make_train_loader(planned, corpus, mesh)
        steps = run_length(planned, loader.steps_per_epoch)
        optimization = make_optimization(planned, network, steps)
        parts = _training_parts(planned, network, optimization, loader)
        parts += _scoring_parts(planned, network, optimization, corpus, skipped, parts[0])
        plan = _measure(arguments, target, network, optimization, loader, parts, steps, pairs=corpus.pairs is not None)
    say(as_text(plan))
    found = as_json(plan) | {"arguments": describe(planned, only_changed=True)}
    if flags.json is not None:
        write_atomically(Path(flags.json), json.dumps(found, indent=2) + "\n")
    return found


def _check_writable(path: Path) -> None:
    """Finds out before the hours of compiling, not after them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"--json {path} cannot be written: {error.strerror}. Choose another file.") from error
    if path.is_dir():
        raise InputError(f"--json {path} is a directory. Give the name of a file.")


@contextmanager
def _skipped_clips(arguments: Arguments) -> Iterator[SkippedClips]:
    """A list of what is left out, which stays only if that stops the plan: the run's own is not touched."""
    folder, is_named = Path(tempfile.mkdtemp(prefix="xtremes_jax_plan_")), False
    skipped = SkippedClips(folder, arguments.data.max_skipped_fraction)
    try:
        yield skipped
    except InputError as error:
        is_named = str(skipped.path) in str(error)
        raise
    finally:
        if not is_named:
            shutil.rmtree(folder)


def _corpus(arguments: PlanArguments, start: StartingPoint, skipped: SkippedClips, devices: int) -> Corpus:
    """The run's data, or clips of the lengths that are given in their place."""
    if arguments.flags.planned_buckets:
        return planned_corpus(arguments.run, start, arguments.flags.planned_buckets, devices)
    return load_corpus(arguments.run, start, skipped)


def _training_parts(
    arguments: Arguments, network: Network, optimization: Optimization, loader: TrainLoader
) -> list[Part]:
    """The training step, and behind it the step of the front end if its frames are kept."""
    step = CompiledAhead(
        make_step(arguments, network, optimization), mesh=network.mesh, leading=(optimization.abstract_state,)
    )
    shapes, lengths, times = _in_order(loader.shapes(0, loader.steps_per_epoch), loader.plan(0))
    if not arguments.model.cache_frontend:
        return [Part("train", step, shapes, lengths, times, _waiting)]
    frames = CompiledAhead(
        make_frames_step(
            graphdef=network.graphdef, accumulation=arguments.training.gradient_accumulation_steps, mesh=network.mesh
        ),
        mesh=network.mesh,
        leading=(network.trainable, network.frozen),
    )
    moments = device_bytes(optimization.abstract_state.optimizer)

    def on_the_way(batch: Batch) -> int:
        """Of frames that are made and not yet on the disk."""
        frames = batch.frames if batch.audio is None else shapes_on_frames([batch], network.config)[0].frames
        return UNDER_WAY * device_bytes(frames)

    return [
        Part(
            "train", step, shapes_on_frames(shapes, network.config), lengths, times,
            lambda batch: _waiting(batch) + on_the_way(batch),
        ),
        Part(
            "frames", frames, shapes, lengths, times, lambda batch: moments + _waiting(batch) + on_the_way(batch)
        ),
    ]  # fmt: skip


def _scoring_parts(
    arguments: Arguments,
    network: Network,
    optimization: Optimization,
    corpus: Corpus,
    skipped: SkippedClips,
    training: Part,
) -> list[Part]:
    """The steps that score the other splits.

    While the run still trains, the optimizer's moments and the next training batches stay on the devices meanwhile.
    """
    kept = device_bytes(optimization.abstract_state.optimizer) + max(map(_waiting, training.shapes))
    parts = []
    for role in corpus.splits:
        if role == "train":
            continue
        scorer = make_scorer(arguments, network, corpus, role, skipped, Together(StopRequest(), skipped))
        beside = kept if role == "eval" and arguments.training.eval_strategy != "no" else 0
        steps = [(scorer.step, scorer)] + [(scorer.window_step, scorer.windows)] * (scorer.windows is not None)
        parts += [
            Part(
                role, step, *_in_order(batches.shapes(), batches.plan()),
                lambda batch, beside=beside: beside + _waiting(batch),
            )
            for step, batches in steps
            if batches.plan()
        ]  # fmt: skip
    return parts


def _waiting(batch: Batch) -> int:
    """Bytes on each device of the batches that the loader has put there before they are asked for."""
    return _BATCHES_WAITING * device_bytes(batch)


def _in_order(shapes: list[Batch], plan: Iterable[PlannedBatch]) -> tuple[list[Batch], list[int], list[int]]:
    """Shapes (each once), padded samples and numbers of batches, the longest first."""
    counts = Counter((planned.rows, planned.bucket_samples) for planned in plan)
    shapes = list({shape_of(batch): batch for batch in shapes}.values())
    shapes.sort(key=lambda batch: batch.audio.shape[::-1], reverse=True)
    sizes = [batch.audio.shape for batch in shapes]
    return shapes, [samples for _, samples in sizes], [counts[size] for size in sizes]


def _measure(
    arguments: PlanArguments,
    target: Target,
    network: Network,
    optimization: Optimization,
    loader: TrainLoader,
    parts: list[Part],
    steps: int,
    *,
    pairs: bool,
) -> Plan:
    """Compiles every program, and where asked to those that find the largest batch."""
    run, state = arguments.run, optimization.abstract_state
    trainable, frozen, moments = (device_bytes(tree) for tree in (state.trainable, state.frozen, state.optimizer))
    buckets = []
    total = sum(len(part.shapes) for part in parts)
    for part in parts:
        for place in range(len(part.shapes)):
            buckets.append(_compile(arguments, target, part, place, f"Program {len(buckets) + 1} of {total}"))
    code = sum(bucket.cost.code for bucket in buckets)
    buckets = [dataclasses.replace(bucket, programs=code) for bucket in buckets]
    found = _find_batch(arguments, target, parts, buckets, pairs) if arguments.flags.find_batch else None
    return Plan(
        title=f"{run.selection.task.name} with {run.model.model_name_or_path or run.model.config_name}",
        target=target,
        mesh=dict(network.mesh.shape),
        precision=_precision(run),
        trainable=trainable,
        frozen=frozen,
        optimizer=moments,
        buckets=tuple(buckets),
        steps_per_epoch=loader.steps_per_epoch,
        total_steps=steps,
        assumed=_assumed(arguments, parts),
        found=found,
    )


def _assumed(arguments: PlanArguments, parts: Sequence[Part]) -> tuple[str, ...]:
    """What is taken to be so of the data and of the run, in sentences."""
    run = arguments.run
    assumed = assumptions(run) if arguments.flags.planned_buckets else []
    if run.selection.task.kind == "translation" and any(part.role not in _TRAINING for part in parts):
        assumed.append(
            "while something is scored, the search for a translation counts as its first token alone, as its length is "
            "not known: FLOPs and times of scoring are too small by that."
        )
    if run.training.resume_from_checkpoint is not None:
        assumed.append(
            "the run begins anew: --resume_from_checkpoint is not looked into, and where the number of devices has "
            "changed, a run that goes on keeps its batches and splits them in another way."
        )
    return tuple(assumed)


def _compile(arguments: PlanArguments, target: Target, part: Part, place: int, name: str, others: int = 0) -> Bucket:
    """The program for one of a part's shapes; the run's other programs take `others` bytes."""
    batch = part.shapes[place]
    rows = batch.label_lengths.shape[0] // len(target.devices)
    seconds = part.lengths[place] / SAMPLE_RATE
    logger.info("%s: %s, %d clips of %.2f s a device", name, part.role, rows, seconds)
    cost = compile_and_measure(part.step.lower(batch), target)
    micro_batches = arguments.training.gradient_accumulation_steps if part.role in _TRAINING else 1
    bucket = Bucket(
        role=part.role,
        seconds=seconds,
        rows=rows,
        micro_batches=micro_batches,
        labels=batch.labels.shape[1],
        times=part.times[place],
        cost=cost,
        resident=part.resident(batch),
        memory=target.chip.memory,
        step_seconds=cost.seconds(target.chip, _precision(arguments.run)),
        programs=others + cost.code,
    )
    logger.info("%s: %s", name, _outcome(bucket))
    return bucket


def _outcome(bucket: Bucket) -> str:
    peak = "more" if bucket.peak is None else f"{bucket.peak / GIB:.2f} GiB"
    verdict = "fits" if bucket.fits else "does NOT fit"
    return f"{peak} of {bucket.memory / GIB:.2f} GiB, {verdict}; compiled in {bucket.cost.compile_seconds:.0f} s"


def _precision(arguments: Arguments) -> str:
    """How products are computed: a key of `Chip.flops_per_s`."""
    training = arguments.training
    if training.fp16 or training.bf16:
        return "float16" if training.fp16 else "bfloat16"
    return "default" if training.tf32 is None else "tensorfloat32" if training.tf32 else "float32"


def _find_batch(
    arguments: PlanArguments, target: Target, parts: Sequence[Part], buckets: Sequence[Bucket], pairs: bool
) -> Found:
    """The largest batch that fits, by the longest bucket alone.

    Args:
        parts: of the run; those of training have to fit.
        buckets: of all parts, as the flags have them.
        pairs: whether clips come in twos.
    """
    run, unit = arguments.run, 2 if pairs else 1
    parts = [part for part in parts if part.role in _TRAINING]
    as_given = [next(bucket for bucket in buckets if bucket.role == part.role) for part in parts]
    longest = as_given[0]
    given = longest.rows // longest.micro_batches // unit
    trials = [Trial.of(given * unit, as_given)]

    def fits(number: int) -> bool:
        if number == given:
            return trials[0].fits
        rows, tried = number * unit * longest.micro_batches * len(target.devices), []
        for part, bucket in zip(parts, as_given, strict=True):
            others = bucket.programs - bucket.cost.code
            tried.append(_compile(arguments, target, _with_rows(part, rows), 0, f"Trial {len(trials)}", others))
            if not tried[-1].fits:
                break
        trials.append(Trial.of(number * unit, tried))
        return trials[-1].fits

    largest = largest_that_fits(fits, given, max(given, _MOST_ROWS // unit)) * unit
    by_seconds = run.data.max_batch_seconds is not None
    flag = "max_batch_seconds" if by_seconds else "per_device_train_batch_size"
    # Rounded up: so many clips are to fit into so many seconds.
    value = math.ceil(100 * largest * longest.seconds) / 100 if by_seconds else largest
    return Found(flag, value, largest, longest.seconds, tuple(trials))


def _with_rows(part: Part, rows: int) -> Part:
    """The part with its first shape alone, of another number of clips."""
    shape = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding), part.shapes[0]
    )
    return dataclasses.replace(part, shapes=[shape])


if __name__ == "__main__":
    command.run_program(main)
