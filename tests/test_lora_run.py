"""Whole runs with low-rank factors: what they write is what PEFT reads, and what PEFT writes is read."""

import json
import shutil

import jax
import numpy as np
import pytest
from corpora import tone, write_corpus
from retrieval_corpus import write_retrieval_corpus
from runs import flags, parameters, rows

from xtremes_jax import evaluate, load_model, train

RANK, LAYERS, WIDTH, WIDE = 4, 2, 32, 48
FACTORS = LAYERS * RANK * (4 * 2 * WIDTH + 2 * (WIDTH + WIDE))
"""Of the four maps of attention and the two of the feed-forward blocks of corpora.TINY."""

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=12, other=4)


def lora(corpus, base, output, config, **changes):
    """A run's command line that starts from a checkpoint; with `lora_rank=None` one that trains all of it."""
    defaults = dict(freeze_feature_encoder=None, lora_rank=RANK, max_buckets=1, learning_rate=1e-2)
    return flags(corpus, output, config, config_name=None, model_name_or_path=base, **{**defaults, **changes})


@pytest.fixture(scope="module")
def bases(corpus, tmp_path_factory):
    """Pretrained models, if of two steps: of recognition and of classification."""
    folder = tmp_path_factory.mktemp("bases")
    for config in ("mls.all", "minds14.all"):
        assert train.main(flags(corpus, folder / config, config, max_steps=2, max_buckets=1, do_eval=None)) == 0
    return folder


@pytest.fixture(scope="module")
def trained(corpus, bases, tmp_path_factory):
    output = tmp_path_factory.mktemp("lora") / "run"
    assert train.main(lora(corpus, bases / "mls.all", output, "mls.all", lora_alpha=6)) == 0
    return output


def heard(model, clip):
    return np.asarray(model(clip[None], np.array([len(clip)], np.int32)).logits[0])


def clip_of(rng):
    return tone("abc d", rng)


def test_a_run_trains_and_holds_moments_of_the_factors_and_the_head_alone(trained, bases):
    results = json.loads((trained / "train_results.json").read_text())
    vocabulary = json.loads((trained / "config.json").read_text())["vocab_size"]
    count = FACTORS + (WIDTH + 1) * vocabulary
    assert results["train_parameters"] == count
    assert results["train_optimizer_bytes"] == 2 * 4 * count + 2 * 4  # two moments, and two counts of updates
    losses = [row["loss"] for row in rows(trained / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 4 and losses[-1] < losses[0]
    before, after = parameters(bases / "mls.all"), parameters(trained)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    maps = ("q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense")
    assert {name for name in changed if not name.startswith("lm_head")} == {
        name for name in before if name.endswith(tuple(f"{part}.weight" for part in maps))
    }


def test_the_folder_holds_an_adapter_that_peft_reads(trained, bases, rng):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    settings = json.loads((trained / "lora" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(bases / "mls.all")
    assert (settings["r"], settings["lora_alpha"], settings["modules_to_save"]) == (RANK, 6, ["lm_head"])
    clip = clip_of(rng)
    waveform = clip / 32768
    waveform = torch.tensor((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7), dtype=torch.float32)[None]
    with torch.no_grad():
        base = transformers.AutoModelForCTC.from_pretrained(bases / "mls.all").eval()
        adapted = peft.PeftModel.from_pretrained(base, trained / "lora").eval()
        unmerged = adapted(waveform).logits[0].numpy()
        merged = adapted.merge_and_unload()(waveform).logits[0].numpy()
        ordinary, info = transformers.AutoModelForCTC.from_pretrained(trained, output_loading_info=True)
        whole = ordinary.eval()(waveform).logits[0].numpy()
    assert not any(info.values())
    for source in (trained, trained / "lora"):
        ours = heard(load_model(source), clip)
        for theirs in (unmerged, merged, whole):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_the_folder_alone_is_scored_as_the_whole_is(trained, corpus, tmp_path):
    scored = []
    for name in (".", "lora"):
        output = tmp_path / name.replace(".", "whole")
        arguments = ["--model_name_or_path", trained / name, "--dataset_name", corpus, "--dataset_config_name",
                     "mls.all", "--cache_dir", corpus / "cache", "--output_dir", output, "--disable_tqdm"]  # fmt: skip
        assert evaluate.main([str(part) for part in arguments]) == 0
        scored.append(json.loads((output / "run.json").read_text())["scores"])
    assert scored[0] == scored[1]


def test_a_run_goes_on_from_its_checkpoint(trained, bases, corpus, tmp_path, capsys):
    output = tmp_path / "run"
    halves = dict(lora_alpha=6, save_strategy="steps", save_steps=2)
    assert train.main(lora(corpus, bases / "mls.all", output, "mls.all", **halves)) == 0
    shutil.rmtree(output / "checkpoints" / "4")
    assert train.main(lora(corpus, bases / "mls.all", output, "mls.all", **halves)) == 0
    for folder in ("", "lora"):
        name = "model.safetensors" if not folder else "adapter_model.safetensors"
        assert (output / folder / name).read_bytes() == (trained / folder / name).read_bytes()
    other = halves | dict(lora_alpha=12, max_steps=6)
    assert train.main(lora(corpus, bases / "mls.all", output, "mls.all", **other)) == 2
    assert "was trained with --lora_alpha 6.0, and this run has 12.0" in capsys.readouterr().err


def test_further_training_starts_from_the_merged_model(trained, corpus, tmp_path, capsys):
    output = tmp_path / "more"
    still = dict(learning_rate=0.0, max_steps=1)
    assert train.main(lora(corpus, trained / "lora", output, "mls.all", lora_rank=None, **still)) == 0
    before, after = parameters(trained), parameters(output)
    for name, value in before.items():
        if not name.startswith("lm_head"):  # the vocabulary is made anew
            np.testing.assert_allclose(after[name], value, atol=1e-7)
    assert not (output / "lora").exists()
    assert train.main(lora(corpus, trained / "lora", tmp_path / "another", "mls.all", **still)) == 2
    assert "is an adapter, and the base of another one" in capsys.readouterr().err


def test_an_adapter_of_an_earlier_run_does_not_stay(trained, bases, corpus, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    afresh = dict(max_steps=1, overwrite_output_dir=True, lora_rank=None)
    assert train.main(lora(corpus, bases / "mls.all", output, "mls.all", **afresh)) == 0
    assert not (output / "lora").exists()


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_saves_is_read(bases, rslora, weights, rng, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(int(rng.integers(1000)))
    folder = bases / "minds14.all"
    base = transformers.AutoModelForAudioClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True
    )
    settings = peft.LoraConfig(
        r=5, lora_alpha=11, target_modules=r".*layers\.\d\.(attention\.[qv]_proj|feed_forward\.output_dense)",
        modules_to_save=["projector", "classifier"], init_lora_weights=False, use_rslora=rslora, lora_dropout=0.1,
    )  # fmt: skip
    model = peft.get_peft_model(base, settings).eval()
    model.save_pretrained(tmp_path, safe_serialization=weights.endswith("safetensors"))
    assert (tmp_path / weights).is_file()
    clip = clip_of(rng)
    waveform = clip / 32768
    waveform = torch.tensor((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7), dtype=torch.float32)[None]
    with torch.no_grad():
        theirs = model(waveform).logits[0].numpy()
    ours = load_model(tmp_path)
    assert ours.label_names == ["LABEL_0", "LABEL_1", "LABEL_2"]
    np.testing.assert_allclose(heard(ours, clip), theirs, atol=2e-5)


DECODER = {
    "model_type": "mbart", "d_model": 24, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "max_position_embeddings": 64, "vocab_size": 40,
}  # fmt: skip


@pytest.mark.parametrize("freeze_decoder", [False, True])
def test_translation_adapts_the_encoder_and_trains_what_is_not_frozen(freeze_decoder, corpus, tmp_path, rng):
    (tmp_path / "decoder.json").write_text(json.dumps(DECODER))
    short = dict(max_steps=2, max_buckets=1, do_eval=None, per_device_eval_batch_size=None)
    joined = short | {"decoder_config_name": tmp_path / "decoder.json", "translation_vocab_size": 40}
    base, output = tmp_path / "base", tmp_path / "run"
    assert train.main(flags(corpus, base, "covost2.all", **joined)) == 0
    more = short | {"freeze_decoder": freeze_decoder, "lora_targets": "v_proj"}
    assert train.main(lora(corpus, base, output, "covost2.all", **more)) == 0
    before, after = parameters(base), parameters(output)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"encoder", "enc_to_dec_proj", "decoder"} - (
        {"decoder"} if freeze_decoder else set()
    )
    encoder = {name for name in changed if name.startswith("encoder.")}
    assert encoder == {f"encoder.encoder.layers.{layer}.attention.v_proj.weight" for layer in range(LAYERS)}
    clip = clip_of(rng)[None]
    whole, adapted = load_model(output), load_model(output / "lora")
    assert whole.generation == adapted.generation
    for name in ("encoder", "decoder", "enc_to_dec_proj"):
        for mine, other in zip(flat(whole.params[name]), flat(adapted.params[name]), strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-7)
    np.testing.assert_array_equal(whole(clip).tokens, adapted(clip).tokens)


def flat(tree):
    return [np.asarray(value) for value in jax.tree.leaves(tree)]


def test_retrieval_keeps_its_temperature(bases, tmp_path, rng):
    corpus = write_retrieval_corpus(tmp_path / "corpus")
    changes = dict(max_steps=2, do_eval=None, per_device_eval_batch_size=None, use_weighted_layer_sum=True, bf16=True)
    changes["gradient_checkpointing"] = True
    assert train.main(lora(corpus, bases / "mls.all", tmp_path / "run", None, task="fleurs-retrieval", **changes)) == 0
    whole, adapted = load_model(tmp_path / "run"), load_model(tmp_path / "run" / "lora")
    assert whole.config == adapted.config and whole.config.logit_scale != type(whole.config).logit_scale
    clip = clip_of(rng)
    np.testing.assert_allclose(heard(whole, clip), heard(adapted, clip), atol=1e-6)
