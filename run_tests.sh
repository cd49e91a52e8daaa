#!/usr/bin/env bash
# Runs the tests, in a virtual environment that it makes if there is none. Arguments go to pytest:
#
#   ./run_tests.sh                        everything
#   ./run_tests.sh -m "not slow" -n 2     the quick ones, two at a time
set -euo pipefail
cd "$(dirname "$0")"
venv=$(tools/venv.sh)
exec "$venv/bin/python" -m pytest "$@"
