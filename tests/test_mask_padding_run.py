"""Models with a group norm: padding as Transformers takes it, and `--mask_padding`."""

import json

import numpy as np
import pytest
from corpora import TINY, flac, tone, write_corpus
from runs import flags, rows

from xtremes_jax import evaluate, load_model, train, transcribe

GROUP = TINY | {"model_type": "hubert", "feat_extract_norm": "group", "do_stable_layer_norm": False}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=12, other=4)


@pytest.mark.parametrize("mask", [None, True])
def test_a_run_masks_padding_where_it_is_told_to(mask, corpus, tmp_path, rng, capsys):
    shape, output = tmp_path / "model.json", tmp_path / "run"
    shape.write_text(json.dumps(GROUP))
    changes = dict(config_name=shape, max_buckets=1, save_strategy="no", do_predict=True, mask_padding=mask)
    assert train.main(flags(corpus, output, "mls.all", **changes)) == 0
    assert ("Padding is not masked" in capsys.readouterr().err) == (mask is None)
    assert np.isfinite([row["loss"] for row in rows(output / "metrics.jsonl") if "loss" in row]).all()
    written = json.loads((output / "preprocessor_config.json").read_text())
    assert written["return_attention_mask"] == bool(mask)

    # The same answer as the run's, from the directory alone.
    scored = json.loads((output / "predict_results.json").read_text())
    where = {"model_name_or_path": output, "dataset_name": corpus, "dataset_config_name": "mls.all"}
    how = {"output_dir": tmp_path / "again", "cache_dir": corpus / "cache", "max_buckets": 1}
    given = (where | how | {"per_device_eval_batch_size": 4}).items()
    assert evaluate.main([part for name, value in given for part in (f"--{name}", str(value))]) == 0
    again = json.loads((tmp_path / "again" / "predict_results.json").read_text())
    assert again["predict_loss"] == pytest.approx(scored["predict_loss"], rel=1e-5)

    model = load_model(output)
    assert model.config.mask_padding == bool(mask)
    clips = [tone("abc d", rng), tone("ab", rng)]
    audio = np.zeros((2, 2 * len(clips[0])), np.int16)
    for row, clip in enumerate(clips):
        audio[row, : len(clip)] = clip
    lengths = np.array([len(clip) for clip in clips], np.int32)
    together = model(audio, lengths)
    for row, clip in enumerate(clips):
        alone = model(clip[None], lengths[row : row + 1])
        frames = int(alone.logit_lengths[0])
        same = np.allclose(together.logits[row, :frames], alone.logits[0, :frames], atol=1e-5)
        assert same == (int(together.logit_lengths[row]) == frames) == bool(mask)


def test_transcripts_are_those_of_each_file_alone(corpus, tmp_path, rng):
    shape, output = tmp_path / "model.json", tmp_path / "run"
    shape.write_text(json.dumps(GROUP))
    changes = dict(
        config_name=shape, max_buckets=1, save_strategy="no", do_eval=False, max_steps=30, learning_rate=5e-3
    )
    assert train.main(flags(corpus, output, "mls.all", **changes)) == 0
    model = load_model(output)
    assert not model.config.mask_padding and model.with_padding_masked.config.mask_padding
    clips = [flac(tone(letters, rng)) for letters in ("abcd abcd abcd", "bad", "dab a")]
    together = transcribe(model, clips)
    assert together == [transcribe(model, clip)[0] for clip in clips]
    assert together == transcribe(model.with_padding_masked, clips)


def test_frames_that_depend_on_padding_are_not_kept(corpus, tmp_path, capsys):
    shape = tmp_path / "model.json"
    shape.write_text(json.dumps(GROUP))
    changes = dict(config_name=shape, freeze_feature_encoder=True, cache_frontend=True)
    assert train.main(flags(corpus, tmp_path / "run", "mls.all", **changes)) == 2
    assert "Add --mask_padding True" in capsys.readouterr().err
