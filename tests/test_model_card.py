"""The model card: front matter that the hub's own library reads back, results per language, nothing private."""

import dataclasses

import pytest
from huggingface_hub import ModelCard

from xtremes_jax.model_card import CardFacts, model_card

TOKEN = "hf_" + "NotARealToken0123456789abcdefghij"
FACTS = CardFacts(
    model_name="xls-r-mls",
    kind="ctc",
    task="mls",
    dataset_name="google/xtreme_s",
    dataset_config_name="mls.all",
    languages=("fr", "no", "pt-PT", "cmn_hans_cn", "german", "all"),
    metrics={"wer": 0.30334, "cer": 0.1},
    per_language={"fr": {"wer": 0.25, "cer": 0.075}, "no": {"wer": 0.35668}},
    base_model="facebook/wav2vec2-xls-r-300m",
    arguments={"learning_rate": 3e-4, "word_delimiter_token": "|", "warmup_ratio": None},
    versions={"jax": "0.10.2"},
)


def changed(**fields) -> str:
    return model_card(dataclasses.replace(FACTS, **fields))


def test_front_matter_is_read_back_by_the_hub_library():
    data = ModelCard(model_card(FACTS)).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "automatic-speech-recognition")
    assert data.language == ["cmn", "fr", "no", "pt"]
    assert data.datasets == ["google/xtreme_s"] and data.base_model == "facebook/wav2vec2-xls-r-300m"
    assert data.tags == ["xtreme_s", "jax", "wav2vec2", "mls"] and data.metrics == ["wer", "cer"]
    results = {result.metric_type: result for result in data.eval_results}
    assert results["wer"].metric_value == 0.30334 and results["cer"].metric_value == 0.1
    assert results["wer"].dataset_config == "mls.all" and results["wer"].dataset_split == "test"


def test_body():
    lines = model_card(FACTS).splitlines()
    assert "| fr | 0.2500 | 0.0750 |" in lines and "| no | 0.3567 | – |" in lines
    assert "| **all** | **0.3033** | **0.1000** |" in lines
    assert "| `learning_rate` | 0.0003 |" in lines and "| `word_delimiter_token` | \\| |" in lines
    assert "| jax | 0.10.2 |" in lines and not any("warmup_ratio" in line for line in lines)
    assert 'model = pipeline("automatic-speech-recognition", model="PATH_OR_ID")' in lines
    assert "synthetic" not in model_card(FACTS)


def test_classification_from_random_weights():
    text = changed(kind="classification", task="minds14", metrics={"f1": 0.9}, per_language={}, base_model=None)
    assert ModelCard(text).data.pipeline_tag == "audio-classification"
    assert "trained from random weights" in text and "audio classification" in text


def test_synthetic_data_is_called_synthetic():
    text = changed(dataset_name="demo", synthetic=True)
    data = ModelCard(text).data
    assert "synthetic-data" in data.tags and data.datasets is None
    assert data.eval_results[0].dataset_name == "demo (synthetic speech)"
    assert "**The data is synthetic speech**" in text and "(synthetic speech), as the XTREME-S metric" in text


def test_a_run_without_results():
    text = changed(metrics={}, per_language={})
    assert ModelCard(text).data.eval_results is None and "## Results" not in text


@pytest.mark.parametrize("name", ["hub_token", "token", "run_name", "comment"])
def test_tokens_never_appear(name):
    text = changed(arguments={name: f"say {TOKEN}."}, model_name=f"model {TOKEN}")
    assert TOKEN not in text and TOKEN[3:] not in text


def test_local_paths_never_appear(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    text = changed(
        model_name=str(tmp_path / "run"),
        base_model="runs/first",
        dataset_name=str(tmp_path / "corpus"),
        arguments={"output_dir": str(tmp_path), "cache_dir": "cache", "model_name_or_path": str(tmp_path / "base")},
    )
    assert str(tmp_path) not in text and "output_dir" not in text and "cache_dir" not in text
    assert "| `model_name_or_path` | base |" in text and "`corpus` (`mls.all`)" in text
    data = ModelCard(text).data
    assert data.base_model is None and data.datasets is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("runs/mls/first", "first"),
        ("runs\\mls\\first", "first"),
        ("C:\\Users\\me\\corpus", "corpus"),
        ("~/corpora/mine.tsv", "mine.tsv"),
        ("facebook/wav2vec2-xls-r-300m", "facebook/wav2vec2-xls-r-300m"),
        ((",", "/", "?"), ", / ?"),
        (("/home/me/a.wav", "b"), "a.wav b"),
        (("tensorboard",), "tensorboard"),
    ],
)
def test_only_the_last_part_of_a_path_is_shown(value, shown):
    assert f"| `value` | {shown} |" in changed(arguments={"value": value}).splitlines()


def test_folders_of_this_machine_are_left_out():
    arguments = {"compilation_cache_dir": "cache/xla", "resume_from_checkpoint": "out/5", "data_dir": "ldc"}
    assert "## Training arguments" not in changed(arguments=arguments)
