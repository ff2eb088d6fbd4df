"""The command line of a plan: its own flags anywhere among the run's."""

import pytest

from xtremes_jax.arguments import parse_arguments, parse_plan_arguments
from xtremes_jax.errors import InputError

RUN = ["--config_name", "tiny", "--task", "mls", "--output_dir", "out", "--do_train", "--bf16"]


@pytest.mark.parametrize("place", range(len(RUN) + 1))
def test_own_flags_may_stand_anywhere_between_the_runs(place):
    if place < len(RUN) and not RUN[place].startswith("--"):
        return
    line = [*RUN[:place], "--topology", "v5e:2x4", "--find-batch", *RUN[place:], "--planned_buckets", "5", "10:3"]
    found = parse_plan_arguments(line)
    assert found.run == parse_arguments(RUN) and found.training == found.run.training
    flags = found.flags
    assert (flags.topology, flags.find_batch, flags.planned_buckets, flags.json) == (
        "v5e:2x4",
        True,
        ("5", "10:3"),
        None,
    )


def test_a_file_of_flags_comes_first(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"config_name": "tiny", "task": "mls", "output_dir": "out", "do_train": true}', "utf-8")
    found = parse_plan_arguments(
        [str(path), "--topology=cpu:8", "--find_batch", "false", "--json", "plan.json", "--bf16"]
    )
    assert found.run == parse_arguments(RUN) and found.flags.json == "plan.json" and not found.flags.find_batch


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "nothing to plan for. Add --topology"),
        (["--topology"], "--topology: expected one argument"),
        (["--topology", "cpu:8", "--topology", "cpu:4"], "--topology is given 2 times"),
        (["--topology", "cpu:8", "--topolgy", "cpu:4"], "Unknown flag --topolgy"),
        (["--topology", "cpu:8", "--find_batch", "maybe"], "--find_batch must be true or false"),
        (["--topology", "cpu:8", "--planned_buckets"], "expected at least one argument"),
        (["--topology", "cpu:8", "--fp16"], "--fp16 and --bf16 exclude each other"),
        (["--topology", "cpu:8", "--learning_rate", "x"], "must be a number"),
    ],
)
def test_what_makes_no_sense_is_refused(more, said):
    with pytest.raises(InputError, match=said):
        parse_plan_arguments([*RUN, *more])


def test_a_plan_is_of_a_run_that_trains():
    line = ["--model_name_or_path", "x", "--task", "mls", "--output_dir", "out", "--do_predict", "--topology", "cpu:8"]
    with pytest.raises(InputError, match="Add --do_train"):
        parse_plan_arguments(line)


def test_a_plan_is_not_of_preparing_data():
    with pytest.raises(InputError, match="Drop --preprocessing_only"):
        parse_plan_arguments([*RUN, "--topology", "cpu:8", "--preprocessing_only"])


def test_a_run_does_not_take_a_plans_flags():
    with pytest.raises(InputError, match="Unknown flag --topology"):
        parse_arguments([*RUN, "--topology", "cpu:8"])


def test_help_lists_both(capsys):
    with pytest.raises(SystemExit) as end:
        parse_plan_arguments(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "xtremes_jax.plan" in printed and "--planned_buckets" in printed and "--learning_rate" in printed
