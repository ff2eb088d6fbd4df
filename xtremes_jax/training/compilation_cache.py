"""Where compiled programs are kept between runs: JAX's persistent compilation cache, on by default, in a private place.

A compiled program is code that the next run executes, so its directory must be one that nobody else can write to. JAX
keys an entry by the program, by jaxlib's version, the platform and its version, the kind and number of devices, XLA's
flags and the compiler's options. What the host's processor can do is not reliably in it, and XLA on the CPU only warns
when it loads code for another processor, which may then die of an illegal instruction (openxla/xla issue 44565): so
each kind of processor gets a directory of its own, and a home that several machines share stays safe.
"""

import hashlib
import logging
import os
import platform
import stat
import tempfile
import time
from pathlib import Path

import filelock
import jax
from jax.experimental.compilation_cache import compilation_cache

from xtremes_jax.training import processes

logger = logging.getLogger(__name__)

OFF = "none"
"""The value of `--compilation_cache_dir` that switches the cache off."""

LARGEST_BYTES = 10 * 2**30
"""Size at which the entries that were used longest ago are deleted."""

SHORTEST_COMPILE_SECONDS = 0.1
"""What compiles faster is not worth an entry: reading one back takes some hundredths of a second."""

_LOCK_SECONDS = 10

_SEEN_WITHIN_SECONDS = 3.0

_UNLIMITED = -1  # JAX's word for it


def use_compilation_cache(wanted: str | None, default_root: Path) -> None:
    """Points JAX at the directory of compiled programs; never fails, as a run can do without one.

    Args:
        wanted: a directory, "none" for no cache, or None: where JAX is configured already (`JAX_COMPILATION_CACHE_DIR`,
            or by the program that calls this) that stays as it is, else a directory in `default_root`.
        default_root: this project's folder of caches.
    """
    if wanted == OFF:
        _point_jax_at(None)
        return
    if not jax.config.jax_enable_compilation_cache or (wanted is None and jax.config.jax_compilation_cache_dir):
        return
    if wanted is not None and "://" in wanted:
        _point_jax_at(wanted)
        return
    directory = (default_root / "compiled" if wanted is None else Path(os.path.expanduser(wanted))) / host_kind()
    try:
        # What is checked is what is used: a link on the way may be led elsewhere afterwards.
        directory, reason = _make_private(directory)
        if reason is None and _size_limit() != _UNLIMITED:
            _sweep(directory)
    except (OSError, RuntimeError) as error:  # RuntimeError: a symbolic link that leads to itself
        reason = str(error)
    if reason is not None:
        logger.warning(
            "Compiled programs are not kept for the next run: %s. Name a directory of your own with "
            "--compilation_cache_dir, or switch this off with --compilation_cache_dir none.", reason,
        )  # fmt: skip
        _point_jax_at(None)
        return
    _point_jax_at(str(directory))


def share_compilation_cache() -> None:
    """Of a run's processes, called by all: keeps the cache only where all of them have the same directory.

    JAX has the first process alone write programs into it. Where another does not see them, the first would load what
    that one compiles; and compilers for GPUs wait for each other's share of the work.
    """
    if not processes.several():
        return
    directory = jax.config.jax_compilation_cache_dir if jax.config.jax_enable_compilation_cache else None
    mark = processes.from_first(lambda: _leave_mark(directory))
    shared = all(processes.gather(mark is not None and directory is not None and _sees(directory, mark)))
    if processes.is_first() and mark is not None and "://" not in mark:
        (Path(directory) / mark).unlink(missing_ok=True)
    if not shared:
        if directory is not None:
            logger.info("Compiled programs are not kept: the processes of this run share no --compilation_cache_dir")
        _point_jax_at(None)


def _leave_mark(directory: str | None) -> str | None:
    """What the other processes find where they have the same directory; None if there is no such thing."""
    if directory is None or "://" in directory:
        return directory
    try:
        handle, path = tempfile.mkstemp(dir=directory, prefix=".shared-")
    except OSError:
        return None
    os.close(handle)
    return Path(path).name


def _sees(directory: str, mark: str) -> bool:
    """Whether the first process's mark is seen here; file systems of networks may need a while."""
    if "://" in mark or "://" in directory:
        return mark == directory
    deadline = time.monotonic() + _SEEN_WITHIN_SECONDS
    while not (Path(directory) / mark).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def host_kind() -> str:
    """A short name that differs between processors with different instructions: "x86_64-3f9a0c1b2d4e"."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = {line.split(":", 1)[0].strip(): line.split(":", 1)[1] for line in lines if ":" in line}
    # x86 lists flags, ARM features; the model decides what code is tuned for.
    known = [" ".join(sorted(named.get(key, "").split())) for key in ("flags", "Features")]
    known += [named.get(key, "") for key in ("model name", "cpu family", "model", "CPU part")] + [platform.processor()]
    return f"{platform.machine() or 'host'}-{hashlib.sha256('|'.join(known).encode()).hexdigest()[:12]}"


def _point_jax_at(directory: str | None) -> None:
    if directory != jax.config.jax_compilation_cache_dir:
        compilation_cache.reset_cache()  # JAX opens its cache once
        jax.config.update("jax_compilation_cache_dir", directory)
    if directory is None:
        return
    settings = {
        "jax_compilation_cache_max_size": LARGEST_BYTES,
        "jax_persistent_cache_min_compile_time_secs": SHORTEST_COMPILE_SECONDS,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _size_limit() -> int:
    """Bytes at which JAX drops entries. Only with a limit does it note when one was used, which `_sweep` looks for."""
    name = "jax_compilation_cache_max_size"
    return getattr(jax.config, name) if name.upper() in os.environ else LARGEST_BYTES


def _make_private(directory: Path) -> tuple[Path, str | None]:
    """Makes a directory that only its owner can write to: its real path, and why it cannot be used, or None."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700 if path == directory else 0o755, exist_ok=True)
    directory = directory.resolve()
    for path in (directory, *directory.parents):
        found = path.stat()
        is_own = path == directory
        if found.st_uid not in ({os.getuid()} if is_own else {os.getuid(), 0}):
            return directory, f"{path} belongs to another user"
        shared = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid != found.st_uid)
        # In a directory with the sticky bit (/tmp), others cannot touch what is not theirs. A group with the number of
        # its user is that user alone.
        if shared and (is_own or not found.st_mode & stat.S_ISVTX):
            return directory, f"others may write to {path}"
    if not os.access(directory, os.W_OK):
        return directory, f"{directory} cannot be written to"
    return directory, None


def _sweep(directory: Path) -> None:
    """Removes entries that a run which died, or a full disk, has left half-written.

    JAX writes a program in place and then the time of its last use beside it; it would stumble over one without the
    other whenever it looks for room.
    """
    try:
        with filelock.FileLock(directory / ".lockfile", timeout=_LOCK_SECONDS):
            for entry in directory.glob("*-cache"):
                if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
                    entry.unlink()
    except filelock.Timeout:
        logger.debug("%s is in use; left as it is.", directory)
