"""Flags of `python -m xtremes_jax.plan`: those of training, and a few that say what the run is planned for."""

from collections.abc import Sequence
from dataclasses import dataclass

from xtremes_jax.arguments.build import parse_arguments
from xtremes_jax.arguments.fields import Arguments
from xtremes_jax.arguments.flag import flag
from xtremes_jax.arguments.parse import Parser, add_flag, build_parser, convert, describe_flags, underscored
from xtremes_jax.arguments.training import TrainingArguments
from xtremes_jax.errors import InputError

PROGRAM = "python -m xtremes_jax.plan"


@dataclass(frozen=True)
class PlanFlags:
    """What a run is planned for, and what is to be found out."""

    topology: str | None = flag(
        None, "Hardware to plan for: a TPU slice (v5e:2x4, v4:2x2x2, v6e:4x4), GPUs (gpu:8, a100:8) or cpu:8."
    )
    find_batch: bool = flag(
        False,
        "Find the largest --per_device_train_batch_size (or --max_batch_seconds) whose longest bucket fits, by "
        "doubling and then halving the gap; each trial compiles one program.",
    )
    planned_buckets: tuple[str, ...] = flag(
        (),
        "Plan without data: lengths of clips in seconds, each with how many there are if known, such as 5 10:2000 "
        "20:300; a length alone stands for one batch.",
    )
    json: str | None = flag(None, "File to write everything to that was found out.")


FLAGS = describe_flags({"plan": PlanFlags})


@dataclass(frozen=True)
class PlanArguments:
    """The run that is planned, and what for."""

    flags: PlanFlags
    run: Arguments

    @property
    def training(self) -> TrainingArguments:
        """Of the run: what a command line is run by, see `console.run_command`."""
        return self.run.training


def parse_plan_arguments(argv: Sequence[str]) -> PlanArguments:
    """The arguments of `python -m xtremes_jax.plan`: its own flags anywhere among those of the run.

    Raises:
        InputError: as `parse_arguments`; there is no topology; or the run trains nothing.
        SystemExit: after `--help`.
    """
    if {"-h", "--help"} & set(argv):
        parser = build_parser(PROGRAM)
        section = parser.add_argument_group("plan")
        for own in FLAGS.values():
            add_flag(section, own)
        parser.print_help()
        raise SystemExit(0)
    flags, rest = _own_flags(argv)
    if flags.topology is None:
        raise InputError("There is nothing to plan for. Add --topology, for example v5e:2x4, gpu:8 or cpu:8.")
    run = parse_arguments(rest)
    if not run.training.do_train:
        raise InputError("A plan is of a run that trains. Add --do_train.")
    if run.data.preprocessing_only:
        raise InputError("A plan is of a run that trains. Drop --preprocessing_only.")
    return PlanArguments(flags, run)


def _own_flags(argv: Sequence[str]) -> tuple[PlanFlags, list[str]]:
    """What is a plan's own, and the rest of the words, which are the run's."""
    parser = Parser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    for own in FLAGS.values():
        words = {"nargs": "?"} if own.kind is bool else {"nargs": "+"} if own.kind is tuple else {}
        parser.add_argument(f"--{own.name}", action="append", **words)
    found, rest = parser.parse_known_args([underscored(word) for word in argv])
    values = {}
    for name, given in vars(found).items():
        if given is None:
            continue
        if len(given) > 1:
            raise InputError(f"--{name} is given {len(given)} times. Give it once.")
        values[name] = convert(FLAGS[name], given[0], f"--{name}", literal=False)
    return PlanFlags(**values), rest
