#!/usr/bin/env bash
# Trains on a Cloud TPU, of one host or of many, for as long as it takes: where the TPU is taken back, another is asked
# for, and the run goes on from its last checkpoint.
#
#     TPU=my-tpu ZONE=us-west4-a TYPE=v5litepod-16 NFS=10.0.0.2:/share bash scripts/tpu_vm.sh train \
#         --model_name_or_path facebook/wav2vec2-xls-r-300m ... --output_dir /mnt/shared/output/mls
#
# Commands, each of which may be given alone: create (and wait until it is there), install, run FLAGS, delete; and train
# FLAGS, which is create, install and run, again after each time the TPU is taken back, until the run has ended by itself.
#
#     DRY_RUN=1 bash scripts/tpu_vm.sh train ...     prints the commands in place of running them
#
# Variables:
#     TPU ZONE TYPE   name, zone and accelerator type; PROJECT if it is not gcloud's own
#     VERSION         of the software on the hosts (v2-alpha-tpuv5-lite, v2-alpha-tpuv6e, tpu-ubuntu2204-base, ...)
#     SPOT=1          a TPU that may be taken back at any time, for less
#     NFS             HOST:/SHARE, mounted at /mnt/shared on every host. --output_dir has to lie there: a host's own disk is
#                     gone with it, and all hosts have to see the checkpoints
#     POLL            seconds between looks at a TPU that is waited for (30)
# HF_TOKEN is handed on to the hosts if it is set, in a file that only the user can read, and is never printed.
set -euo pipefail

TPU="${TPU:?is not set: give the name of the TPU; see the head of $0}"
ZONE="${ZONE:?is not set: give the zone of the TPU, such as us-west4-a}"
TYPE="${TYPE:?is not set: give the accelerator type, such as v5litepod-16}"
VERSION="${VERSION:-tpu-ubuntu2204-base}"
POLL="${POLL:-30}"
PLACE=(--zone="$ZONE")
[[ -z "${PROJECT:-}" ]] || PLACE+=(--project="$PROJECT")
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

for flag in "$@"; do
    if [[ "$flag" == --*hub_token* ]]; then
        echo "error: a token among the flags would be printed with each command. Export HF_TOKEN in its place." >&2
        exit 2
    fi
done

show() {
    printf '+' >&2
    printf ' %q' "$@" >&2
    printf '\n' >&2
}

do_it() {
    show "$@"
    [[ -n "${DRY_RUN:-}" ]] || "$@"
}

on_all_hosts() {
    do_it gcloud compute tpus tpu-vm ssh "$TPU" "${PLACE[@]}" --worker=all --command="$1"
}

# ACTIVE, or what else has become of it; ABSENT where there is none of that name, UNKNOWN where nobody answers.
state() {
    local said
    if said="$(gcloud compute tpus queued-resources describe "$TPU" "${PLACE[@]}" --format='value(state.state)' 2>&1)"; then
        tail -n 1 <<<"$said"
    elif grep -q NOT_FOUND <<<"$said"; then
        echo ABSENT
    else
        echo UNKNOWN
    fi
}

create() {
    local spot=()
    [[ -z "${SPOT:-}" ]] || spot=(--spot)
    do_it gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" "${PLACE[@]}" \
        --accelerator-type="$TYPE" --runtime-version="$VERSION" "${spot[@]}"
    [[ -n "${DRY_RUN:-}" ]] || wait_for_it
}

wait_for_it() {
    local now
    while now="$(state)" && [[ "$now" != ACTIVE ]]; do
        if [[ "$now" =~ ^(FAILED|SUSPENDED|ABSENT)$ ]]; then
            echo "error: the TPU $TPU was not given: it is $now. See gcloud compute tpus queued-resources describe." >&2
            return 1
        fi
        echo "The TPU $TPU is $now; looking again in $POLL s." >&2
        sleep "$POLL"
    done
}

delete() {
    do_it gcloud compute tpus queued-resources delete "$TPU" "${PLACE[@]}" --force --quiet
}

install() {
    local archive="${TMPDIR:-/tmp}/xtremes_jax-$TPU.tar.gz"
    do_it git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD
    do_it gcloud compute tpus tpu-vm scp "$archive" "$TPU:xtremes_jax.tar.gz" "${PLACE[@]}" --worker=all
    on_all_hosts 'set -e; mkdir -p xtremes_jax; tar -xzf xtremes_jax.tar.gz -C xtremes_jax; cd xtremes_jax
sudo apt-get update -q; sudo apt-get install -y -q python3-pip nfs-common
python3 -m pip install -q --user uv
[ -d .venv ] || python3 -m uv venv -q --python 3.12 --seed .venv
.venv/bin/pip install -q -r requirements.txt "jax[tpu]" gcsfs'
    if [[ -n "${NFS:-}" ]]; then
        on_all_hosts "sudo mkdir -p /mnt/shared
mountpoint -q /mnt/shared || sudo mount -t nfs $(printf %q "$NFS") /mnt/shared"
    fi
    if [[ -n "${HF_TOKEN:-}" ]]; then
        show gcloud compute tpus tpu-vm scp TOKEN "$TPU:.cache/huggingface/token" "${PLACE[@]}" --worker=all
        [[ -n "${DRY_RUN:-}" ]] || hand_token_on
    fi
}

hand_token_on() {
    token_file="$(mktemp)" # which only this user can read
    trap 'rm -f "$token_file"' EXIT
    printf %s "$HF_TOKEN" >"$token_file"
    gcloud compute tpus tpu-vm ssh "$TPU" "${PLACE[@]}" --worker=all --command='mkdir -p -m 700 .cache/huggingface'
    gcloud compute tpus tpu-vm scp "$token_file" "$TPU:.cache/huggingface/token" "${PLACE[@]}" --worker=all
}

run() {
    local flags
    printf -v flags ' %q' "$@"
    # The hosts find each other. A run that has outlived its connection saves first, and goes on in this one.
    on_all_hosts "pkill -TERM -u \$USER -x python; while pgrep -u \$USER -x python >/dev/null; do sleep 1; done
cd xtremes_jax && exec .venv/bin/python -m xtremes_jax.train --disable_tqdm$flags"
}

train() {
    for flag in "$@"; do
        if [[ "$flag" == --overwrite_output_dir* ]]; then
            echo "error: with --overwrite_output_dir the run would start afresh on each TPU. Leave it out." >&2
            return 2
        fi
    done
    if [[ -z "${NFS:-}" ]]; then
        echo "error: without NFS the checkpoints would be gone with the TPU. Set NFS to HOST:/SHARE." >&2
        return 2
    fi
    while true; do
        local now=ABSENT status=0
        [[ -n "${DRY_RUN:-}" ]] || now="$(state)"
        case "$now" in
        ACTIVE) ;;
        ABSENT) create ;;
        ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING | CREATING) wait_for_it ;;
        UNKNOWN)
            echo "error: gcloud does not tell what the TPU $TPU is. See gcloud compute tpus queued-resources list." >&2
            return 1
            ;;
        *) delete && create ;;
        esac
        # By themselves, as bash minds no errors in what is part of a condition.
        "$BASH" "$0" install && "$BASH" "$0" run "$@" || status=$?
        [[ "$status" != 0 && -z "${DRY_RUN:-}" ]] || return "$status"
        sleep "$POLL" # a TPU that is taken back may be called active for a while
        [[ "$(state)" != ACTIVE ]] || return "$status"
        echo "The TPU $TPU was taken back. Asking for another, where the run goes on from its last checkpoint." >&2
    done
}

command="${1:-}"
[[ $# == 0 ]] || shift
case "$command" in
create | install | delete) "$command" ;;
run | train) "$command" "$@" ;;
*)
    echo "error: give one of create, install, run FLAGS, train FLAGS, delete; see the head of $0." >&2
    exit 2
    ;;
esac
