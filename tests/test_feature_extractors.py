"""How audio is prepared for a model, by its family: read, refused, and written so that Transformers loads it."""

import numpy as np
import pytest
from local_hub import make_tokenizer, write_json

from xtremes_jax import hub
from xtremes_jax.arguments import ModelArguments
from xtremes_jax.errors import InputError
from xtremes_jax.feature_extractors import new_preprocessor, read_preprocessor, write_processor
from xtremes_jax.starting import configure, starting_point

BERT = {"model_type": "wav2vec2-bert"}
SETTINGS = {"padding_value": 1, "return_attention_mask": True, "sampling_rate": 16_000}
SHAPE = BERT | {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "conv_depthwise_kernel_size": 3, "classifier_proj_size": 12,
}  # fmt: skip


def test_log_mel_settings_are_read(tmp_path):
    assert read_preprocessor(tmp_path, BERT) == new_preprocessor(BERT) == SETTINGS | {"padding_value": 0.0}
    published = SETTINGS | {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "feature_size": 80}
    published |= {"num_mel_bins": 80, "stride": 2, "padding_side": "right"}
    write_json(tmp_path / "preprocessor_config.json", published)
    assert read_preprocessor(tmp_path, BERT) == SETTINGS
    assert read_preprocessor(tmp_path, {"model_type": "speech-encoder-decoder", "encoder": BERT}) == SETTINGS


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (BERT, {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "models of w2v-BERT 2.0 read log-mel features"),
        (BERT, {"num_mel_bins": 40}, "num_mel_bins is 40; only 80"),
        (BERT, {"stride": 1}, "stride is 1; only 2"),
        (BERT, {"padding_value": "zero"}, "padding_value must be a number"),
        (BERT, {"sampling_rate": 8000}, "only 16000 Hz"),
        ({"encoder": BERT}, {"return_attention_mask": 1}, "return_attention_mask must be true or false"),
        ({}, {"feature_extractor_type": "SeamlessM4TFeatureExtractor"}, "read the waveform"),
    ],
)
def test_what_a_model_does_not_read_is_refused(tmp_path, config, settings, message):
    write_json(tmp_path / "preprocessor_config.json", settings)
    with pytest.raises(InputError, match=message):
        read_preprocessor(tmp_path, config)


def test_log_mel_features_of_an_unmasked_batch_are_refused(tmp_path):
    """Their padding is no silence, and an odd frame at a clip's end would be half of a pair."""
    write_json(tmp_path / "config.json", SHAPE)
    write_json(tmp_path / "preprocessor_config.json", SETTINGS | {"return_attention_mask": False})
    start = starting_point(ModelArguments(model_name_or_path=str(tmp_path)), weights=False)
    for changes in ({}, {"mask_padding": None}, {"mask_padding": False}):
        with pytest.raises(InputError, match="The padding of w2v-BERT 2.0 is always masked"):
            configure(start, "ctc", changes)
    assert configure(start, "ctc", {"mask_padding": True}).mask_padding


def export(directory, model, **what):
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    common = {"config": SHAPE, "preprocessor": SETTINGS, "model_card": "# card\n"}
    hub.export(directory, tensors=tensors, **{"tokenizer": None, "id2label": None} | common | what)


def test_transformers_recognises_with_an_exported_model(tmp_path, rng):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = make_tokenizer(tmp_path / "made")
    shape = transformers.Wav2Vec2BertConfig(**SHAPE, vocab_size=len(tokenizer), pad_token_id=5)
    model = transformers.Wav2Vec2BertForCTC(shape).eval()
    export(tmp_path / "out", model, tokenizer=tokenizer)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor).__name__ == "Wav2Vec2BertProcessor"
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert type(extractor).__name__ == "SeamlessM4TFeatureExtractor" and extractor.padding_value == 1
    again, info = transformers.AutoModelForCTC.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    clip = rng.standard_normal(9000, np.float32)
    inputs = processor(clip, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(again(**inputs).logits, expected, rtol=0, atol=1e-6)
    listen = transformers.pipeline("automatic-speech-recognition", model=str(tmp_path / "out"))
    assert listen({"raw": clip, "sampling_rate": 16_000})["text"] == tokenizer.decode(expected[0].argmax(-1))
    assert read_preprocessor(tmp_path / "out", SHAPE) == SETTINGS


def test_a_translators_encoder_names_its_extractor(tmp_path):
    transformers = pytest.importorskip("transformers")
    joint = {"model_type": "speech-encoder-decoder", "encoder": BERT, "decoder": {"model_type": "mbart"}}
    write_processor(tmp_path, None, SETTINGS, joint)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(extractor).__name__ == "SeamlessM4TFeatureExtractor"
    assert read_preprocessor(tmp_path, joint) == SETTINGS


def test_transformers_classifies_with_an_exported_model(tmp_path, rng):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    labels = {0: "freeze", 1: "abroad"}
    model = transformers.Wav2Vec2BertForSequenceClassification(transformers.Wav2Vec2BertConfig(**SHAPE)).eval()
    export(tmp_path, model, id2label=labels)
    assert not (tmp_path / "processor_config.json").exists()
    clip = rng.standard_normal(9000, np.float32)
    inputs = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)(
        clip, sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        probabilities = model(**inputs).logits.softmax(-1)[0]
    results = transformers.pipeline("audio-classification", model=str(tmp_path))({"raw": clip, "sampling_rate": 16_000})
    found = {result["label"]: result["score"] for result in results}
    for index, label in labels.items():
        assert found[label] == pytest.approx(float(probabilities[index]), abs=1e-5)
