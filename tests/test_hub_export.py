"""Exported models: Transformers loads them unchanged, tokenizers survive, an earlier export leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from local_hub import PREPROCESSOR, TINY, make_tokenizer

from xtremes_jax import hub
from xtremes_jax.feature_extractors import read_preprocessor
from xtremes_jax.models.weights import read_tensors


@pytest.mark.parametrize("special", [{}, {"bos_token": None, "eos_token": None}, {"do_lower_case": True}])
def test_tokenizer_survives_the_export(tmp_path, special, rng):
    tokenizer = make_tokenizer(tmp_path / "made", **special)
    weights = {"lm_head.weight": rng.standard_normal((len(tokenizer), 4), np.float32)}
    hub.export(
        tmp_path / "out",
        tensors=weights,
        config=TINY,
        tokenizer=tokenizer,
        preprocessor=PREPROCESSOR,
        id2label=None,
        model_card="# card\n",
    )
    again = hub.load_tokenizer(tmp_path / "out")
    assert type(again) is type(tokenizer) and len(again) == len(tokenizer)
    assert again.get_vocab() == tokenizer.get_vocab() and again.pad_token_id == 5
    for text in ("ab ß", "abba  b", "a?b", ""):
        assert again(text).input_ids == tokenizer(text).input_ids
    ids = rng.integers(0, len(tokenizer), 50)
    assert again.decode(ids) == tokenizer.decode(ids)
    assert read_preprocessor(tmp_path / "out", TINY) == PREPROCESSOR
    config = hub.read_config(tmp_path / "out")
    assert (config["vocab_size"], config["pad_token_id"]) == (len(tokenizer), 5)


def test_export_checks_the_head(tmp_path, rng):
    common = {"config": TINY, "preprocessor": PREPROCESSOR, "model_card": ""}
    tensors = {"classifier.weight": rng.standard_normal((3, 4), np.float32)}
    with pytest.raises(ValueError, match="classifier.weight has 3 rows for 2 tokens or labels"):
        hub.export(tmp_path, tensors=tensors, tokenizer=None, id2label={0: "x", 1: "y"}, **common)
    with pytest.raises(ValueError, match="must name the classes 0 to N - 1"):
        hub.export(tmp_path, tensors=tensors, tokenizer=None, id2label={1: "x", 2: "y", 3: "z"}, **common)
    with pytest.raises(ValueError, match="lm_head.weight has no rows"):
        hub.export(tmp_path, tensors=tensors, tokenizer=make_tokenizer(tmp_path / "t"), id2label=None, **common)
    assert not list(tmp_path.glob("*.json")) and not list(tmp_path.glob(".export-*"))


def test_a_retrieval_model_needs_no_names(tmp_path, rng):
    config = TINY | {"xtremes_jax_head": "retrieval", "num_labels": 3, "logit_scale": 2.5}
    config |= {"architectures": ["Wav2Vec2ForSequenceClassification"]}
    common = {"tokenizer": None, "id2label": None, "preprocessor": PREPROCESSOR, "model_card": "", "config": config}
    hub.export(tmp_path, tensors={"classifier.weight": rng.standard_normal((3, 4), np.float32)}, **common)
    assert config.items() <= hub.read_config(tmp_path).items() and "id2label" not in hub.read_config(tmp_path)
    with pytest.raises(ValueError, match="classifier.weight has 2 rows for 3"):
        hub.export(tmp_path, tensors={"classifier.weight": rng.standard_normal((2, 4), np.float32)}, **common)


def test_export_replaces_an_earlier_one(tmp_path, rng):
    common = {"config": TINY, "preprocessor": PREPROCESSOR, "model_card": "new\n"}
    tokenizer = make_tokenizer(tmp_path / "made")
    head = rng.standard_normal((len(tokenizer), 4), np.float32)
    out = tmp_path / "out"
    hub.export(out, tensors={"lm_head.weight": head}, tokenizer=tokenizer, id2label=None, **common)
    (out / "metrics.jsonl").write_text("kept")
    hub.export(out, tensors={"classifier.weight": head[:2]}, tokenizer=None, id2label={0: "x", 1: "y"}, **common)
    names = ["README.md", "config.json", "metrics.jsonl", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert hub.load_tokenizer(out) is None and list(read_tensors(out)) == ["classifier.weight"]


def test_export_needs_no_torch(tmp_path):
    program = """
import sys
sys.modules["torch"] = None
from pathlib import Path
import numpy as np
from transformers import AutoFeatureExtractor, AutoProcessor, Wav2Vec2CTCTokenizer
from xtremes_jax import hub
from xtremes_jax.feature_extractors import read_preprocessor
out = Path(sys.argv[1])
(out / "vocab.json").write_text('{"a": 0, "|": 1, "[UNK]": 2, "[PAD]": 3}')
names = dict(unk_token="[UNK]", pad_token="[PAD]", bos_token=None, eos_token=None)
tokenizer = Wav2Vec2CTCTokenizer(str(out / "vocab.json"), **names)
config = {"model_type": "wav2vec2"}
settings = dict(config=config, preprocessor=read_preprocessor(out, config), model_card="")
weights = np.ones((4, 2), np.float32)
hub.export(out / "ctc", tensors={"lm_head.weight": weights}, tokenizer=tokenizer, id2label=None, **settings)
labels = dict(enumerate("wxyz"))
hub.export(out / "classes", tensors={"classifier.weight": weights}, tokenizer=None, id2label=labels, **settings)
assert hub.load_tokenizer(out / "ctc")("a a").input_ids == [0, 1, 0]
assert type(AutoProcessor.from_pretrained(out / "ctc")).__name__ == "Wav2Vec2Processor"
print(type(AutoFeatureExtractor.from_pretrained(out / "classes")).__name__)
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Wav2Vec2FeatureExtractor"]


def numpy_state(model) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def test_transformers_recognises_with_an_exported_model(tmp_path, rng):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCTC, AutoProcessor, Wav2Vec2Config, Wav2Vec2ForCTC, pipeline

    tokenizer = make_tokenizer(tmp_path / "made")
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**TINY, vocab_size=len(tokenizer), pad_token_id=5)).eval()
    out = tmp_path / "out"
    hub.export(
        out,
        tensors=numpy_state(model),
        config=TINY,
        tokenizer=tokenizer,
        preprocessor=PREPROCESSOR,
        id2label=None,
        model_card="# card\n",
    )
    audio = [rng.standard_normal(length, np.float32) for length in (3000, 2500)]
    inputs = AutoProcessor.from_pretrained(out)(audio, sampling_rate=16_000, return_tensors="pt", padding=True)
    assert inputs["attention_mask"].sum(-1).tolist() == [3000, 2500]
    again, report = AutoModelForCTC.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(again(**inputs).logits, expected, rtol=0, atol=1e-6)
        first = model(**AutoProcessor.from_pretrained(out)(audio[0], sampling_rate=16_000, return_tensors="pt")).logits
    text = pipeline("automatic-speech-recognition", model=str(out))({"raw": audio[0], "sampling_rate": 16_000})["text"]
    assert text == tokenizer.decode(first[0].argmax(-1)) and text


def test_transformers_classifies_with_an_exported_model(tmp_path, rng):
    torch = pytest.importorskip("torch")
    from transformers import (
        AutoModelForAudioClassification,
        Wav2Vec2Config,
        Wav2Vec2ForSequenceClassification,
        pipeline,
    )

    labels = {0: "pay_bill", 1: "freeze", 2: "abroad"}
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**TINY, num_labels=3)).eval()
    hub.export(
        tmp_path,
        tensors=numpy_state(model),
        config=TINY,
        tokenizer=None,
        preprocessor=PREPROCESSOR,
        id2label=labels,
        model_card="# card\n",
    )
    again, report = AutoModelForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert again.config.id2label == labels and again.config.label2id["abroad"] == 2
    audio = rng.standard_normal(3000, np.float32)
    results = pipeline("audio-classification", model=str(tmp_path))({"raw": audio, "sampling_rate": 16_000})
    normal = torch.from_numpy((audio - audio.mean()) / np.sqrt(audio.var() + 1e-7))[None]
    with torch.no_grad():
        probabilities = model(normal).logits.softmax(-1)[0]
    found = {result["label"]: result["score"] for result in results}
    for index, label in labels.items():
        assert found[label] == pytest.approx(float(probabilities[index]), abs=1e-5)
