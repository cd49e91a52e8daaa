"""What hadolint does not check of the Dockerfiles. No Docker built them here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from twins_trt.cli import COMMANDS, command_module
from twins_trt.cli.parsing import new_parser

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
JETSON = [file for file in FILES if file.name.startswith("jetpack")]


def instructions(file: Path) -> list[tuple[str, str]]:
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, rest in lines]


def ids(file: Path) -> str:
    return file.stem


def test_there_is_one_for_desktops_and_one_for_each_jetpack() -> None:
    assert [file.stem for file in FILES] == ["desktop", "jetpack6.0", "jetpack6.1", "jetpack7"]


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_an_image_runs_as_an_ordinary_user_and_checks_its_health(file: Path) -> None:
    steps = instructions(file)
    last = max(index for index, (name, _) in enumerate(steps) if name == "FROM")
    final = dict(steps[last:])
    assert final["USER"].isdigit() and final["USER"] != "0"
    assert f"--uid {final['USER']}" in final["RUN"]
    assert '["twins-trt", "doctor", "--for", "predict"]' in final["HEALTHCHECK"]
    assert final["ENTRYPOINT"] == '["twins-trt"]'
    (copied,) = (rest for name, rest in steps[last:] if name == "COPY")
    assert copied == "--from=build /venv /venv"  # no source, no pip cache


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_base_images_have_a_version(file: Path) -> None:
    bases = [rest for name, rest in instructions(file) if name == "FROM"]
    assert {base.split()[0] for base in bases} == {"${BASE}"}
    (base,) = re.findall(r"^ARG BASE=(\S+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert re.search(r":[\w.-]*\d+\.\d+", base)


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_what_is_copied_reaches_docker(file: Path) -> None:
    """.dockerignore keeps only what it names, and that includes all that the Dockerfiles give to pip."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    used = set(re.findall(r"/source/([\w.]+)", file.read_text(encoding="utf-8")))
    assert used and used <= kept
    assert {"setup.py", "pyproject.toml", "README.md", "twins_trt", "kernels", "builders", "calib"} <= kept


@pytest.mark.parametrize("file", JETSON, ids=ids)
def test_a_jetsons_tensorrt_is_the_base_images(file: Path) -> None:
    runs = " ".join(rest for name, rest in instructions(file) if name == "RUN")
    assert "venv --system-site-packages" in runs
    assert "import tensorrt" in runs
    assert not re.search(r"pip install[^&]*tensorrt", runs)


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_the_command_that_the_comment_gives_is_one(file: Path) -> None:
    comments = "\n".join(re.findall(r"^#(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)).replace("\\\n", " ")
    (words,) = re.findall(r"docker run .* twins-trt (.+)$", comments, re.MULTILINE)
    command, *rest = shlex.split(words)
    assert command in COMMANDS
    parser = new_parser("twins-trt", summary="", example="")
    command_module(command).configure(parser)
    assert parser.parse_known_args(rest)[1] == []
    assert f"docker build -f docker/{file.name} " in comments
