"""The directory of compiled programs: private or none, one for each kind of processor, never the end of a run."""

import logging
import os
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as compiled

from xtremes_jax.training import compilation_cache
from xtremes_jax.training.compilation_cache import LARGEST_BYTES, OFF, host_kind, use_compilation_cache

NAMES = (
    "jax_enable_compilation_cache", "jax_compilation_cache_dir", "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)  # fmt: skip


@pytest.fixture(autouse=True)
def configuration(monkeypatch):
    """Switched on as for a user, and as it was afterwards."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    for name in NAMES:
        monkeypatch.delenv(name.upper(), raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_compilation_cache_max_size", -1)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compiled.reset_cache()  # JAX opens it once


def used() -> str | None:
    return jax.config.jax_compilation_cache_dir


def test_on_by_default_in_a_private_directory_of_bounded_size(tmp_path):
    use_compilation_cache(None, tmp_path / "cache" / "xtremes_jax")
    directory = tmp_path / "cache" / "xtremes_jax" / "compiled" / host_kind()
    assert used() == str(directory)
    assert directory.stat().st_mode & 0o777 == 0o700 and directory.parent.stat().st_mode & 0o022 == 0
    assert jax.config.jax_compilation_cache_max_size == LARGEST_BYTES
    use_compilation_cache(None, tmp_path / "other")  # configured by now
    assert used() == str(directory) and not (tmp_path / "other").exists()


def test_what_jax_is_told_stays(tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    use_compilation_cache(None, tmp_path / "cache")
    assert used() == str(tmp_path / "theirs") and jax.config.jax_compilation_cache_max_size == -1
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    use_compilation_cache(None, tmp_path / "cache")
    assert used() is None and not (tmp_path / "cache").exists()
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_max_size", 77)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "77")
    use_compilation_cache(None, tmp_path / "cache")
    assert used() is not None and jax.config.jax_compilation_cache_max_size == 77


def test_a_flag_comes_first(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    use_compilation_cache(str(tmp_path / "mine"), tmp_path / "cache")
    assert used() == str(tmp_path / "mine" / host_kind())
    use_compilation_cache("gs://bucket/programs", tmp_path / "cache")
    assert used() == "gs://bucket/programs"
    use_compilation_cache(OFF, tmp_path / "cache")
    assert used() is None and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("place", ["own", "parent"])
@pytest.mark.parametrize("mode", [0o777, 0o702])
def test_a_directory_that_others_may_write_to_is_not_used(tmp_path, caplog, place, mode):
    directory = tmp_path / "mine" / host_kind()
    directory.mkdir(parents=True)
    (directory if place == "own" else directory.parent).chmod(mode)
    with caplog.at_level(logging.WARNING):
        use_compilation_cache(str(tmp_path / "mine"), tmp_path / "cache")
    assert used() is None and "others may write to" in caplog.text and "--compilation_cache_dir" in caplog.text


def test_below_a_sticky_directory_is_as_safe_as_below_tmp(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    use_compilation_cache(str(shared / "mine"), tmp_path / "cache")
    assert used() == str(shared / "mine" / host_kind())


def test_a_group_counts_as_others_unless_it_is_the_users_own(tmp_path, monkeypatch):
    directory = tmp_path / "mine" / host_kind()
    directory.mkdir(parents=True)
    os.chmod(directory, 0o770)
    found = directory.stat()
    fields = list(found)
    for group, expected in ((found.st_uid, str(directory)), (found.st_uid + 1, None)):
        fields[5] = group
        changed = os.stat_result(fields)
        real = Path.stat
        with monkeypatch.context() as patch:
            patch.setattr(Path, "stat", lambda path, **k: changed if path == directory else real(path, **k))  # noqa: B023
            use_compilation_cache(str(tmp_path / "mine"), tmp_path / "cache")
        assert used() == expected


def test_another_users_directory_is_not_used(tmp_path, monkeypatch, caplog):
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    use_compilation_cache(str(tmp_path / "mine"), tmp_path / "cache")
    assert used() is None and "belongs to another user" in caplog.text


def test_where_nothing_can_be_written_a_run_goes_on_without(tmp_path, caplog):
    (tmp_path / "file").touch()
    use_compilation_cache(None, tmp_path / "file")
    assert used() is None and "not kept for the next run" in caplog.text


def test_a_read_only_directory_is_not_used(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    use_compilation_cache(None, tmp_path)
    assert used() is None and "cannot be written to" in caplog.text


def test_what_was_left_half_written_is_removed(tmp_path):
    use_compilation_cache(str(tmp_path), tmp_path)
    directory = Path(used())
    for name in ("jit_a-1-cache", "jit_a-1-atime", "jit_b-2-cache"):
        (directory / name).write_bytes(b"12345678")
    use_compilation_cache(str(tmp_path), tmp_path)
    assert sorted(path.name for path in directory.glob("jit_*")) == ["jit_a-1-atime", "jit_a-1-cache"]


def test_without_a_size_limit_nothing_is_taken_for_half_written(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")
    jax.config.update("jax_compilation_cache_max_size", -1)
    use_compilation_cache(str(tmp_path), tmp_path)
    entry = Path(used()) / "jit_a-1-cache"
    entry.write_bytes(b"12345678")  # JAX notes no times of use then
    use_compilation_cache(str(tmp_path), tmp_path)
    assert entry.exists()


def test_a_linked_directory_is_used_by_its_real_path(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    use_compilation_cache(str(tmp_path / "link"), tmp_path)
    assert Path(used()).parent == (tmp_path / "real").resolve()


def test_processors_that_differ_have_directories_that_differ(monkeypatch):
    text = "model name : X\nflags : fpu avx2\n\nmodel name : X\nflags : fpu avx2\n"
    kinds = []
    for contents in (text, text.replace("avx2", "avx2 avx512f"), text.replace("X", "Y"), text):
        monkeypatch.setattr(Path, "read_text", lambda path, encoding, contents=contents: contents)
        kinds.append(host_kind())
    assert kinds[0] == kinds[3] and len(set(kinds)) == 3

    def unreadable(path, encoding):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", unreadable)
    assert host_kind() and compilation_cache.platform.machine() in host_kind()
