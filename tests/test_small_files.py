"""Small files that may be hostile: refused in words before anything is spent on them."""

import os

import pytest

from xtremes_jax.small_files import UnusableFile, read_object, read_text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"), (b"[1]", "must hold a JSON object, not a list"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"[" * 100_000, "nested too deeply"), (b'{"a": ' + b"1" * 5000 + b"}", "is not valid JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "names 'c' twice"), (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\uDC00": 1}', "half of a surrogate pair"), (b'{"a": "' + b"x" * 1000 + b'"}', "is larger than 0 MiB"),
    ],
)  # fmt: skip
def test_odd_json_is_refused(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UnusableFile, match=message):
        read_object(tmp_path / "x.json", largest=1000 if b"xxx" in content else 1 << 20)


def test_whole_pairs_of_surrogates_and_marks_of_byte_order_are_read(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}')
    assert read_object(tmp_path / "x.json") == {"a": "\U0001f600"}


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "zeros")
    os.symlink("loop", tmp_path / "loop")
    for name, message in [
        ("pipe", "is a pipe or a device"), ("zeros", "is a pipe or a device"),
        ("absent", "cannot be read: No such file"),
        ("loop", "cannot be read: Too many levels"), (".", "cannot be read: Is a directory"),
        ("a\0b", "cannot be read"),
        ("a" * 300, "cannot be read: File name too long"),
    ]:  # fmt: skip
        with pytest.raises(UnusableFile, match=message):
            read_text(tmp_path / name, largest=1000)
