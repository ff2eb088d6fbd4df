#!/usr/bin/env bash
# Installs what the tests need into .venv (made if missing) and runs them all. Arguments go to pytest.
# PYTHON chooses the interpreter (3.11 to 3.13), VENV the environment's folder, TEST_PROCESSES how many run at once.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
"$venv/bin/ruff" check .
exec "$venv/bin/python" -m pytest --numprocesses "${TEST_PROCESSES:-auto}" --maxprocesses 8 --dist loadfile "$@"
