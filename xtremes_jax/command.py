"""From a command line to an exit status: what `python -m xtremes_jax.train` and its like have in common."""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax

from xtremes_jax import console
from xtremes_jax.arguments import Arguments, PlanArguments, TrainingArguments
from xtremes_jax.errors import InputError
from xtremes_jax.streams import STDERR, STDOUT
from xtremes_jax.training import processes
from xtremes_jax.training.launch import find_launch, has_tpu, join
from xtremes_jax.training.signals import Interrupted

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What the operating system says of a disk that is full or may not be written to."""


def run_command(
    parse: Callable[[Sequence[str]], Arguments | PlanArguments],
    run: Callable[[Any], Any],
    argv: Sequence[str],
    *,
    alone: bool = False,
) -> int:
    """Runs a command line: `parse`, then `run` with what that gave.

    Where the run has several processes, this one joins the others first, and ends with them; not with `alone`.

    Returns:
        The exit status: 0, 2 for input that cannot be used or a disk that is full (said in a sentence), 128 + signal
        number after a signal, or in a run of several processes 1 after an error of another kind (with its traceback).
    """
    try:
        arguments = parse(argv)
        console.set_up(arguments.training.log_level)
        if not alone:
            join_processes(arguments.training)
        with processes.ending_together():
            run(arguments)
    except InputError as error:
        return _end(2, f"error: {error}")
    except Interrupted as interruption:
        return _end(interruption.status, f"Stopped by {interruption}{interruption.way_on}.")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            where = f"{error.filename}: " if error.filename else ""
            way_on = "Make room; the same command, without --overwrite_output_dir, then goes on from here."
            return _end(2, f"error: {where}{error.strerror}. {way_on}")
        if not processes.several():
            raise
        traceback.print_exc()
        return _end(
            1, f"error: {type(error).__name__}: {error}\nIf an operation between processes has failed, another process "
            "may be lost: see what each has written last, and whether memory or the machine was taken from it."
        )  # fmt: skip
    return 0


def join_processes(training: TrainingArguments) -> None:
    """Joins the other processes of the run, if flags or the environment tell of any; see `training.launch`."""
    if training.use_cpu:
        jax.config.update("jax_platforms", "cpu")
    place = training.coordinator_address, training.num_processes, training.process_id
    join(find_launch(*place, on_tpu=has_tpu()))


def _end(status: int, text: str) -> int:
    """Says why a run ends here, to the other processes too; the status."""
    print(console.signed(text), file=STDERR, flush=True)
    if processes.several():
        processes.tell_of_the_end(status, text.splitlines()[0])
    return status


def run_program(main: Callable[[], int]) -> NoReturn:
    """Runs a program and leaves with its exit status, or after an error that nobody expected with its traceback and 1.

    That goes through `leave` too: Python itself would wait for threads, such as one whose upload a dead hub holds up.
    """
    try:
        status = main()
    except Exception:
        traceback.print_exc(file=STDERR)
        status = 1
    leave(status)


def leave(status: int) -> NoReturn:
    """Ends the process with an exit status; at once if it is not 0.

    After a signal, threads of the compiler may need minutes; after a failed write, so may Orbax's; and with other
    processes JAX would wait for all of them.
    """
    if status:
        for stream in (STDOUT, STDERR):
            stream.flush()
        os._exit(status)
    sys.exit()
