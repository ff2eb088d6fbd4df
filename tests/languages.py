"""A tiny checkpoint like MMS, made by Transformers: two languages' adapters beside the weights, a nested vocabulary."""

import json
from pathlib import Path

import numpy as np
from corpora import TINY

WIDTH = 8
LANGUAGES = ("eng", "fra")
_SPECIAL = {token: place for place, token in enumerate(("<pad>", "<s>", "</s>", "<unk>", "|"))}
VOCABULARY = {
    "eng": _SPECIAL | {letter: 5 + place for place, letter in enumerate("abcd")},
    "fra": _SPECIAL | {letter: 5 + place for place, letter in enumerate("dcbaé'")},
}


def randomize(tensors, rng) -> None:
    """Draws parameters of PyTorch anew, none of them 0 or 1; logits are of order 1 with them."""
    import torch

    for name, tensor in tensors:
        noise = torch.from_numpy(rng.standard_normal(tensor.shape).astype(np.float32))
        noise = (0.1 if name == "lm_head.weight" else 0.3) * noise + (1.0 if name.endswith("norm.weight") else 0.0)
        tensor.data.copy_(noise)


def write_checkpoint(folder: Path, rng: np.random.Generator, *, adapters: bool = True, **fields) -> Path:
    """The base model's own adapters are eng's; fra's lie in a file of `torch.save`. Without adapters: nothing else."""
    import torch
    from safetensors.torch import save_file
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC
    from transformers import Wav2Vec2Processor as Processor

    width = {"adapter_attn_dim": WIDTH} if adapters else {}
    config = Wav2Vec2Config(**TINY | width | {"vocab_size": len(VOCABULARY["eng"])} | fields)
    model = Wav2Vec2ForCTC(config)
    for language in reversed(LANGUAGES if adapters else ()):
        model.lm_head = torch.nn.Linear(config.hidden_size, len(VOCABULARY[language]))
        part = model._get_adapters()
        randomize(part.items(), rng)
        folder.mkdir(parents=True, exist_ok=True)
        if language == "eng":
            save_file(part, folder / "adapter.eng.safetensors", metadata={"format": "pt"})
        else:
            torch.save(part, folder / f"adapter.{language}.bin")
    model.save_pretrained(folder)
    if adapters:
        (folder / "vocab.json").write_text(json.dumps(VOCABULARY), encoding="utf-8")
        tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), target_lang="eng")
        Processor(Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizer).save_pretrained(folder)
    return folder
