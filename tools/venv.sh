#!/usr/bin/env bash
# Makes the virtual environment that every command of this repository uses, unless it is there and up to date.
#
#   tools/venv.sh            prints the environment's folder
#
# PYTHON: the interpreter to make it with (default python3). TWINS_TRT_VENV: where (default .venv in the checkout).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${TWINS_TRT_VENV:-$root/.venv}
python=${PYTHON:-python3}

wanted=$(cat "$root/constraints.txt" "$root/setup.py" "$root/pyproject.toml" | cksum)
if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.twins-trt" 2>/dev/null)" = "$wanted $root" ]; then
    echo "$venv"
    exit
fi

command -v "$python" >/dev/null || { echo "no $python here: install Python 3.10 or later, or set PYTHON" >&2; exit 4; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "$("$python" --version) is too old: set PYTHON to 3.10 or later" >&2
    exit 4
}
"$python" -c 'import venv, ensurepip' 2>/dev/null || {
    echo "$python cannot make virtual environments: on Debian and Ubuntu, apt install python3-venv" >&2
    exit 4
}
echo "setting up $venv: torch, onnx, onnxruntime, TensorRT-RTX and the test tools, a few minutes" >&2
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$root/constraints.txt" \
    --editable "$root[dev]" >&2
echo "$wanted $root" >"$venv/.twins-trt"
echo "$venv"
