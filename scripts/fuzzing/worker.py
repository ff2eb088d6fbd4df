"""The process that reads hostile inputs, one after the other, and says what came of each."""

import os
import resource
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import NamedTuple

from fuzzing.reader import Place, Reader
from fuzzing.readers import load  # which imports no reader before `_isolate`

MAX_BYTES = 1 << 30
"""Of memory for one input, beyond what the process has before it."""


class Outcome(NamedTuple):
    """What came of one input."""

    verdict: str
    """`accepted`, `refused`, or what failed."""
    detail: str
    """The refusal's message, or the failure's traceback."""
    seconds: float
    """Of processor time: how long it takes where nothing else runs."""
    peak_bytes: int
    """The most resident memory while it was read, beyond what there was before."""


def work(pipe: Connection, root: str, seed: int) -> None:
    """Reads the inputs (reader's name, index) that come through `pipe` until None comes.

    Before an input is read, its index goes back, so that the other side can measure the time; after it, its `Outcome`.
    """
    place = Place(Path(root))
    place.clear()
    _isolate(place)
    while (task := pipe.recv()) is not None:
        name, index = task
        reader, random = load(name), Random(f"{seed} {name} {index}")
        os.chdir(place.root)
        place.clear()
        reader.make(random, place)
        pipe.send(index)
        pipe.send(judge(reader, random, place))


def _isolate(place: Place) -> None:
    """No network, no home; caches of libraries in the scratch folder; what libraries print goes to a file."""
    settings = {
        "HOME": "home", "XDG_CACHE_HOME": "cache", "HF_HOME": "cache/hf", "TMPDIR": "tmp", "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    for name, value in settings.items():
        inside = place.root / value
        os.environ[name] = str(inside) if name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TMPDIR") else value
    (place.root / "home").mkdir(exist_ok=True)
    (place.root / "tmp").mkdir(exist_ok=True)
    log = os.open(place.root / "printed.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())


def judge(reader: Reader, random: Random, place: Place) -> Outcome:
    """Reads the input at a place within the memory limit, and says what came of it."""
    os.chdir(place.root / "cwd")
    before = place.written()
    resident = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
    # Of memory of one's own, to which a file that is mapped to be read does not count.
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + MAX_BYTES, hard))
    started = time.process_time()
    try:
        verdict, detail = _read(reader, random, place)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    seconds = time.process_time() - started
    peak = max(0, _status("VmHWM") - resident)
    if place.written() != before:
        verdict, detail = "wrote files", str(sorted(place.written() ^ before))
    elif peak > MAX_BYTES:
        verdict, detail = "memory", f"{peak:,} bytes; {verdict}: {detail}"
    return Outcome(verdict, detail, seconds, peak)


def _read(reader: Reader, random: Random, place: Place) -> tuple[str, str]:
    from xtremes_jax.errors import InputError

    try:
        reader.read(random, place)
    except InputError as error:
        if _ran_out_of_memory(error):
            return "memory", _trace(error)
        if reader.names_file and not _names(place, str(error), reader.also_named):
            return "unnamed file", _trace(error)
        return "refused", str(error)
    except BaseException as error:  # whatever it is, it is what this looks for: panics of Rust are no Exceptions
        return ("memory" if isinstance(error, MemoryError) else type(error).__name__), _trace(error)
    return "accepted", ""


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out first: refusing a file then is too late."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _names(place: Place, message: str, others: tuple[str, ...]) -> bool:
    names = [*others, *(path.name for path in place.folder.rglob("*"))]
    return str(place.folder) in message or any(name in message for name in names)


def _trace(error: BaseException) -> str:
    lines = traceback.format_exception(error, limit=-12)
    return "".join(lines)[-6000:].encode("utf-8", "backslashreplace").decode()


def _status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
