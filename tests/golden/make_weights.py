"""Makes tests/golden/weights: one small state dict as each kind of file that PyTorch and Transformers write.

Run with PyTorch installed: `python tests/golden/make_weights.py`. tests/models/test_weights.py holds the same values.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent / "weights"


def state_dict() -> dict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8 - 1
    return {
        "matrix": base,
        "transposed_rows": base.t()[1:4],
        "strided": base[1:3, ::2],
        "parameter": torch.nn.Parameter(torch.tensor([0.5, -1.5, 2.0])),
        "half": torch.tensor([[1.5, -2.25]], dtype=torch.float16),
        "brain": torch.tensor([1.0, -0.0078125, 3.0], dtype=torch.bfloat16),
        "double": torch.tensor([1 / 3, 2 / 3], dtype=torch.float64),
        "counts": torch.tensor([1, -(2**40)]),
        "flags": torch.tensor([True, False, True]),
        "scalar": torch.tensor(7.25),
        "empty": torch.empty(0, 5),
    }


def main() -> None:
    tensors = state_dict()
    for kind in ("zip", "legacy", "sharded", "safetensors"):
        (HERE / kind).mkdir(parents=True, exist_ok=True)
    torch.save(tensors, HERE / "zip" / "pytorch_model.bin")
    torch.save(tensors, HERE / "legacy" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    contiguous = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    save_file(contiguous, HERE / "safetensors" / "model.safetensors")
    names = list(tensors)
    weight_map = {}
    for index, part in enumerate((names[:5], names[5:])):
        shard = f"pytorch_model-{index + 1:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, HERE / "sharded" / shard)
        weight_map.update(dict.fromkeys(part, shard))
    index_text = json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2)
    (HERE / "sharded" / "pytorch_model.bin.index.json").write_text(index_text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
