"""A restricted reader of `torch.save` files (`pytorch_model.bin`), without PyTorch and without running pickled code.

Such a file is a pickle, and a pickle is a program. This reader knows the two layouts that `torch.save` has written (a
zip archive since PyTorch 1.6, a row of pickles before that; see `torch/serialization.py` of PyTorch). It lets the
pickle name nothing but the few globals that a state dict needs, each replaced by an inert stand-in, and checks every
offset, size and stride against the file before an array is made.
"""

import io
import math
import mmap
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from xtremes_jax.errors import InputError

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_MAX_PICKLE_BYTES = 8 << 20
_MAX_INSTRUCTIONS = 250_000
"""A tensor takes about 45, and the largest models that can be loaded here have 1,300 tensors."""
_STORAGE_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_DTYPE_NAMES = frozenset(
    "float64 double float32 float float16 half bfloat16 int64 long int32 int int16 short int8 uint8 bool".split()
)
# What a state dict needs, and every instruction that names a global, so that the name can be refused in words. The
# others read a process-wide registry of objects, or make the unpickler reserve memory that the file does not fill.
_ALLOWED_OPCODES = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT LONG BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET "
    "GLOBAL STACK_GLOBAL INST OBJ NEWOBJ NEWOBJ_EX REDUCE BUILD BINPERSID".split()
)


# Hashing, comparing and showing a tuple walk through all that it unfolds to, and a few bytes can make tuples of tuples
# that unfold to any amount. A tensor's description unfolds to its shape, its strides and about ten values more.
_LARGEST_TUPLE = 128
_BUILDING_OPCODES = frozenset("TUPLE TUPLE1 TUPLE2 TUPLE3 REDUCE BUILD INST OBJ NEWOBJ NEWOBJ_EX".split())
_FILLING_OPCODES = frozenset("APPEND APPENDS SETITEM SETITEMS".split())


# The stand-ins are tuples and slotted objects on purpose: a pickle can set attributes on anything that takes them.


class _Dtype(NamedTuple):
    """Stands for `torch.FloatStorage`, `torch.float32` and their like."""

    name: str


class _Storage(NamedTuple):
    """A run of `count` elements somewhere in the file, known by its key."""

    key: str
    dtype: np.dtype
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides in elements. Believed by nobody before `_check_view`."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StateDict(dict):
    """Stands for `collections.OrderedDict`; the `_metadata` that PyTorch hangs on it is of no use here."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _RebuildTensor:
    """Stands for `torch._utils._rebuild_tensor_v2`."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_unused: Any) -> _Tensor:
        integers = (offset, *shape, *strides) if type(shape) is tuple and type(strides) is tuple else (None,)
        if type(storage) is not _Storage or any(type(value) is not int for value in integers):
            raise pickle.UnpicklingError("a tensor is not described by a storage and whole numbers")
        return _Tensor(storage, offset, shape, strides)


class _RebuildParameter:
    """Stands for `torch._utils._rebuild_parameter`."""

    __slots__ = ()

    def __call__(self, data: Any, *_unused: Any) -> Any:
        return data


class _StateDictUnpickler(pickle.Unpickler):
    """Builds stand-ins; `storages` collects what the pickle refers to."""

    def __init__(self, source: io.BytesIO, path: Path) -> None:
        super().__init__(source, encoding="utf-8")
        self.path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _StateDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _RebuildParameter()
        if module in ("torch", "torch.cuda") and name in _STORAGE_DTYPES:
            return _Dtype(name)
        if module == "torch" and name in _DTYPE_NAMES:
            return _Dtype(name)
        raise InputError(
            f"{self.path} asks for {module}.{name}, which no plain state dict needs: refused, and nothing was run. "
            "If you trust the file, load it with PyTorch and save model.state_dict() (better: model.save_pretrained)."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        # ("storage", type, key, device, elements); before PyTorch 1.6 also a view into another storage, None since 0.4.
        known = type(pid) is tuple and (len(pid) == 5 or (len(pid) == 6 and pid[5] is None)) and pid[0] == "storage"
        kind, key, count = (pid[1], pid[2], pid[4]) if known else (None, None, None)
        known = known and type(kind) is _Dtype and kind.name in _STORAGE_DTYPES
        if not known or type(key) is not str or type(count) is not int:
            raise pickle.UnpicklingError("a storage is described in an unknown way")
        storage = _Storage(key, _STORAGE_DTYPES[kind.name], count)
        if count < 0 or self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key} is described in two ways, or with a negative size")
        return storage


def read_torch_file(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Open a state dict by `torch.save`, of either layout, through a read-only memory map.

    Args:
        path: the file.

    Returns:
        For each tensor a function that returns it: a read-only view of the file where the tensor is contiguous and
        aligned, else a copy. All bounds have been checked by then.

    Raises:
        InputError: the file is empty, truncated, damaged, no state dict, or names a global that no state dict needs.
    """
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty. Download it again.")
    with path.open("rb") as file:
        # The map outlives the file object; arrays made from it keep it alive.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if data[:4] == b"PK\x03\x04":
        state, starts = _read_zip(path, data)
    elif data[:1] == b"\x80":
        state, starts = _read_legacy(path, data)
    elif data[:8] == b"version ":
        raise InputError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository.")
    else:
        raise InputError(f"{path} is not a file by torch.save. Download or export it again.")
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not a state dict. Save model.state_dict() instead.")
    readers = {}
    for name, tensor in state.items():
        if type(name) is not str or type(tensor) is not _Tensor:
            names = ", ".join(str(key) for key in list(state)[:5])
            raise InputError(
                f"{path} is not a plain state dict: its entry {name!r} is not a tensor (entries: {names}, ...). "
                "Save only the model's state dict (better: model.save_pretrained)."
            )
        _check_view(path, name, tensor)
        readers[name] = partial(_view, tensor, data, starts[tensor.storage.key])
    return readers


def _load_pickle(source: io.BytesIO, path: Path) -> tuple[Any, dict[str, _Storage]]:
    """The pickle at the position of `source`, which is left just behind it, and the storages it refers to."""
    start, sizes = source.tell(), _UnfoldedSizes()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(source)):
            if count > _MAX_INSTRUCTIONS:
                raise InputError(f"{path} is refused: its pickle is longer than any state dict's.")
            if opcode.name not in _ALLOWED_OPCODES:
                raise InputError(f"{path} is refused: its pickle uses {opcode.name}, which no plain state dict needs.")
            if opcode.name.endswith("PUT") and int(argument) > count:
                # The unpickler would make a table of that many entries.
                raise InputError(f"{path} is refused: its pickle numbers its objects so as to exhaust memory.")
            if sizes.follow(opcode, argument) > _LARGEST_TUPLE:
                raise InputError(f"{path} is refused: its pickle unfolds to far more than a state dict needs.")
        source.seek(start)
        unpickler = _StateDictUnpickler(source, path)
        return unpickler.load(), unpickler.storages
    except InputError:
        raise
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise InputError(f"{path} is truncated, damaged or no state dict ({error}). Download it again.") from error
    except (MemoryError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is damaged: it describes more than memory can hold.") from error


class _UnfoldedSizes:
    """Follows a pickle's stack without building anything: how many values each object on it unfolds to.

    Lists and dictionaries count as one: they cannot be hashed. Of a damaged pickle it may be wrong: the unpickler comes
    after it, and refuses that.
    """

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._marks: list[int] = []
        self._memo: dict[int, int] = {}

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> int:
        """Does what `opcode` does to the stack; returns the size of what it made, 0 if it made nothing."""
        name = opcode.name
        if name == "MARK":
            self._marks.append(len(self._stack))
            return 0
        if name.endswith("PUT") or name == "MEMOIZE":
            key = len(self._memo) if name == "MEMOIZE" else int(argument)
            self._memo[key] = self._stack[-1] if self._stack else 1
            return 0
        taken = self._take(opcode)
        if name.endswith("GET"):
            size = self._memo.get(int(argument), 1)
        elif name in _BUILDING_OPCODES:
            size = 1 + sum(taken)
        elif name in _FILLING_OPCODES and taken:
            size = taken[0]
        else:  # whole numbers are hashed digit by digit, strings once
            size = 1 + argument.bit_length() // 64 if type(argument) is int else 1
        if not opcode.stack_after:
            return 0
        self._stack.append(size)
        return size

    def _take(self, opcode: pickletools.OpcodeInfo) -> list[int]:
        """Takes off the stack what `opcode` does; sizes in the stack's order."""
        wanted = opcode.stack_before
        start = len(self._stack) - len(wanted)
        if pickletools.markobject in wanted:
            # The items after the mark, and what the instruction wants before it.
            start = (self._marks.pop() if self._marks else 0) - wanted.index(pickletools.markobject)
        elif opcode.name == "POP" and self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()  # as the unpickler does
            return []
        taken = self._stack[max(start, 0) :]
        del self._stack[max(start, 0) :]
        return taken


def _read_zip(path: Path, data: mmap.mmap) -> tuple[Any, dict[str, int]]:
    """PyTorch 1.6 and later: an archive with `<name>/data.pkl` and, uncompressed, `<name>/data/<key>` per storage.

    Returns the unpickled object, and where each storage starts in the file (bytes).
    """
    entries, prefix, source = _open_archive(path)
    state, storages = _load_pickle(source, path)
    starts = {}
    for key, storage in storages.items():
        info = entries.get(f"{prefix}data/{key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED or info.file_size < storage.nbytes:
            raise InputError(f"{path} is damaged: storage {key} is missing, compressed or short. Download it again.")
        header = data[info.header_offset : info.header_offset + 30] if info.header_offset >= 0 else b""
        # The name and padding (which aligns the data) of an entry's own header differ in length from the directory's.
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        starts[key] = info.header_offset + 30 + names
        if header[:4] != b"PK\x03\x04" or starts[key] + storage.nbytes > len(data):
            raise InputError(f"{path} is damaged: storage {key} is not where its directory says. Download it again.")
    return state, starts


def _open_archive(path: Path) -> tuple[dict[str, zipfile.ZipInfo], str, io.BytesIO]:
    """The entries of an archive by `torch.save`, the folder they lie in (with its slash), and its data.pkl."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
            prefix = pickles[0].removesuffix("data.pkl") if len(pickles) == 1 else ""
            if not prefix or f"{prefix}constants.pkl" in entries:
                raise InputError(f"{path} is a zip archive, but no state dict by torch.save. Save model.state_dict().")
            if f"{prefix}byteorder" in entries:
                _check_byte_order(path, _read_entry(path, archive, f"{prefix}byteorder") == b"little")
            return entries, prefix, io.BytesIO(_read_entry(path, archive, pickles[0]))
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}). Download it again.") from error


def _read_entry(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """A small entry, which has to be stored as it is: torch.save compresses nothing, and what is compressed can unpack
    to any amount, whatever the directory says."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > _MAX_PICKLE_BYTES:
        raise InputError(f"{path} is refused: its {name} is compressed, or larger than any state dict's.")
    return archive.read(info)


def _read_legacy(path: Path, data: mmap.mmap) -> tuple[Any, dict[str, int]]:
    """Before PyTorch 1.6: pickles of a magic number, a version, the machine, the object and the storage keys, then the
    storages in the order of the keys, each behind its number of elements (8 bytes). Returns what `_read_zip` does.
    """
    source = io.BytesIO(data[:_MAX_PICKLE_BYTES])
    if _load_pickle(source, path)[0] != _MAGIC_NUMBER or _load_pickle(source, path)[0] != _PROTOCOL_VERSION:
        raise InputError(f"{path} is a pickle, but not one by torch.save. Save model.state_dict() with PyTorch.")
    machine = _load_pickle(source, path)[0]
    _check_byte_order(path, isinstance(machine, dict) and machine.get("little_endian") is True)
    state, storages = _load_pickle(source, path)
    keys = _load_pickle(source, path)[0]
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise InputError(f"{path} is damaged: its list of storages does not match its tensors. Download it again.")
    starts = {}
    position = source.tell()
    for key in keys:
        starts[key] = position + 8
        position = starts[key] + storages[key].nbytes
        if data[starts[key] - 8 : starts[key]] != storages[key].count.to_bytes(8, "little") or position > len(data):
            raise InputError(f"{path} is truncated or damaged at storage {key}. Download it again.")
    return state, starts


def _check_byte_order(path: Path, is_little: bool) -> None:
    if not is_little:
        raise InputError(f"{path} was not saved on a little-endian machine. Save it again on one.")


def _check_view(path: Path, name: str, tensor: _Tensor) -> None:
    """InputError unless the view lies inside its storage and has no more elements than it.

    A larger view (stride 0) is legal in PyTorch, but would let a tiny file ask for any amount of memory.
    """
    count, shape, strides = tensor.storage.count, tensor.shape, tensor.strides
    sane = len(shape) == len(strides) <= 32 and tensor.offset >= 0
    sane = sane and all(0 <= size < 1 << 40 for size in shape) and all(stride >= 0 for stride in strides)
    if sane and math.prod(shape):
        last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        sane = last < count and math.prod(shape) <= count
    if not sane:
        raise InputError(
            f"{path} is damaged: tensor {name} (shape {shape}, strides {strides}, offset {tensor.offset}) does not fit "
            f"its storage of {count} elements. Download it again."
        )


def _view(tensor: _Tensor, data: mmap.mmap, start: int) -> np.ndarray:
    """The checked tensor, C-contiguous; `start` is where its storage starts in the file, in bytes."""
    dtype = tensor.storage.dtype
    if not math.prod(tensor.shape):
        return np.empty(tensor.shape, dtype)
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    array = np.ndarray(tensor.shape, dtype, data, start + tensor.offset * dtype.itemsize, strides)
    return array if array.flags.c_contiguous and array.flags.aligned else array.copy(order="C")
