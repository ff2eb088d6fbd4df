"""Checkpoint files: what PyTorch wrote is read exactly, and what is written comes back."""

import json
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from xtremes_jax.errors import InputError
from xtremes_jax.models.weights import read_json_object, read_tensors, write_safetensors

GOLDEN = Path(__file__).parents[1] / "golden" / "weights"
BASE = np.arange(24, dtype=np.float32).reshape(4, 6) / 8 - 1
EXPECTED = {
    "matrix": BASE,
    "transposed_rows": BASE.T[1:4],
    "strided": BASE[1:3, ::2],
    "parameter": np.array([0.5, -1.5, 2.0], np.float32),
    "half": np.array([[1.5, -2.25]], np.float16),
    "brain": np.array([1.0, -0.0078125, 3.0], ml_dtypes.bfloat16),
    "double": np.array([1 / 3, 2 / 3]),
    "counts": np.array([1, -(2**40)]),
    "flags": np.array([True, False, True]),
    "scalar": np.array(7.25, np.float32),
    "empty": np.empty((0, 5), np.float32),
}


def assert_same(tensors, expected) -> None:
    assert set(tensors) == set(expected)
    for name, array in expected.items():
        found = tensors[name]
        assert found.dtype == array.dtype and found.shape == array.shape, name
        assert found.flags.c_contiguous and found.flags.aligned, name
        np.testing.assert_array_equal(found, array, err_msg=name)


# --- files by PyTorch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "legacy", "sharded", "safetensors"])
def test_golden_files(kind):
    assert_same(read_tensors(GOLDEN / kind), EXPECTED)


def test_reading_needs_no_torch():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from xtremes_jax.models.weights import read_tensors\n"
        f"golden = Path({str(GOLDEN)!r})\n"
        "kinds = ('zip', 'legacy', 'sharded', 'safetensors')\n"
        "print([float(read_tensors(golden / kind)['brain'].astype('f4').sum()) for kind in kinds])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    assert json.loads(done.stdout) == [3.9921875] * 4


@pytest.mark.parametrize("zipped", [True, False])
def test_live_torch_files(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    convolution = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(6, 4, 3, groups=2), dim=2)
    model = torch.nn.Sequential(convolution, torch.nn.LayerNorm(4), torch.nn.Linear(4, 5).bfloat16())
    state = model.state_dict()
    shared = torch.randn(5, 7, 3)
    state.update(all=shared, permuted=shared.permute(2, 0, 1), slice=shared[1:4, 2:6:3, 1:], row=shared[3, 2])
    state.update(
        parameter=torch.nn.Parameter(torch.randn(2, 2).half()), integers=torch.randint(-5, 5, (3,), dtype=torch.int16)
    )
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    expected = {
        name: tensor.detach().float().numpy().astype(ml_dtypes.bfloat16)
        if tensor.dtype == torch.bfloat16
        else tensor.detach().numpy()
        for name, tensor in state.items()
    }
    assert_same(read_tensors(tmp_path), expected)


def test_tensors_are_read_lazily(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({str(i): torch.randn(512, 512) for i in range(16)}, tmp_path / "pytorch_model.bin")
    tracemalloc.start()
    tensors = read_tensors(tmp_path)
    largest = max(float(tensor.max()) for tensor in tensors.values())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert largest > 3
    assert peak < 2 << 20, "16 MiB of tensors were copied"
    assert not tensors["0"].flags.writeable


# --- which file is read --------------------------------------------------------------------------------------------


def test_safetensors_come_before_pickles(tmp_path):
    shutil.copy(GOLDEN / "zip" / "pytorch_model.bin", tmp_path)
    write_safetensors(tmp_path, {"only": np.ones(3, np.float32)})
    assert list(read_tensors(tmp_path)) == ["only"]


def test_no_weights_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match="model.safetensors, .*pytorch_model.bin, "):
        read_tensors(tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(b"x")
    with pytest.raises(InputError, match="It holds flax_model.msgpack, which cannot be used"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("shard", ["../secret.bin", "/etc/passwd", "a/b.bin", "..", "c:\\x.bin", "nul\0.bin"])
def test_shards_must_be_plain_file_names(tmp_path, shard):
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match="not a plain file name"):
        read_tensors(tmp_path)


def test_index_must_match_its_shards(tmp_path):
    shutil.copytree(GOLDEN / "sharded", tmp_path, dirs_exist_ok=True)
    index = tmp_path / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["absent"] = "pytorch_model-00002-of-00002.bin"
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="lacks 'absent'"):
        read_tensors(tmp_path)
    del content["weight_map"]["absent"], content["weight_map"]["scalar"]
    index.write_text(json.dumps(content))
    assert_same(read_tensors(tmp_path), EXPECTED)  # what the index leaves out is still found
    (tmp_path / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(InputError, match="pytorch_model-00001-of-00002.bin', which is missing"):
        read_tensors(tmp_path)
    index.write_text("{}")
    with pytest.raises(InputError, match="weight_map"):
        read_tensors(tmp_path)


def test_json_objects(tmp_path):
    path = tmp_path / "config.json"
    for content, message in [("[1]", "not a list"), ("{", "not valid JSON"), ("[" * 100_000, "not valid JSON")]:
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_json_object(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_json_object(tmp_path / "absent.json")


# --- writing -------------------------------------------------------------------------------------------------------


def random_tensors(rng) -> dict[str, np.ndarray]:
    return {
        "weight": rng.standard_normal((8, 16), np.float32),
        "turned": rng.standard_normal((16, 8), np.float32).T,
        "brain": rng.standard_normal((3, 5)).astype(ml_dtypes.bfloat16),
        "scalar": np.array(rng.standard_normal(), np.float32),
        "counts": rng.integers(-9, 9, (4,)),
    }


def test_written_tensors_come_back(tmp_path, rng):
    tensors = random_tensors(rng)
    assert write_safetensors(tmp_path / "new", tensors) == ["model.safetensors"]
    assert_same(read_tensors(tmp_path / "new"), tensors)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]
    beside = tmp_path / "beside"
    beside.touch()
    assert (tmp_path / "new" / "model.safetensors").stat().st_mode == beside.stat().st_mode


def test_shards_and_back(tmp_path, rng):
    tensors = random_tensors(rng)
    files = write_safetensors(tmp_path, tensors, max_shard_bytes=560)
    assert files == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)] + ["model.safetensors.index.json"]
    assert_same(read_tensors(tmp_path), tensors)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    # Weights of the other layout would be read in the place of these, so they go.
    write_safetensors(tmp_path, {"new": np.ones(2, np.float32)})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    write_safetensors(tmp_path, tensors, max_shard_bytes=560)
    assert_same(read_tensors(tmp_path), tensors)


def test_a_failed_write_leaves_the_old_weights(tmp_path, rng):
    old = random_tensors(rng)
    write_safetensors(tmp_path, old)
    broken = {"good": np.ones(1000, np.float32), "bad": np.array([None, "text"])}
    with pytest.raises(Exception, match="object|dtype"):
        write_safetensors(tmp_path, broken, max_shard_bytes=4000)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert_same(read_tensors(tmp_path), old)


def test_transformers_reads_shards(tmp_path, rng):
    torch = pytest.importorskip("torch")
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    model = Wav2Vec2Model(config).eval()
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    files = write_safetensors(tmp_path, state, max_shard_bytes=4096)
    assert len(files) > 3
    config.save_pretrained(tmp_path)
    again = Wav2Vec2Model.from_pretrained(tmp_path).eval()
    audio = torch.from_numpy(rng.standard_normal((2, 400), np.float32))
    with torch.no_grad():
        torch.testing.assert_close(again(audio)[0], model(audio)[0], rtol=0, atol=0)
