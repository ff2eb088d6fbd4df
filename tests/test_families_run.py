"""Whole runs on encoders of other families: `config.json` names the family, and nothing else of a command changes."""

import json

import numpy as np
import pytest
from corpora import TINY, tone, write_corpus
from runs import flags, parameters, rows

from xtremes_jax import load_model, train
from xtremes_jax.models import merge

FAMILIES = {
    "wavlm": ("mls.all", {"num_buckets": 16, "max_bucket_distance": 20}, {}),
    "wav2vec2-conformer": ("minds14.all", {"conv_depthwise_kernel_size": 5}, {}),
    "wav2vec2-bert": (
        "mls.all",
        {"conv_depthwise_kernel_size": 5, "left_max_position_embeddings": 6},
        {"freeze_feature_encoder": True, "cache_frontend": True, "frontend_cache_dir": "frames"},
    ),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=12, other=4)


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")  # of PyTorch, about the mask of WavLM
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_trains_scores_and_exports(family, corpus, tmp_path, rng, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    config, own, more = FAMILIES[family]
    shape = tmp_path / "model.json"
    shape.write_text(json.dumps(TINY | {"model_type": family} | own))
    output = tmp_path / "run"
    changes = dict(config_name=shape, max_buckets=1, save_strategy="no", gradient_checkpointing=True, **more)
    assert train.main(flags(corpus, output, config, **changes)) == 0
    losses = [row["loss"] for row in rows(output / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 4 and np.isfinite(losses).all()
    assert "front end has random weights" not in capsys.readouterr().err
    assert not more or list((tmp_path / "frames").iterdir())
    written = json.loads((output / "config.json").read_text())
    assert written["model_type"] == family and family in (output / "README.md").read_text().split("---")[1]
    statistics = [value for name, value in parameters(output).items() if name.endswith("running_var")]
    assert bool(statistics) == (family == "wav2vec2-conformer") and all((value == 1).all() for value in statistics)

    auto = transformers.AutoModelForCTC if config == "mls.all" else transformers.AutoModelForAudioClassification
    theirs, info = auto.from_pretrained(output, output_loading_info=True)
    assert not any(info.values())
    waveform = tone("abc d", rng)
    clip = transformers.AutoFeatureExtractor.from_pretrained(output)(
        waveform.astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        expected = theirs.eval()(**clip).logits[0]
    reloaded = load_model(output)
    frames = None
    if family == "wav2vec2-bert":  # on the same features, which a test of their own compares
        frames = clip.input_features[:, : int(clip.attention_mask.sum())].numpy()
        expected = expected[: frames.shape[1]]
    model = merge(reloaded.graphdef, reloaded.params)
    ours = model(waveform[None], np.array([len(waveform)], np.int32), frames=frames).logits[0]
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    heard = reloaded(waveform[None], np.array([len(waveform)], np.int32)).logits[0]
    np.testing.assert_allclose(heard, ours, atol=1e-5 if frames is None else 1e-3)
