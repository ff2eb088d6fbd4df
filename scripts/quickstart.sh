#!/usr/bin/env bash
# From nothing to a scored model: makes .venv, installs, trains a small recogniser on the built-in synthetic corpus and
# scores it on sentences it has not heard. About eleven minutes on two CPU cores. Arguments go to xtremes_jax.train.
# PYTHON chooses the interpreter (3.11 to 3.13), VENV the environment's folder, OUTPUT the run's.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
python=${PYTHON:-python3}
[ ! -x "$venv/bin/python" ] || python=$venv/bin/python
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
    echo "error: $python is not Python 3.11 to 3.13. Set PYTHON to one that is, and VENV to a folder that is not there." >&2
    exit 2
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "Installing into $venv (a minute or two) ..."
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
exec "$venv/bin/python" -m xtremes_jax.train scripts/quickstart.json --output_dir "${OUTPUT:-output/quickstart}" "$@"
