"""Checkpoints with the adapters of languages, as MMS has them, against Transformers; and whole runs on one language."""

import dataclasses
import json
import shutil
from functools import partial

import numpy as np
import pytest
from corpora import tone, write_corpus
from languages import LANGUAGES, VOCABULARY, WIDTH, write_checkpoint
from local_hub import OWNER, TOKEN, running_hub
from runs import flags, parameters, rows
from safetensors.numpy import load_file

from xtremes_jax import evaluate, hub, load_model, train
from xtremes_jax.arguments import ModelArguments, parse_arguments
from xtremes_jax.errors import InputError
from xtremes_jax.models import is_of_language
from xtremes_jax.starting import starting_point
from xtremes_jax.upload import AT_START, Repository

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=12, other=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("mms"), np.random.default_rng(17))


def in_transformers(directory, language):
    """Model and processor as people load them."""
    model = transformers.Wav2Vec2ForCTC.from_pretrained(directory, target_lang=language, ignore_mismatched_sizes=True)
    return model.eval(), transformers.AutoProcessor.from_pretrained(directory, target_lang=language)


def compare(ours, model, processor, rng, atol):
    """Logits of ragged clips in one batch here, and of each alone there; and the text that is made of them."""
    clips = [tone(letters, rng) for letters in ("abc d", "dcb", "a")]
    audio, lengths = np.zeros((3, max(map(len, clips))), np.int16), np.array([len(clip) for clip in clips], np.int32)
    for row, clip in zip(audio, clips, strict=True):
        row[: len(clip)] = clip
    output = ours(audio, lengths)
    for row, clip in enumerate(clips):
        inputs = processor(clip.astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            theirs = model(**inputs).logits[0].numpy()
        found = np.asarray(output.logits[row])[: len(theirs)]
        assert np.abs(theirs).max() > 0.01
        np.testing.assert_allclose(found, theirs, atol=atol)
        assert ours.tokenizer.decode(found.argmax(-1)) == processor.decode(theirs.argmax(-1))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_is_loaded_as_transformers_loads_it(language, checkpoint, rng):
    model, processor = in_transformers(checkpoint, language)
    ours = load_model(checkpoint, target_lang=language)
    assert ours.config.vocab_size == len(VOCABULARY[language]) == model.config.vocab_size
    assert ours.tokenizer.get_vocab() == processor.tokenizer.get_vocab() == VOCABULARY[language]
    assert ours.tokenizer.target_lang == language
    compare(ours, model, processor, rng, 1e-5)


def test_without_a_language_it_is_the_weights_own(checkpoint, rng):
    own, eng = load_model(checkpoint), load_model(checkpoint, target_lang="eng")
    assert own.tokenizer.get_vocab() == VOCABULARY["eng"]
    clip = tone("ab", rng)[None]
    np.testing.assert_array_equal(own(clip).logits, eng(clip).logits)


def test_a_known_language_is_trained_further(checkpoint, corpus, tmp_path, rng, capsys):
    output = tmp_path / "run"
    start = dict(config_name=None, model_name_or_path=checkpoint, target_lang="fra")
    assert train.main(flags(corpus, output, "mls.all", **start, train_adapters_only=True, save_strategy="no")) == 0
    assert "Newly drawn" not in capsys.readouterr().err
    losses = [row["loss"] for row in rows(output / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 4 and np.isfinite(losses).all()

    before, after = load_file(checkpoint / "model.safetensors"), parameters(output)
    held = torch.load(checkpoint / "adapter.fra.bin", weights_only=True)
    fra = {name: tensor.detach().numpy() for name, tensor in held.items()}
    for name, array in after.items():
        expected = fra[name] if name in fra else before[name]
        assert (name in fra) == is_of_language(name)
        assert np.array_equal(array, expected) == (name not in fra), name
    written = load_file(output / "adapter.fra.safetensors")
    assert written.keys() == fra.keys()
    assert all(np.array_equal(written[name], after[name]) for name in written)
    assert json.loads((output / "vocab.json").read_text()) == {"fra": VOCABULARY["fra"]}
    assert json.loads((output / "config.json").read_text())["adapter_attn_dim"] == WIDTH
    assert "of the language `fra` (`adapter.fra.safetensors`)" in (output / "README.md").read_text()

    ours = load_model(output)
    compare(ours, *in_transformers(output, "fra"), rng, 1e-5)
    compare(load_model(output, target_lang="fra"), *in_transformers(output, "fra"), rng, 1e-5)
    theirs = transformers.AutoModelForCTC.from_pretrained(output)  # its own weights, then those of the file
    randomize_adapters(theirs, rng)
    theirs.load_adapter("fra")
    compare(ours, theirs.eval(), transformers.AutoProcessor.from_pretrained(output), rng, 1e-5)

    common = dict(
        config_name=None, do_train=None, do_eval=None, freeze_feature_encoder=None, per_device_train_batch_size=None,
        max_steps=None, learning_rate=None, logging_steps=None, group_by_length=None,
    )  # fmt: skip
    scored = tmp_path / "scored"
    asked = flags(corpus, scored, "mls.all", **common, model_name_or_path=output, target_lang="fra")
    assert evaluate.main(asked) == 0
    assert json.loads((scored / "results.json").read_text())["target_lang"] == "fra"
    assert all(row["reference"] for row in rows(scored / "predictions.jsonl"))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("targets", [("q_proj",), ("v_proj", "linear_1")], ids=str)
def test_a_low_rank_adapter_brings_the_adapters_of_its_language(targets, checkpoint, corpus, tmp_path, rng):
    """Those in the weights of its base are another language's."""
    peft, output = pytest.importorskip("peft"), tmp_path / "run"
    changes = dict(config_name=None, model_name_or_path=checkpoint, target_lang="fra", lora_rank=2, max_steps=2)
    changes |= dict(do_eval=None, save_strategy="no", learning_rate=1e-2, freeze_feature_encoder=None)
    asked = flags(corpus, output, "mls.all", **changes)
    assert train.main([*asked, "--lora_targets", *targets]) == 0
    clip = tone("abc d", rng)[None]
    logits = [np.asarray(load_model(folder)(clip).logits[0]) for folder in (output, output / "lora")]
    np.testing.assert_allclose(*logits, atol=1e-5)
    base = transformers.Wav2Vec2ForCTC.from_pretrained(
        checkpoint, vocab_size=len(VOCABULARY["fra"]), ignore_mismatched_sizes=True
    )
    adapted = peft.PeftModel.from_pretrained(base, output / "lora").eval()
    inputs = transformers.AutoProcessor.from_pretrained(output)(
        clip[0].astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        np.testing.assert_allclose(logits[1], adapted(**inputs).logits[0].numpy(), atol=1e-5)


def test_a_language_of_the_base_is_no_new_one_for_a_low_rank_adapter(checkpoint, tmp_path):
    """The file of it lies beside the base; the adapter's own folder has none, which would make it a new language."""
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": str(checkpoint)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    for name in LANGUAGES:
        with pytest.raises(InputError, match=f"target_lang {name}: .* is an adapter of .* which has that language"):
            starting_point(
                ModelArguments(model_name_or_path=str(tmp_path), target_lang=name), weights=False, trains=True
            )
    asked = ModelArguments(model_name_or_path=str(tmp_path), target_lang="xyz")
    assert starting_point(asked, weights=False, trains=True).language.is_new


def randomize_adapters(model, rng):
    from languages import randomize

    randomize(model._get_adapters().items(), rng)


def test_a_new_language_of_a_model_without_adapters(corpus, tmp_path, rng, capsys):
    plain = write_checkpoint(tmp_path / "plain", rng, adapters=False)
    output = tmp_path / "run"
    changes = dict(
        config_name=None, model_name_or_path=plain, target_lang="xyz", adapter_attn_dim=6, train_adapters_only=True,
        save_steps=2, gradient_checkpointing=True,
    )  # fmt: skip
    assert train.main(flags(corpus, output, "mls.all", **changes)) == 0
    assert "has no adapter for the language xyz" in (err := capsys.readouterr().err) and "Newly drawn" in err
    before, after = load_file(plain / "model.safetensors"), parameters(output)
    for name, array in after.items():
        assert is_of_language(name) or np.array_equal(array, before[name]), name
    assert set(after) - set(before) == {name for name in after if ".adapter_layer." in name}
    vocabulary = json.loads((output / "vocab.json").read_text())
    assert vocabulary.keys() == {"xyz"} and {"a", "|", "[UNK]", "[PAD]"} <= vocabulary["xyz"].keys()
    compare(load_model(output, target_lang="xyz"), *in_transformers(output, "xyz"), rng, 1e-5)

    # The same run goes on; another language does not.
    assert train.main(flags(corpus, output, "mls.all", **changes)) == 0
    capsys.readouterr()
    assert train.main(flags(corpus, output, "mls.all", **changes | dict(target_lang="abc", max_steps=6))) == 2
    assert "was trained with --target_lang xyz, and this run has abc" in capsys.readouterr().err


def test_a_new_language_leaves_nothing_of_the_old_one(checkpoint):
    from xtremes_jax.models import config_from_huggingface, flatten_params, to_huggingface, unflatten_params
    from xtremes_jax.starting import initial_params

    arguments = ModelArguments(model_name_or_path=str(checkpoint), target_lang="xyz")
    start = starting_point(arguments, trains=True)
    config = config_from_huggingface(start.config, head="ctc")
    params, report = initial_params(start, config, seed=3, replace_head=True)
    assert set(report.missing) == {name for name in load_file(checkpoint / "adapter.eng.safetensors")}
    tensors = to_huggingface(unflatten_params(params), config)
    for name, array in tensors.items():
        if not is_of_language(name):
            continue
        if "norm.weight" in name:
            assert (array == 1).all()
        elif name.endswith("bias"):
            assert (array == 0).all()
        else:
            np.testing.assert_allclose(array.std(), 0.02, rtol=0.2)
    assert flatten_params(params).keys() == params.keys()


def damaged(checkpoint, folder, change):
    """A copy whose adapter of eng has been changed."""
    from safetensors.numpy import save_file

    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "adapter.eng.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter.eng.safetensors")
    return folder


def test_from_a_hub_comes_the_language_that_is_asked_for(checkpoint, tmp_path, monkeypatch):
    with running_hub(monkeypatch) as server:
        server.repositories["someone/mms"] = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
        resolve = partial(hub.resolve_model, endpoint=server.endpoint)
        monkeypatch.setattr(hub, "resolve_model", resolve)
        asked = ModelArguments(model_name_or_path="someone/mms", target_lang="eng", cache_dir=str(tmp_path / "cache"))
        start = starting_point(asked)
        assert start.config["vocab_size"] == 9 and start.language.adapter.name == "adapter.eng.safetensors"
        assert {"adapter.eng.safetensors", "vocab.json"} < set(server.downloads)
        assert "adapter.fra.bin" not in server.downloads
        start = starting_point(dataclasses.replace(asked, target_lang="fra"))
        assert start.config["vocab_size"] == 11 and start.language.adapter.name == "adapter.fra.bin"
        with pytest.raises(InputError, match="no adapter for the language frq: did you mean fra.* It has eng, fra"):
            starting_point(dataclasses.replace(asked, target_lang="frq"))
        small = starting_point(dataclasses.replace(asked, target_lang="fra"), weights=False, trains=True)
        assert not small.language.is_new


def test_a_push_takes_adapters_along(checkpoint, monkeypatch):
    with running_hub(monkeypatch) as server:
        server.large = ()  # all files go the same way
        repository = Repository("mine", token=TOKEN, private=None, endpoint=server.endpoint)
        repository.send(checkpoint, "Mine", files=hub.files_to_push(checkpoint), patience=AT_START)
        sent = server.repositories[f"{OWNER}/mine"]
        assert sent["adapter.eng.safetensors"] == (checkpoint / "adapter.eng.safetensors").read_bytes()
        assert "adapter.fra.bin" not in sent


FIRST = "wav2vec2.encoder.layers.0.adapter_layer.linear_1.weight"
DAMAGE = {
    "lacking": (lambda t: t.pop(FIRST), rf"adapter\.eng\.safetensors lacks '{FIRST}': it is of another model"),
    "many": (lambda t: t.update({"x": np.zeros(2, np.float32)}), r"adapter\.eng\.safetensors holds, .* 'x'"),
    "shape": (
        lambda t: t.update({FIRST: np.zeros((3, 32), np.float32)}),
        rf"{FIRST} has shape \(3, 32\), and \(8, 32\)",
    ),
    "bias": (
        lambda t: t.update({"lm_head.bias": np.zeros(3, np.float32)}),
        r"lm_head.bias has shape \(3,\), and \(9,\)",
    ),
    "head": (lambda t: t.pop("lm_head.weight"), "holds no lm_head.weight"),
    "tokens": (
        lambda t: t.update({"lm_head.bias": t["lm_head.bias"][:7], "lm_head.weight": t["lm_head.weight"][:7]}),
        "head has 7 outputs, and the vocabulary 9 tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_adapter_is_named(name, checkpoint, tmp_path):
    change, message = DAMAGE[name]
    with pytest.raises(InputError, match=message):
        load_model(damaged(checkpoint, tmp_path / "copy", change), target_lang="eng")


def test_what_is_not_there_is_said(checkpoint, tmp_path, rng):
    with pytest.raises(InputError, match="no adapter for the language frq: did you mean fra.* It has eng, fra"):
        load_model(checkpoint, target_lang="frq")
    with pytest.raises(InputError, match="'../fra' is no name of a language"):
        load_model(checkpoint, target_lang="../fra")
    for name in ("../fra", "f*a", "fr[a]", "f?a", "", ".", "fra\n", "f" * 101, "é"):
        with pytest.raises(InputError, match="is no name of a language"):  # of random weights, too: it is written then
            starting_point(ModelArguments(config_name="tiny", target_lang=name), trains=True)
    plain = write_checkpoint(tmp_path / "plain", rng, adapters=False)
    with pytest.raises(InputError, match="has no adapters of languages"):
        load_model(plain, target_lang="fra")
    (plain / "config.json").write_text(json.dumps({"model_type": "hubert", "adapter_attn_dim": 8}))
    with pytest.raises(InputError, match="a model of 'HuBERT'"):
        load_model(plain, target_lang="fra")
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"target_lang": None}))
    with pytest.raises(InputError, match="vocabularies of 2 languages .* --target_lang: eng, fra"):
        load_model(copy)
    (copy / "adapter.fra.bin").unlink()
    with pytest.raises(InputError, match="vocabulary of the language fra, and no adapter.fra.safetensors beside"):
        load_model(copy, target_lang="fra")
    (copy / "vocab.json").write_text(json.dumps({"fra": VOCABULARY["fra"]}))
    with pytest.raises(InputError, match="no vocabulary of the language 'eng' .* those of fra"):
        load_model(copy, target_lang="eng")
    (copy / "vocab.json").write_text(json.dumps({"\x1b[2Jfra": {}, "x" * 10**6: {}}))
    with pytest.raises(InputError, match=r"those of '\\x1b\[2Jfra', 'x") as raised:
        load_model(copy, target_lang="eng")
    assert str(raised.value).isprintable() and len(str(raised.value)) < 1000
    (copy / "vocab.json").write_text(json.dumps(VOCABULARY["eng"]))
    with pytest.raises(InputError, match="the vocabulary of one language"):
        load_model(copy, target_lang="eng")


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ("mls.all", {"adapter_attn_dim": 9}, "adapters that are 8 wide"),
        ("mls.all", {"target_lang": "a/b"}, "no name of a language"),
        ("minds14.all", {"target_lang": "fra"}, "adapters and a head for recognition, and minds14"),
        ("covost2.all", {"train_adapters_only": True, "decoder_config_name": "tiny"}, "covost2 has a decoder"),
    ],
)
def test_flags_that_do_not_fit_are_refused(config, changes, message, checkpoint, corpus, tmp_path, capsys):
    changes = dict(config_name=None, model_name_or_path=checkpoint) | changes
    assert train.main(flags(corpus, tmp_path / "run", config, **changes)) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        ({}, {"train_adapters_only": True}, "has no adapters in its layers"),
        ({"do_stable_layer_norm": False}, {"adapter_attn_dim": 8}, "norms after the blocks"),
        ({"model_type": "wavlm"}, {"adapter_attn_dim": 8}, "models of WavLM"),
    ],
)
def test_models_without_a_place_for_adapters_are_named(fields, changes, message, corpus, tmp_path, capsys):
    from corpora import TINY

    shape = tmp_path / "model.json"
    shape.write_text(json.dumps(TINY | fields))
    assert train.main(flags(corpus, tmp_path / "run", "mls.all", config_name=shape, **changes)) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_classification_trains_adapters_alone(corpus, tmp_path, capsys):
    output = tmp_path / "run"
    changes = dict(adapter_attn_dim=8, train_adapters_only=True, save_strategy="no", max_steps=1, do_eval=None)
    assert train.main(flags(corpus, output, "minds14.all", **changes)) == 0
    assert "encoder has random weights and stays as it is; set --train_adapters_only False" in capsys.readouterr().err
    model, info = transformers.AutoModelForAudioClassification.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()) and model.config.adapter_attn_dim == 8


def test_a_cached_front_end_may_be_frozen_by_training_adapters_only(corpus, tmp_path):
    changes = dict(cache_frontend=True, train_adapters_only=True, adapter_attn_dim=8)
    parse_arguments(flags(corpus, tmp_path, "mls.all", **changes))


def test_tokens_are_numbered_as_in_the_language_whichever_one_was_saved(tmp_path):
    """Where a vocabulary has no <s>, the tokenizer adds it behind the rest, which is elsewhere in each language."""
    plain = {"long": list("abcde|") + ["[UNK]", "[PAD]"], "short": list("ab|") + ["[UNK]", "[PAD]"]}
    nested = {name: {token: place for place, token in enumerate(tokens)} for name, tokens in plain.items()}
    special = dict(unk_token="[UNK]", pad_token="[PAD]")
    (tmp_path / "vocab.json").write_text(json.dumps(nested))
    for saved in nested:
        kind = transformers.Wav2Vec2CTCTokenizer
        kind(str(tmp_path / "vocab.json"), target_lang=saved, **special).save_pretrained(tmp_path / saved)
        for asked in nested:
            made = kind(str(tmp_path / "vocab.json"), target_lang=asked, **special)
            read = hub.load_tokenizer(tmp_path / saved, asked)
            assert read.get_vocab() == made.get_vocab() and read.target_lang == asked
            assert read("ab e").input_ids == made("ab e").input_ids
            assert read.vocab == {asked: nested[asked]}
