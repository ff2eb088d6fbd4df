"""`scripts/tpu_vm.sh` with a stand-in for gcloud: what it asks for, in which order, and after a TPU is taken back."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "tpu_vm.sh"
GCLOUD = r"""#!/usr/bin/env bash
echo "$*" >>"$OUT/calls"
case "$*" in
*" describe "*)
    read -r now <"$OUT/states"
    [[ "$(wc -l <"$OUT/states")" == 1 ]] || sed -i 1d "$OUT/states"
    [[ "$now" != ABSENT ]] || { echo "ERROR: NOT_FOUND" >&2; exit 1; }
    echo "$now" ;;
*xtremes_jax.train*)
    read -r status <"$OUT/endings"; sed -i 1d "$OUT/endings"; exit "$status" ;;
*" scp "*huggingface*) cp "$5" "$OUT/token"; stat -c %a "$5" >"$OUT/mode"; [[ -z "${SCP_FAILS:-}" ]] || exit 1 ;;
esac
"""


@pytest.fixture
def tpu_vm(tmp_path):
    """Runs the script against a TPU with these states, one a look, and runs that end so."""

    def call(*arguments, states=("ACTIVE",), endings=("0",), **variables):
        (tmp_path / "gcloud").write_text(GCLOUD)
        (tmp_path / "gcloud").chmod(0o755)
        (tmp_path / "states").write_text("\n".join(states) + "\n")
        (tmp_path / "endings").write_text("\n".join(endings) + "\n")
        (tmp_path / "calls").write_text("")
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path), "TMPDIR": str(tmp_path), "POLL": "0",
            "TPU": "mine", "ZONE": "z", "TYPE": "v5litepod-16", "NFS": "10.0.0.2:/share", **variables,
        }  # fmt: skip
        environment.pop("HF_TOKEN", None) if "HF_TOKEN" not in variables else None
        done = subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)
        calls = (tmp_path / "calls").read_text()
        what = "create delete describe scp ssh".split()
        verbs = [next(word for word in what if f" {word} " in f" {line} ") for line in calls.splitlines()
                 if line.startswith("compute")]  # fmt: skip
        return done, calls, [verb for verb in verbs if verb != "describe"]

    return call


def test_a_tpu_is_made_waited_for_and_trained_on(tpu_vm):
    states = "ABSENT", "ACCEPTED", "PROVISIONING", "ACTIVE"
    done, calls, verbs = tpu_vm("train", "--output_dir", "/mnt/shared/a b", states=states, SPOT="1", PROJECT="p")
    assert done.returncode == 0, done.stderr
    assert verbs == ["create", "scp", "ssh", "ssh", "ssh"]
    assert "create mine --node-id=mine --zone=z --project=p --accelerator-type=v5litepod-16" in calls
    assert "--spot" in calls and r"xtremes_jax.train --disable_tqdm --output_dir /mnt/shared/a\ b" in calls
    assert "The TPU mine is PROVISIONING; looking again" in done.stderr


def test_a_tpu_that_is_taken_back_is_replaced_and_the_run_goes_on(tpu_vm):
    states = "ACTIVE", "SUSPENDED", "SUSPENDED", "CREATING", "ACTIVE"
    done, _, verbs = tpu_vm("train", "--output_dir", "o", states=states, endings=("1", "0"))
    assert done.returncode == 0, done.stderr
    install_and_run = ["scp", "ssh", "ssh", "ssh"]
    assert verbs == [*install_and_run, "delete", "create", *install_and_run]
    assert "was taken back" in done.stderr


def test_a_tpu_that_has_been_asked_for_keeps_its_place(tpu_vm):
    states = "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"
    done, _, verbs = tpu_vm("train", "--output_dir", "o", states=states)
    assert done.returncode == 0 and verbs == ["scp", "ssh", "ssh", "ssh"], done.stderr


def test_a_run_that_ends_with_an_error_is_not_repeated(tpu_vm):
    done, _, verbs = tpu_vm("train", "--output_dir", "o", endings=("2",))
    assert done.returncode == 2 and verbs == ["scp", "ssh", "ssh", "ssh"]


def test_a_tpu_that_is_not_given(tpu_vm):
    done, _, verbs = tpu_vm("create", states=("ACCEPTED", "FAILED"))
    assert done.returncode == 1 and verbs == ["create"] and "was not given: it is FAILED" in done.stderr


@pytest.mark.parametrize(
    "arguments, variables, message",
    [
        (("train", "--overwrite_output_dir"), {}, "Leave it out"),
        (("train",), {"NFS": ""}, "Set NFS to HOST:/SHARE"),
        (("go",), {}, "give one of create, install"),
        ((), {}, "give one of create, install"),
    ],
)
def test_what_cannot_work_is_refused(tpu_vm, arguments, variables, message):
    done, calls, _ = tpu_vm(*arguments, **variables)
    assert done.returncode == 2 and message in done.stderr and not calls


def test_a_token_reaches_the_hosts_and_no_log(tpu_vm, tmp_path):
    done, calls, _ = tpu_vm("install", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert "hf_secret" not in done.stderr + done.stdout + calls
    assert (tmp_path / "token").read_text() == "hf_secret" and (tmp_path / "mode").read_text() == "600\n"


def test_a_token_that_does_not_reach_the_hosts_is_not_left_behind(tpu_vm, tmp_path):
    done, _, _ = tpu_vm("install", HF_TOKEN="hf_secret", SCP_FAILS="1")
    assert done.returncode != 0
    assert not [path for path in tmp_path.rglob("tmp.*") if "hf_secret" in path.read_text()]


def test_a_token_among_the_flags_is_refused_and_not_repeated(tpu_vm):
    for flags in (("--hub_token", "hf_secret"), ("--push_to_hub_token=hf_secret",)):
        done, calls, _ = tpu_vm("train", "--output_dir", "o", *flags)
        assert done.returncode == 2 and "Export HF_TOKEN" in done.stderr and not calls
        assert "hf_secret" not in done.stderr + done.stdout


def test_a_dry_run_prints_every_command_and_runs_none(tpu_vm):
    done, calls, _ = tpu_vm("train", "--output_dir", "o", DRY_RUN="1", HF_TOKEN="hf_secret")
    assert done.returncode == 0 and not calls and "hf_secret" not in done.stderr
    words = ["queued-resources create", "archive", "scp", "apt-get", "mount", "TOKEN", "xtremes_jax.train"]
    lines = done.stderr.splitlines()
    assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines, strict=True)), lines
