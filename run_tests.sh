#!/usr/bin/env bash
# Runs the tests, in a virtual environment that it makes if there is none. Arguments go to pytest:
#
#   ./run_tests.sh                        everything
#   ./run_tests.sh -m "not slow" -n 2     the quick ones, two at a time
#
# TWINS_TRT_PYTHON: an interpreter to run them with as it is; nothing is made or installed. What it lacks is skipped by
# name. For machines with an environment of their own or without a network:
#
#   TWINS_TRT_PYTHON=python3 ./run_tests.sh -m gpu
set -euo pipefail
cd "$(dirname "$0")"
python=${TWINS_TRT_PYTHON:-}
if [ -z "$python" ]; then
    venv=$(tools/venv.sh)
    python=$venv/bin/python
fi
command -v "$python" >/dev/null || { echo "there is no $python: set TWINS_TRT_PYTHON to an interpreter, or unset it" >&2; exit 4; }
"$python" -c 'import pytest' 2>/dev/null || { echo "$python has no pytest: install it, or unset TWINS_TRT_PYTHON" >&2; exit 4; }
exec "$python" -m pytest "$@"
