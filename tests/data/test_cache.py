"""Files and directories appear whole or not at all, whoever else writes them, and leave nothing behind."""

import os
import threading
import time

import pytest

from xtremes_jax.data.cache import build_directory, write_atomically
from xtremes_jax.errors import InputError


def test_a_directory_is_built_once_and_for_everybody_to_read(tmp_path):
    target = tmp_path / "deep" / "corpus"
    assert build_directory(target, lambda folder: (folder / "file").write_text("whole")) == target
    assert (target / "file").read_text() == "whole" and target.stat().st_mode & 0o777 == 0o755
    assert build_directory(target, lambda folder: pytest.fail("built again")) == target
    assert os.listdir(target.parent) == ["corpus"]


def test_builders_at_the_same_time_do_not_disturb_each_other(tmp_path):
    barrier = threading.Barrier(2)
    built = []

    def fill(folder):
        (folder / "file").write_text("whole")
        barrier.wait(timeout=30)  # both have found no directory, and filled one

    threads = [
        threading.Thread(target=lambda: built.append(build_directory(tmp_path / "corpus", fill))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [tmp_path / "corpus"] * 2 and os.listdir(tmp_path) == ["corpus"]


def test_a_failure_leaves_nothing_behind_and_passes_on(tmp_path):
    def fill(folder):
        (folder / "half").touch()
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        build_directory(tmp_path / "corpus", fill)
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written.*--cache_dir"):
        build_directory(tmp_path / "file" / "corpus", fill)


def test_a_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "deep" / "file.json"
    for content in ("first", "zweite: ü"):
        write_atomically(path, content)
        assert path.read_text(encoding="utf-8") == content and os.listdir(path.parent) == ["file.json"]


def test_what_a_killed_process_was_making_goes_after_a_day(tmp_path):
    """Not earlier: a process that is alive may be making it."""
    for name, hours in ((".corpus-abandoned", 25), (".corpus-alive", 23), (".other-abandoned", 25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
        begun = time.time() - 3600 * hours
        os.utime(tmp_path / name, (begun, begun))
    build_directory(tmp_path / "corpus", lambda folder: (folder / "file").write_text("whole"))
    assert sorted(os.listdir(tmp_path)) == [".corpus-alive", ".other-abandoned", "corpus"]
