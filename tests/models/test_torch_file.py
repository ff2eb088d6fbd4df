"""Damaged and hostile checkpoint files: refused with a reason, and nothing in them is ever run."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from xtremes_jax.errors import InputError
from xtremes_jax.models.weights import read_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "weights"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def integers(*values: int) -> bytes:
    return b"(" + b"".join(b"L%dL\n" % value for value in values) + b"t"


def tensor_pickle(count=6, offset=0, shape=(2, 3), strides=(3, 1), kind="FloatStorage") -> bytes:
    """A state dict of one tensor, "a", in storage "0", as torch.save spells it."""
    storage = (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text("0") + text("cpu") + b"L%dL\ntQ" % count
    )
    arguments = b"(" + storage + b"L%dL\n" % offset + integers(*shape) + integers(*strides)
    hooks = b"\x89ccollections\nOrderedDict\n)Rt"
    return b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + hooks + b"Rs."


def save_zip(
    directory: Path, pickled: bytes, storage: bytes | None = None, compression: int = zipfile.ZIP_STORED
) -> None:
    with zipfile.ZipFile(directory / "pytorch_model.bin", "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", np.arange(6, dtype="<f4").tobytes() if storage is None else storage)


def save_legacy(directory: Path, pickled: bytes) -> None:
    header = (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
        + b"\x80\x02M\xe9\x03."
        + b"\x80\x02}"
        + text("little_endian")
        + b"\x88s."
    )
    keys = b"\x80\x02]" + text("0") + b"a."
    storage = (6).to_bytes(8, "little") + np.arange(6, dtype="<f4").tobytes()
    (directory / "pytorch_model.bin").write_bytes(header + pickled + keys + storage)


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_the_hand_made_file_is_a_good_one(tmp_path, save):
    save(tmp_path, tensor_pickle(offset=1, shape=(2, 2), strides=(1, 3)))
    np.testing.assert_array_equal(read_tensors(tmp_path)["a"], [[1, 4], [2, 5]])


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize(
    "view",
    [
        {"offset": 1},
        {"offset": -1},
        {"shape": (3, 3)},
        {"strides": (4, 1)},
        {"strides": (-3, 1)},
        {"shape": (-2, -3)},
        {"shape": (2, 3, 1)},
        {"shape": (1 << 20, 1 << 20), "strides": (0, 0)},
        {"shape": (1 << 62, 0)},
        {"offset": 1 << 64, "shape": (1, 1)},
        {"count": 1 << 60},
        {"count": -6},
        {"kind": "DoubleStorage"},
    ],
)
def test_views_must_stay_inside_their_storage(tmp_path, save, view):
    save(tmp_path, tensor_pickle(**view))
    with pytest.raises(InputError, match="damaged"):
        read_tensors(tmp_path)


MARKER = "code-was-run"
HOSTILE = {
    "os.system": b"cos\nsystem\n(" + text(f"touch {MARKER}") + b"tR",
    "posix.system": b"cposix\nsystem\n(" + text(f"touch {MARKER}") + b"tR",
    "builtins.eval": b"cbuiltins\neval\n(" + text(f"open('{MARKER}','w').close()") + b"tR",
    "builtins.exec": text("builtins") + text("exec") + b"\x93(" + text(f"open('{MARKER}','w').close()") + b"tR",
    "subprocess.call": b"(" + text(f"touch {MARKER}") + b"isubprocess\ncall\n",
    "builtins.getattr": b"cbuiltins\ngetattr\n(" + text("a") + text("__class__") + b"tR",
    "torch.load": b"ctorch\nload\n(" + text("x") + b"tR",
    "torch._utils._rebuild_tensor_v2.__globals__": b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n",
    "collections.OrderedDict.fromkeys": b"ccollections\nOrderedDict.fromkeys\n",
}


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_by_name_and_never_run(tmp_path, monkeypatch, save, name):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, b"\x80\x04}" + text("a") + HOSTILE[name] + b"s.")
    with pytest.raises(InputError, match=f"asks for {name}".replace(".", r"\.") + ".*nothing was run"):
        read_tensors(tmp_path)
    assert not (tmp_path / MARKER).exists()


def test_a_hostile_pickle_would_run_elsewhere(tmp_path, monkeypatch):
    """The payloads above are real: the standard unpickler runs them."""
    import pickle

    monkeypatch.chdir(tmp_path)
    pickle.loads(b"\x80\x04}" + text("a") + HOSTILE["builtins.eval"] + b"s.")
    assert (tmp_path / MARKER).exists()


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02}r\xff\xff\xff\xff.",  # a memo slot that would need a table of 64 GB
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",  # a bytearray of 1 TB, reserved before it is read
        b"\x80\x02\x82\x01.",  # an object from the process-wide extension registry
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # a stand-in, called
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}" + text("path") + text("x") + b"sb.",  # a stand-in, modified
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + text("0") + b"K\x00))tR.",  # a storage that is only a name
        b"\x80\x02(" + text("storage") + text("FloatStorage") + text("0") + text("cpu") + b"K\x06tQ.",
        b"\x80\x02" + text("storage 0") + b"Q.",
    ],
)
def test_other_tricks_are_refused(tmp_path, save, pickled):
    save(tmp_path, pickled)
    with pytest.raises(InputError, match="refused|damaged"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02]" + text("x") + b"a.", "holds a list, not a state dict"),
        (b"\x80\x02}" + text("epoch") + b"K\x05s.", "entry 'epoch' is not a tensor"),
        (b"\x80\x02}" + text("model") + tensor_pickle()[2:-1] + b"s.", "entry 'model' is not a tensor"),
    ],
)
def test_other_contents_are_explained(tmp_path, pickled, message):
    save_zip(tmp_path, pickled)
    with pytest.raises(InputError, match=message):
        read_tensors(tmp_path)


def test_damaged_archives(tmp_path):
    save_zip(tmp_path, tensor_pickle(), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="data.pkl is compressed, or larger"):
        read_tensors(tmp_path)
    save_zip(tmp_path, tensor_pickle(), storage=b"\0" * 23)
    with pytest.raises(InputError, match="missing, compressed or short"):
        read_tensors(tmp_path)
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("readme.txt", "no model")
    with pytest.raises(InputError, match="no state dict by torch.save"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pytorch_model.bin", b"", "is empty"),
        ("pytorch_model.bin", b"<html>404</html>", "not a file by torch.save"),
        ("pytorch_model.bin", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("pytorch_model.bin", b"\x80\x02}.", "not one by torch.save"),
        ("model.safetensors", b"", "truncated or no safetensors"),
        ("model.safetensors", b"<html>404</html>", "truncated or no safetensors"),
    ],
)
def test_files_of_another_kind(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_tensors(tmp_path)


FILES = [("zip", "pytorch_model.bin"), ("legacy", "pytorch_model.bin"), ("safetensors", "model.safetensors")]


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_truncated_anywhere(tmp_path, kind, name, rng):
    whole = (GOLDEN / kind / name).read_bytes()
    # The last storage of the old layout is empty but for its size; a file cut inside that size is still refused.
    for length in [1, 8, len(whole) - 1, *rng.integers(1, len(whole), 60)]:
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_tensors(tmp_path)


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_damaged_anywhere(tmp_path, kind, name, rng):
    """Any change of bytes gives other numbers or an InputError, never another exception or a crash."""
    whole = np.frombuffer((GOLDEN / kind / name).read_bytes(), np.uint8)
    refused = 0
    for _ in range(400):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), rng.integers(1, 4))] = rng.integers(0, 256)
        (tmp_path / name).write_bytes(damaged.tobytes())
        try:
            tensors = read_tensors(tmp_path)
            assert all(isinstance(tensor, np.ndarray) for tensor in tensors.values())
        except InputError:
            refused += 1
    assert refused > 20


def doubling_tuples(levels: int) -> bytes:
    """A tuple of two references to a tuple of two references to ..., 2 ** levels values in a few bytes a level."""
    return b"K\x01" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(levels))


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize(
    "key",
    [
        doubling_tuples(60),
        b"(" + doubling_tuples(60) + b"t",
        doubling_tuples(4) + b"q\x04" + b"(" + b"h\x04" * 30 + b"t",
        b"(" + b"K\x01" * 1000 + b"t",
        b"\x8b" + (1 << 16).to_bytes(4, "little") + b"\x01" * (1 << 16),
        b"ctorch._utils\n_rebuild_parameter\n" + doubling_tuples(60) + b"\x85R",
    ],
)
def test_keys_that_take_for_ever_to_hash_are_refused(tmp_path, save, key):
    for filled in (b"}" + key + b"K\x01s.", b"}(" + key + b"K\x01u."):
        save(tmp_path, b"\x80\x02" + filled)
        with pytest.raises(InputError, match="unfolds to far more than a state dict needs"):
            read_tensors(tmp_path)


def test_small_tuples_as_keys_are_explained(tmp_path):
    save_zip(tmp_path, b"\x80\x02}" + doubling_tuples(2) + b"K\x01s.")
    with pytest.raises(InputError, match=r"its entry \(\(1, 1\), \(1, 1\)\) is not a tensor"):
        read_tensors(tmp_path)


def test_tensors_of_many_axes_are_read(tmp_path):
    save_zip(tmp_path, tensor_pickle(shape=(1,) * 30 + (2, 3), strides=(6,) * 30 + (3, 1)))
    assert read_tensors(tmp_path)["a"].shape == (1,) * 30 + (2, 3)
