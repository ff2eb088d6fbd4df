"""Every family with every head, exported: Transformers' Auto classes and `pipeline` load tokenizer, feature extractor
and processor as Transformers itself would have saved them, and the model behind them says the same."""

import dataclasses

import numpy as np
import pytest
from local_hub import make_tokenizer
from models.conftest import LAYOUTS
from models.family_models import VARIANTS, variant
from models.translation_models import DECODER

from xtremes_jax import hub
from xtremes_jax.data.subwords import learn_tokenizer, load_subword_tokenizer
from xtremes_jax.feature_extractors import new_preprocessor, read_preprocessor
from xtremes_jax.models import FAMILIES, TranslationConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# WavLM's, inside Transformers.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning")

ONE_EACH = {model_type: name for name, (model_type, layout, _) in reversed(VARIANTS.items()) if layout == "layer"}
PROCESSORS = {"wav2vec2-bert": ("Wav2Vec2BertProcessor", "SeamlessM4TFeatureExtractor")}
USUAL = ("Wav2Vec2Processor", "Wav2Vec2FeatureExtractor")
GENERATION = {"max_length": 12, "num_beams": 1, "decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}


def shape(model_type: str, head: str | None, **changes):
    """The tiny configuration of a family."""
    if model_type == "wav2vec2":
        return dataclasses.replace(LAYOUTS["layer"], head=head, **changes)
    return variant(ONE_EACH[model_type], head, **changes)


def exported(directory, model, fields, **what):
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    common = {"tokenizer": None, "id2label": None, "model_card": "# card\n"} | what
    hub.export(directory, tensors=tensors, config=fields, preprocessor=new_preprocessor(fields), **common)


def classes_of(directory) -> tuple[str, str]:
    """What AutoProcessor and AutoFeatureExtractor make of a directory."""
    kinds = (transformers.AutoProcessor, transformers.AutoFeatureExtractor)
    return tuple(type(kind.from_pretrained(directory)).__name__ for kind in kinds)


def test_all_families_are_here():
    assert {"wav2vec2", *ONE_EACH} == set(FAMILIES)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_recognition(model_type, tmp_path, rng):
    tokenizer = make_tokenizer(tmp_path / "made")
    config = shape(model_type, "ctc", vocab_size=len(tokenizer), pad_token_id=5)
    fields = config.to_huggingface()
    built = getattr(transformers, f"{config.architecture}ForCTC")
    model = built(transformers.AutoConfig.for_model(**fields)).eval()
    out = tmp_path / "out"
    exported(out, model, fields, tokenizer=tokenizer)
    assert classes_of(out) == PROCESSORS.get(model_type, USUAL)
    processor = transformers.AutoProcessor.from_pretrained(out)
    for text in ("ab ß", "a?b", ""):
        ids = tokenizer(text).input_ids
        assert processor(text=text).input_ids == ids == transformers.AutoTokenizer.from_pretrained(out)(text).input_ids
        assert processor.decode(ids) == tokenizer.decode(ids)
    clip = rng.standard_normal(9000, np.float32)
    with torch.no_grad():
        logits = model(**processor(clip, sampling_rate=16_000, return_tensors="pt")).logits
    listen = transformers.pipeline("automatic-speech-recognition", model=str(out))
    assert listen({"raw": clip, "sampling_rate": 16_000})["text"] == tokenizer.decode(logits[0].argmax(-1))
    assert hub.load_tokenizer(out).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_classification(model_type, tmp_path, rng):
    config = shape(model_type, "classification", num_labels=3)
    fields = config.to_huggingface()
    labels = dict(enumerate(("freeze", "abroad", "balance")))
    built = getattr(transformers, f"{config.architecture}ForSequenceClassification")
    model = built(transformers.AutoConfig.for_model(**fields)).eval()
    exported(tmp_path, model, fields, id2label=labels)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(extractor).__name__ == PROCESSORS.get(model_type, USUAL)[1]
    clip = rng.standard_normal(9000, np.float32)
    with torch.no_grad():
        expected = model(**extractor(clip, sampling_rate=16_000, return_tensors="pt")).logits.softmax(-1)[0]
    listen = transformers.pipeline("audio-classification", model=str(tmp_path))
    found = {one["label"]: one["score"] for one in listen({"raw": clip, "sampling_rate": 16_000})}
    assert found == pytest.approx({name: float(expected[index]) for index, name in labels.items()}, abs=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_translation(model_type, tmp_path, rng):
    tokenizer = learn_tokenizer(["one and two", "three four and one"], vocab_size=40)
    decoder = dataclasses.replace(DECODER, vocab_size=len(tokenizer))
    joint = TranslationConfig(shape(model_type, None), decoder, decoder_start_token_id=0)
    fields = joint.to_huggingface()
    model = transformers.SpeechEncoderDecoderModel(transformers.SpeechEncoderDecoderConfig(**fields)).eval()
    model.generation_config = transformers.GenerationConfig(**GENERATION)
    exported(tmp_path, model, fields, tokenizer=tokenizer, generation=GENERATION)
    assert classes_of(tmp_path) == PROCESSORS.get(model_type, USUAL)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    ids = tokenizer("four and one").input_ids
    assert ids == processor(text="four and one").input_ids == load_subword_tokenizer(tmp_path)("four and one").input_ids
    assert ids == transformers.AutoTokenizer.from_pretrained(tmp_path)("four and one").input_ids
    assert processor.decode(ids) == tokenizer.decode(ids)
    assert read_preprocessor(tmp_path, fields) == new_preprocessor(fields)
    clip = rng.standard_normal(9000, np.float32)
    inputs = processor(clip, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        written = model.generate(**inputs)
    translate = transformers.pipeline("automatic-speech-recognition", model=str(tmp_path))
    text = translate({"raw": clip, "sampling_rate": 16_000})["text"]
    assert text == tokenizer.decode(written[0], skip_special_tokens=True)
