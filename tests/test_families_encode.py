"""Encoders of other families before a decoder and for retrieval: short runs, and what Transformers makes of them."""

import json

import numpy as np
import pytest
from corpora import TINY, tone, write_corpus
from retrieval_corpus import write_retrieval_corpus
from runs import flags

from xtremes_jax import load_model, train

torch = pytest.importorskip("torch", reason="PyTorch is the reference here")
transformers = pytest.importorskip("transformers")

OWN = {
    "hubert": {"feat_extract_norm": "group", "do_stable_layer_norm": False},
    "wavlm": {"num_buckets": 16, "max_bucket_distance": 20},
    "sew": {"squeeze_factor": 2},
    "wav2vec2-bert": {"conv_depthwise_kernel_size": 5, "left_max_position_embeddings": 6},
}
DECODER = {
    "model_type": "mbart", "d_model": 24, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "max_position_embeddings": 64, "vocab_size": 40, "init_std": 0.2,
}  # fmt: skip
SHORT = {"max_steps": 2, "max_buckets": 1, "save_strategy": "no", "do_eval": False, "use_cpu": True}


def trained(tmp_path, corpus, family: str, config: str, **changes):
    """A short run on a family's encoder; its directory."""
    shape = tmp_path / "model.json"
    shape.write_text(json.dumps(TINY | {"model_type": family} | OWN[family]))
    assert train.main(flags(corpus, tmp_path / "run", config, **SHORT, config_name=shape, **changes)) == 0
    return tmp_path / "run"


def clip_for_both(directory, rng):
    """A waveform, and what Transformers' feature extractor of the directory makes of it."""
    waveform = tone("abc dab", rng)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(directory)
    return waveform, extractor(waveform.astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt")


@pytest.mark.parametrize("family", ["hubert", "sew"])
def test_a_retrieval_run_embeds_as_transformers_does(family, tmp_path, rng):
    corpus = write_retrieval_corpus(tmp_path / "corpus")
    changes = dict(task="fleurs-retrieval", embedding_dim=12, per_device_train_batch_size=8)
    output = trained(tmp_path, corpus, family, "fleurs.all", **changes)
    waveform, inputs = clip_for_both(output, rng)
    model = transformers.AutoModelForAudioClassification.from_pretrained(output).eval()
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(inputs.input_values).logits[0], dim=0)
    ours = load_model(output)(waveform[None], np.array([len(waveform)], np.int32)).logits[0]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")  # of PyTorch, about the mask of WavLM
@pytest.mark.parametrize("family", ["wavlm", "wav2vec2-bert"])
def test_a_translation_run_writes_as_transformers_does(family, tmp_path, rng):
    corpus = write_corpus(tmp_path / "corpus", train=8, other=2)
    (tmp_path / "decoder.json").write_text(json.dumps(DECODER))
    changes = dict(
        decoder_config_name=tmp_path / "decoder.json", translation_vocab_size=40, generation_max_length=10,
        add_adapter=True,
    )  # fmt: skip
    output = trained(tmp_path, corpus, family, "covost2.all", **changes)
    waveform, inputs = clip_for_both(output, rng)
    model, info = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    features = inputs.get("input_values", inputs.get("input_features"))
    with torch.no_grad():
        expected = model.eval().generate(features, attention_mask=inputs.attention_mask)[0].tolist()
    written = load_model(output)(waveform[None], np.array([len(waveform)], np.int32))
    assert np.asarray(written.tokens[0])[: int(written.lengths[0])].tolist() == expected
