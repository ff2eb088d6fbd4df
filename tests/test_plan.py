"""Whole plans: their figures against closed forms, and against the same step lowered by other code."""

import dataclasses
import json
import math
import re
import tempfile

import jax
import numpy as np
import pytest
from benchmarks.lowering import Setting, abstract_network, lower_train_step
from corpora import write_corpus
from runs import ROOT, flags, run_on_eight_devices

from xtremes_jax import plan, train
from xtremes_jax.arguments import parse_plan_arguments
from xtremes_jax.batch import Batch
from xtremes_jax.data.buckets import PlannedBatch
from xtremes_jax.errors import InputError
from xtremes_jax.models import (
    DECODER_PRESETS,
    PRESETS,
    TranslationConfig,
    abstract_model,
    flatten_params,
    is_feature_encoder,
    split_params,
)
from xtremes_jax.planning.cost import ProgramCost
from xtremes_jax.training import sharding
from xtremes_jax.training.ahead import CompiledAhead

FLAGS = ["--config_name", "tiny", "--task", "mls", "--output_dir", "never_made", "--do_train", "--disable_tqdm"]


def planned(*flags, topology="cpu:1"):
    jax.devices()  # no test may change how many there are
    return plan.run(parse_plan_arguments([*FLAGS, "--topology", topology, *flags]))


@pytest.fixture(scope="module")
def whole():
    """A plan with everything in it, on one device."""
    return planned(
        "--planned_buckets", "1", "2:9", "--do_eval", "--group_by_length", "--per_device_train_batch_size", "2",
        "--per_device_eval_batch_size", "3", "--num_train_epochs", "4", "--eval_strategy", "epoch",
    )  # fmt: skip


def test_every_bucket_of_every_step_is_there(whole):
    shown = [(b["role"], b["seconds"], b["rows"], b["labels"], b["times"]) for b in whole["buckets"]]
    # 9 clips of 2 s, 2 of 1 s: the fifth batch of long ones is filled up with a short one.
    assert shown == [
        ("train", 2.0, 2, 32, 5),
        ("train", 1.0, 2, 16, 1),
        ("eval", 2.0, 3, 32, 1),
        ("eval", 1.0, 3, 16, 1),
    ]
    assert (whole["steps_per_epoch"], whole["total_steps"]) == (6, 24)
    assert whole["fits"] and not (ROOT / "never_made").exists()


def test_parameters_and_moments_are_those_of_the_model(whole):
    config = Setting(vocab_size=64).model_config()
    flat = flatten_params(split_params(abstract_model(config))[1])
    frozen = sum(leaf.size for name, leaf in flat.items() if is_feature_encoder(name))
    trained = sum(leaf.size for leaf in flat.values()) - frozen
    # AdamW has two moments of each trained parameter, and counts its updates twice: for itself, and for the schedule.
    assert whole["per_device"] == {"trainable": 4 * trained, "frozen": 4 * frozen, "optimizer": 8 * trained + 8}


def test_memory_and_products_are_those_of_the_same_step_lowered_elsewhere(whole):
    """By the benchmarks' own lowering, which shares neither loader nor flags with a plan."""
    setting = Setting(config="tiny", rows=2, seconds=2.0, vocab_size=64)
    mesh = sharding.make_mesh()
    lowered = lower_train_step(setting, mesh)
    assert abstract_network(setting, mesh).state.trainable
    memory = lowered.compile().memory_analysis()
    bucket = whole["buckets"][0]
    labels = 2 * 4 * (bucket["labels"] - setting.labels)
    found = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + labels
    assert bucket["cost"]["needed"] - bucket["cost"]["temporary"] == pytest.approx(found, abs=16)
    assert bucket["cost"]["temporary"] == pytest.approx(memory.temp_size_in_bytes, rel=0.02)


def test_an_epoch_takes_its_steps(whole):
    train = [bucket for bucket in whole["buckets"] if bucket["role"] == "train"]
    assert whole["epoch_seconds"] == sum(bucket["times"] * bucket["step_seconds"] for bucket in train) > 0
    rate, moved = whole["chip"]["flops_per_s"]["default"], whole["chip"]["bytes_per_s"]
    for bucket in train:
        cost = bucket["cost"]
        assert bucket["step_seconds"] == pytest.approx(max(cost["flops"] / rate / 0.5, cost["moved"] / moved))


WAITING = 2 * 2 * (2 * 16_000 * 2 + 4 * (32 + 4))
"""Bytes of two batches of two clips of 2 s, with their 32 labels."""


def test_micro_batches_are_multiplied_out(whole):
    """Two clips one after the other cost what they cost together."""
    line = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2", "--num_train_epochs", "0.5"]
    found = planned("--planned_buckets", "2:9", *line)
    (apart,), together = found["buckets"], whole["buckets"][0]
    assert (apart["rows"], apart["micro_batches"], apart["labels"]) == (2, 2, together["labels"])
    assert apart["cost"]["flops"] == pytest.approx(together["cost"]["flops"], rel=0.01)
    assert (found["steps_per_epoch"], found["total_steps"]) == (5, 3)


def test_scoring_during_training_has_the_optimizers_state_and_the_next_batches_beside_it(whole):
    batch = 3 * (2 * 16_000 * 2 + 4 * (32 + 4))
    evaluation = next(bucket for bucket in whole["buckets"] if bucket["role"] == "eval")
    assert evaluation["resident"] == whole["per_device"]["optimizer"] + WAITING + 2 * batch
    assert whole["buckets"][0]["resident"] == WAITING
    assert evaluation["peak"] == evaluation["cost"]["needed"] + evaluation["resident"]


@pytest.fixture
def linear(monkeypatch):
    """Programs that need a MiB for each row of a device, compiled in no time, on devices of 12 MiB."""
    real = plan.find_target

    def shrunk(name):
        target = real(name)
        return dataclasses.replace(target, chip=dataclasses.replace(target.chip, memory=12 * 2**20))

    def measure(batch, target):
        rows = batch.label_lengths.shape[0] // len(target.devices)
        refused = "too much, says XLA" if rows > 40 else None
        return ProgramCost(rows * 2**20, rows * 2**19, refused, None if refused else 1e9, None, 0.0, 0, 0.5)

    monkeypatch.setattr(plan, "find_target", shrunk)
    monkeypatch.setattr(plan, "compile_and_measure", measure)
    monkeypatch.setattr(CompiledAhead, "lower", lambda self, batch: batch)


SECOND = 2 * (16_000 * 2 + 4 * (16 + 4))
"""Bytes of two clips of a second that wait, with their 16 labels."""
FITTING = 12 * 2**20 // (2**20 + SECOND)


def test_what_is_printed_and_written(linear, capsys, tmp_path):
    line = ["--planned_buckets", "1:30", "--find_batch", "--bf16", "--per_device_train_batch_size", "2"]
    planned(*line, "--json", str(tmp_path / "new" / "plan.json"), topology="v100:1")
    printed = capsys.readouterr().out
    assert "mls with tiny on v100:1: 1 x NVIDIA V100" in printed
    assert re.search(r"train +1\.00 +2 +16 +15 +1\.0 +2\.1 +18% +1\.0 +0\.0 +0\.1\n", printed)
    assert "An epoch: 15 steps" in printed and "memory, FLOPs and bytes sent are those of the program" in printed
    assert f"--per_device_train_batch_size {FITTING}, in " in printed
    assert "no larger one was tried" not in printed  # the last trial fitted, and larger ones before it did not
    found = json.loads((tmp_path / "new" / "plan.json").read_text("utf-8"))
    assert found["precision"] == "bfloat16" and found["arguments"]["bf16"] is True
    tried = {trial["rows"]: trial["fits"] for trial in found["found_batch"]["trials"]}
    assert list(tried)[:4] == [2, 4, 8, 16] and tried[FITTING] and not tried[FITTING + 1]
    assert found["found_batch"]["value"] == FITTING


def test_the_largest_batch_by_seconds_is_found_from_above(linear, capsys):
    line = ["--planned_buckets", "1", "--max_duration_in_seconds", "3", "--max_batch_seconds", "60"]
    line += ["--resume_from_checkpoint", "elsewhere"]
    found = planned(*line, "--gradient_accumulation_steps", "2", "--find_batch")["found_batch"]
    tried = [trial["rows"] for trial in found["trials"]]
    assert tried[:2] == [60, 30] and found["rows"] == FITTING // 2 and found["value"] == FITTING // 2
    printed = capsys.readouterr().out
    assert f"--max_batch_seconds {FITTING // 2}" in printed and "Assumed: the run begins anew" in printed


@pytest.mark.parametrize(("given", "largest", "trials"), [(1, 4, 3), (6, 6, 1)])
def test_no_larger_batch_is_tried_than_the_most_or_what_is_given(linear, monkeypatch, capsys, given, largest, trials):
    monkeypatch.setattr(plan, "_MOST_ROWS", 4)
    found = planned("--planned_buckets", "1", "--per_device_train_batch_size", str(given), "--find_batch")
    assert (found["found_batch"]["value"], len(found["found_batch"]["trials"])) == (largest, trials)
    assert "and no larger one was tried" in capsys.readouterr().out


def test_what_is_scored_after_training_has_no_optimizer_beside_it(linear):
    found = planned("--planned_buckets", "1", "--do_eval", "--do_predict", "--per_device_eval_batch_size", "2")
    assert {bucket["role"]: bucket["resident"] for bucket in found["buckets"] if bucket["role"] != "train"} == {
        "eval": 2 * SECOND,
        "predict": 2 * SECOND,
    }


def test_a_front_end_whose_frames_are_kept(linear):
    """Beside both steps lie the frames that are on their way to the disk, and the larger batch has to fit into both."""
    found = planned("--planned_buckets", "1", "--cache_frontend", "--per_device_train_batch_size", "2", "--find_batch")
    train, frames = found["buckets"]
    size = 2 * 49 * 32 * 2
    labels = SECOND - 2 * 16_000 * 2
    assert train["resident"] == 2 * (size + labels) + 4 * size
    assert frames["resident"] == found["per_device"]["optimizer"] + 2 * SECOND + 4 * size
    a_row = (frames["peak"] - found["per_device"]["optimizer"]) / 2
    assert found["found_batch"]["value"] == (12 * 2**20 - found["per_device"]["optimizer"]) // a_row
    assert found["found_batch"]["trials"][0]["peak"] == frames["peak"] > train["peak"]


def test_frames_are_not_kept_on_several_hosts(monkeypatch):
    target = dataclasses.replace(plan.find_target("cpu:1"), processes=2)
    monkeypatch.setattr(plan, "find_target", lambda name: target)
    with pytest.raises(InputError, match="--cache_frontend works in one process, and this run has 2"):
        planned("--planned_buckets", "1", "--cache_frontend")


def test_all_programs_of_the_run_lie_beside_each(linear, monkeypatch):
    without = plan.compile_and_measure
    monkeypatch.setattr(plan, "compile_and_measure", lambda *given: dataclasses.replace(without(*given), code=2**20))
    line = ["--planned_buckets", "1", "--do_eval", "--per_device_train_batch_size", "2", "--find_batch"]
    found = planned(*line)
    assert [bucket["programs"] for bucket in found["buckets"]] == [2 * 2**20] * 2
    assert found["buckets"][0]["peak"] == 2 * (2**20 + SECOND) + 2 * 2**20
    assert found["found_batch"]["value"] == 10 * 2**20 // (2**20 + SECOND) < FITTING


def test_seconds_that_hold_a_batch_exactly_hold_it(linear):
    """In floating point, 4.02 times 16,000 is less than three times 1.34 s."""
    line = ["--max_duration_in_seconds", "4", "--max_batch_seconds", "4.02", "--max_eval_batch_seconds", "4.02"]
    found = planned("--planned_buckets", "1.34", "--do_eval", *line)
    assert [bucket["rows"] for bucket in found["buckets"]] == [3, 3]


def test_windows_of_what_is_too_long_for_one_pass_have_a_program_of_their_own(linear):
    line = ["--per_device_eval_batch_size", "2", "--chunk_length_s", "1.5", "--stride_length_s", "0.25"]
    found = planned("--planned_buckets", "1", "2", "--do_eval", *line)
    shown = [
        (bucket["seconds"], bucket["rows"], bucket["times"]) for bucket in found["buckets"] if bucket["role"] == "eval"
    ]
    assert shown == [(1.0, 2, 1), (1.5, 2, 2)], "two clips of 2 s are two windows each"


def test_shapes_that_two_splits_share_are_compiled_once():
    def batch(rows, samples):
        return Batch(np.zeros((rows, samples)), *[np.zeros((rows, 1))] * 5)

    batches = [PlannedBatch(np.arange(4), 640, 4)] * 3 + [PlannedBatch(np.arange(4), 320, 4)]
    shapes, lengths, times = plan._in_order([batch(4, 320), batch(4, 640), batch(4, 640)], batches)
    assert ([shape.audio.shape for shape in shapes], lengths, times) == ([(4, 640), (4, 320)], [640, 320], [3, 1])


def test_a_plan_that_is_stopped_leaves_nothing_behind(linear, monkeypatch, tmp_path):
    def stop(batch, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "compile_and_measure", stop)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        planned("--planned_buckets", "1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("frozen", "is_frozen"),
    [
        ("--freeze_feature_encoder False", lambda name: False),
        ("--freeze_encoder", lambda name: name.startswith("encoder.")),
        ("--freeze_decoder", lambda name: name.startswith("decoder.") or is_feature_encoder(name)),
    ],
)
def test_frozen_halves_of_a_translator_have_no_moments(linear, frozen, is_frozen):
    line = ["--task", "covost2", "--decoder_config_name", "tiny", "--translation_vocab_size", "300"]
    found = planned("--planned_buckets", "1", *line, *frozen.split())["per_device"]
    encoder, decoder = PRESETS["tiny"], dataclasses.replace(DECODER_PRESETS["tiny"], vocab_size=300)
    config = TranslationConfig(encoder, decoder, decoder_start_token_id=0)
    sizes = {name: leaf.size for name, leaf in flatten_params(split_params(abstract_model(config))[1]).items()}
    kept = sum(size for name, size in sizes.items() if is_frozen(name))
    trained = sum(sizes.values()) - kept
    assert found == {"trainable": 4 * trained, "frozen": 4 * kept, "optimizer": 8 * trained + 8}


def test_where_adapters_train_alone_nothing_else_has_moments(linear):
    found = planned("--planned_buckets", "1", "--adapter_attn_dim", "6", "--train_adapters_only")["per_device"]
    config = dataclasses.replace(Setting(vocab_size=64).model_config(), adapter_attn_dim=6)
    sizes = {name: leaf.size for name, leaf in flatten_params(split_params(abstract_model(config))[1]).items()}
    layers, width = config.num_hidden_layers, config.hidden_size
    trained = layers * (2 * 6 * width + 6 + width + 2 * width) + 64 * (width + 1)
    assert trained == sum(size for name, size in sizes.items() if ".adapter_layer." in name or "lm_head" in name)
    kept = sum(sizes.values()) - trained
    assert found == {"trainable": 4 * trained, "frozen": 4 * kept, "optimizer": 8 * trained + 8}


@pytest.mark.parametrize(
    "line",
    [
        "--task covost2 --decoder_config_name tiny --translation_vocab_size 300 --generation_num_beams 2",
        "--task minds14 --use_weighted_layer_sum",
        "--task fleurs-retrieval --gradient_accumulation_steps 2 --per_device_train_batch_size 2",
    ],
)
def test_every_kind_of_task_is_compiled(line, capsys):
    found = planned("--planned_buckets", "0.5:4", "--do_eval", *line.split())
    assert [bucket["role"] for bucket in found["buckets"]] == ["train", "eval"] and found["fits"]
    train, evaluation = (bucket["cost"]["flops"] / bucket["rows"] for bucket in found["buckets"])
    # The front end is frozen: of a step and its forward pass, all that is trained is three to one.
    assert 1 < train / evaluation < 3
    assert ("its first token alone" in capsys.readouterr().out) == ("covost2" in line)


def test_pairs_stay_together(linear):
    found = planned(
        "--planned_buckets", "1", "--task", "fleurs-retrieval", "--per_device_train_batch_size", "4", "--find_batch"
    )["found_batch"]
    assert all(trial["rows"] % 2 == 0 for trial in found["trials"]) and found["value"] == FITTING // 2 * 2


def test_nothing_fits(linear, capsys):
    found = planned("--planned_buckets", "1", "--gradient_accumulation_steps", "16", "--find_batch")
    assert not found["fits"] and found["found_batch"]["value"] == 0
    printed = capsys.readouterr().out
    assert "DOES NOT FIT: train 1.00 s" in printed and "XLA says: too much" in printed
    assert "No batch fits in the longest bucket (1.00 s)" in printed


def test_the_runs_own_data_make_the_runs_own_programs(linear, monkeypatch, tmp_path):
    """What a plan compiles is what the very command announces to its compiler, in lengths, rows and labels."""
    corpus = write_corpus(tmp_path / "corpus", train=30)
    line = flags(corpus, tmp_path / "output", "mls.all", max_steps=None, num_train_epochs=2, max_buckets=3)
    found = plan.run(parse_plan_arguments([*line, "--topology", "cpu:1"]))
    assert not (tmp_path / "output").exists()
    announced = []

    def announce(self, batches, after=None):
        announced.extend((batch.audio.shape, batch.labels.shape) for batch in batches)
        raise InputError("enough")

    monkeypatch.setattr(CompiledAhead, "announce", announce)
    assert train.main(line) == 2
    planned_shapes = [
        ((bucket["rows"], round(16_000 * bucket["seconds"])), (bucket["rows"], bucket["labels"]))
        for bucket in found["buckets"]
        if bucket["role"] == "train"
    ]
    assert len(announced) == 3 and sorted(planned_shapes) == sorted(announced)
    assert planned_shapes == sorted(planned_shapes, reverse=True)  # the longest first
    assert {bucket["role"] for bucket in found["buckets"]} == {"train", "eval"}
    assert sum(bucket["times"] for bucket in found["buckets"] if bucket["role"] == "train") == found["steps_per_epoch"]
    assert found["total_steps"] == 2 * found["steps_per_epoch"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--topology v5e:3x5", "no slice 3x5 of v5e"),
        ("--topology v9", "v9 is not known"),
        ("--topology cpu:0", "0 is no number of devices"),
        ("--topology cpu:1 --planned_buckets 5 --fsdp_devices 3", "--fsdp_devices 3 does not divide the 1 devices"),
        ("--topology cpu:1 --planned_buckets 1:1 --task fleurs-retrieval", "1:1 is one clip, and a pair"),
        ("--topology cpu:1 --planned_buckets five", "five is no length"),
        ("--topology cpu:1 --json tests", "--json tests is a directory"),
        ("--topology cpu:1 --json README.md/plan.json", "--json README.md/plan.json cannot be written"),
        ("--topology cpu:1 --dataset_name no/such/folder", "no/such/folder"),
    ],
)
def test_errors_are_sentences_and_status_2(line, said, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    jax.devices()
    assert plan.main([*FLAGS, *line.split()]) == 2
    printed = capfd.readouterr()
    last = printed.err.splitlines()[-1]
    assert last.startswith("error: ") and said in last and not printed.out


EIGHT = """
    import json
    from xtremes_jax import plan
    from xtremes_jax.arguments import parse_plan_arguments
    from xtremes_jax.planning.cost import ProgramCost
    from xtremes_jax.training.ahead import CompiledAhead

    def found(*flags):
        flags = [*FLAGS, "--topology", "cpu:8", "--planned_buckets", "1", "--per_device_train_batch_size", "1", *flags]
        print("found", json.dumps(plan.run(parse_plan_arguments(flags))))

    found("--config_name", "tiny")
    plan.compile_and_measure = lambda lowered, target: ProgramCost(1, 1, None, 1.0, 1.0, 1.0, 1, 1.0)
    CompiledAhead.lower = lambda self, batch: None
    for ways in (1, 4):
        found("--config_name", "small", "--fsdp_devices", str(ways))
"""


def test_bytes_on_each_of_eight_devices_whole_and_split():
    """Whole parameters lie on every device; of those that are split, a fourth, and so it is with their moments."""
    printed = run_on_eight_devices(EIGHT.replace("FLAGS", repr([*FLAGS[2:], "--freeze_feature_encoder", "False"])))
    lines = [line.split(" ", 1)[1] for line in printed.splitlines() if line.startswith("found ")]
    tiny, whole, split = map(json.loads, lines)
    # Every gradient is summed once over all devices, on rings, and little else is sent.
    assert tiny["buckets"][0]["cost"]["sent"] == pytest.approx(2 * tiny["per_device"]["trainable"] * 7 / 8, rel=0.01)
    config = Setting(config="small", vocab_size=64).model_config()
    shapes = [leaf.shape for leaf in flatten_params(split_params(abstract_model(config))[1]).values()]
    everything = sum(map(math.prod, shapes))
    pieces = sum(
        math.prod(shape) // (4 if math.prod(shape) >= 2**16 and any(size % 4 == 0 for size in shape) else 1)
        for shape in shapes
    )
    assert whole["per_device"] == {"trainable": 4 * everything, "frozen": 0, "optimizer": 8 * everything + 8}
    assert split["per_device"] == {"trainable": 4 * pieces, "frozen": 0, "optimizer": 8 * pieces + 8}
    assert (whole["mesh"], split["mesh"]) == ({"data": 8, "fsdp": 1}, {"data": 2, "fsdp": 4})
