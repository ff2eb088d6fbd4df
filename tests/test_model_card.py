"""The model card: front matter that the hub's own library reads back, results per language, nothing private."""

import dataclasses

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from xtremes_jax.model_card import CardFacts, eval_results, model_card
from xtremes_jax.models import FAMILIES

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
    assert 'model="someone/model")' in changed(model_name="someone/model")
    assert 'load_model("someone/model")' in changed(model_name="someone/model", kind="retrieval")
    assert "synthetic" not in model_card(FACTS)


def test_the_language_of_adapters_is_said():
    text = changed(target_lang="azj-script_latin")
    assert "vocabulary are those of the language `azj-script_latin` (`adapter.azj-script_latin.safetensors`)." in text
    assert "Adapters" not in model_card(FACTS)


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


@pytest.mark.parametrize(
    ("languages", "codes", "said"),
    [
        (("fr.en", "zh-CN.en"), ["en", "fr", "zh"], "for speech translation into English (XTREME-S"),
        (("en.de", "fr.en"), ["de", "en", "fr"], "for speech translation (XTREME-S"),
    ],
)
def test_directions_of_translation(languages, codes, said):
    text = changed(kind="translation", task="covost2", languages=languages, metrics={}, per_language={})
    assert ModelCard(text).data.language == codes and said in text


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


def test_neither_machines_nor_buckets_are_named():
    private = {"coordinator_address": "node7.example:8476", "process_id": 3, "checkpoint_dir": "gs://secret-bucket"}
    text = changed(arguments=private | {"frontend_cache_dir": "/scratch/me", "num_processes": 4})
    assert not any(word in text for word in ("node7", "process_id", "secret", "frontend")) and "num_processes" in text


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


@pytest.mark.parametrize("kind", ["ctc", "classification", "translation", "retrieval"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_is_called_by_its_name(model_type, kind):
    family = FAMILIES[model_type].config.family.partition(",")[0]
    text = changed(kind=kind, model_type=model_type, family=family)
    assert f"\n\nA {family} {'encoder and an mBART decoder' if kind == 'translation' else 'model'} for " in text
    assert model_type in ModelCard(text).data.tags
    assert ("wav2vec 2.0 " in text) == family.startswith("wav2vec 2.0")


def test_data_is_told():
    text = changed(clips={"train": (21, 0.0512), "test": (4, 12.3)}, limited_to=4)
    lines = text.splitlines()
    assert "| `train` | 21 | 0.05 |" in lines and "| `test` | 4 | 12.30 |" in lines
    assert "On the first 4 clips of the `test` split of" in text
    assert "Languages: fr, no, pt-PT, cmn_hans_cn, german, all." in text


def curve_of(**fields) -> list[list[str]]:
    """The cells of the training curve's table, its header first."""
    section = changed(**fields).partition("## Training curve")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in [table[0], *table[2:]]]


def test_the_curve_is_of_the_evaluations():
    curve = [
        {"step": 1, "epoch": 0.5, "loss": 4.0},
        {"step": 2, "epoch": 1.0, "loss": 3.0, "eval_loss": 2.5, "wer": 0.9},
        {"step": 3, "epoch": 1.5, "loss": None},
        {"step": 4, "epoch": 2.0, "loss": 1.25, "eval_loss": 2.0, "wer": None},
    ]
    assert curve_of(curve=curve) == [
        ["step", "epoch", "training loss", "evaluation loss", "wer"],
        ["2", "1.00", "3.0000", "2.5000", "0.9000"],
        ["4", "2.00", "1.2500", "2.0000", "–"],
    ]
    assert curve_of(curve=curve[:1] + curve[2:3]) == [
        ["step", "epoch", "training loss"], ["1", "0.50", "4.0000"], ["3", "1.50", "–"],
    ]  # fmt: skip
    assert "## Training curve" not in model_card(FACTS)


@pytest.mark.parametrize("count", [20, 21, 22, 57, 5000])
def test_a_long_curve_is_thinned_to_what_can_be_read(count):
    curve = [{"step": 10 * n, "epoch": n / 2, "eval_loss": 1 / n} for n in range(1, count + 1)]
    steps = [int(row[0]) for row in curve_of(curve=curve)[1:]]
    assert len(steps) == 20 and steps[0] == 10 and steps[-1] == 10 * count and steps == sorted(steps)
    assert max(np.diff(steps)) - min(np.diff(steps)) <= 20
    best = 10 * (count // 3 + 1)
    text = changed(curve=curve, best_step=best)
    assert f"The model is that of step {best}, which was the best." in text and f"| {best} |" in text
    # The best one may be one of those that are evenly spread.
    assert any(f"{shown} of {count} rows. The" in text for shown in (19, 20)) == (count > 20)


def test_a_model_in_training_says_so():
    text = changed(progress=(200, 1000))
    assert "**Training is in progress**: this is the model after step 200 of 1000." in text
    assert "in progress" not in model_card(FACTS)


def results_of(**fields) -> dict:
    name, text = eval_results(dataclasses.replace(FACTS, **fields))
    assert name == "mls.yaml"
    entries = parse_eval_result_entries(yaml.safe_load(text))
    assert len({entry.dataset_id for entry in entries}) == 1
    return {entry.task_id: entry for entry in entries}


def test_scores_for_programs_are_read_back_by_the_hub_library():
    entries = results_of()
    assert {name: entry.value for name, entry in entries.items()} == {
        "mls.all_wer": 0.30334, "mls.all_cer": 0.1, "mls.fr_wer": 0.25, "mls.fr_cer": 0.075, "mls.no_wer": 0.35668,
    }  # fmt: skip
    assert {entry.notes for entry in entries.values()} == {"xtremes_jax, split test"}
    assert eval_results(dataclasses.replace(FACTS, metrics={})) is None


def test_scores_for_programs_say_what_they_are_of():
    notes = results_of(dataset_name="demo", synthetic=True, limited_to=5, progress=(2, 4))["mls.all_wer"].notes
    assert notes == (
        "xtremes_jax, split test, its first 5 clips, after step 2 of 4; the data set is not on the hub; SYNTHETIC "
        "SPEECH, which says nothing about real speech"
    )
    assert results_of()["mls.fr_cer"].dataset_id == "google/xtreme_s"
    assert results_of(dataset_name="/home/me/corpus")["mls.fr_cer"].dataset_id == "corpus"
    assert TOKEN not in eval_results(dataclasses.replace(FACTS, split=f"say {TOKEN}"))[1]
