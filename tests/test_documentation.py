"""The documentation says what is so: tables are rendered, commands parse, links lead somewhere, examples import."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest

import twins_trt
from benchmarks import render
from twins_trt.cli import COMMANDS, command_module
from twins_trt.cli.parsing import new_parser
from twins_trt.models import list_models

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PYTHON_PAGES = ("README.md", "docs/api.md")
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def shell_commands() -> list[tuple[str, str]]:
    """Page and command of every indented or fenced shell line that starts one of our programs."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            command = line.split("#", 1)[0].strip()
            if line.startswith("    ") and re.match(
                r"(\S*/)?(twins-trt|python|run_tests\.sh|quickstart\.sh|venv\.sh)\b", command
            ):
                found.append((page.name, command))
    return found


@pytest.mark.parametrize("name", render.SECTIONS)
def test_tables_are_what_the_renderer_writes(name: str) -> None:
    stale = render.outdated([name])
    assert not stale, f"run python -m benchmarks.render: {', '.join(path.name for path in stale)} is out of date"


@pytest.mark.parametrize("file", render.FIGURES)
def test_figures_are_what_the_renderer_draws(file: str) -> None:
    drawn = render.FIGURES[file]()
    assert (ROOT / file).read_text(encoding="utf-8") == drawn
    ElementTree.fromstring(drawn)


def test_every_marked_table_is_rendered() -> None:
    marked = {
        (str(page.relative_to(ROOT)), name)
        for page in PAGES
        for name in re.findall(r"<!-- begin ([\w-]+)", page.read_text(encoding="utf-8"))
    }
    assert marked == {(file, name) for name, (file, _) in render.SECTIONS.items()}


def test_a_table_is_replaced_between_its_markers_only() -> None:
    text = "a\n<!-- begin t (how) -->\nold\n<!-- end t -->\nb <!-- begin tt --><!-- end tt -->"
    new = render.replace_section(text, "t", r"\1 new")
    assert new == "a\n<!-- begin t (how) -->\n\n\\1 new\n\n<!-- end t -->\nb <!-- begin tt --><!-- end tt -->"
    assert render.replace_section(new, "t", r"\1 new") == new
    with pytest.raises(ValueError, match="exactly once"):
        render.replace_section(text, "u", "")


def test_the_kernel_table_has_every_model() -> None:
    for name in list_models():
        assert f"| `{name}` |" in render.kernels()


@pytest.mark.parametrize(("page", "command"), shell_commands())
def test_commands_in_the_documentation_parse(page: str, command: str) -> None:
    words = [word for word in shlex.split(command) if word != "..."]
    if words[0].endswith("twins-trt"):
        if words[1:] == ["--version"]:
            return
        parser = new_parser("twins-trt", summary="", example="")
        assert words[1] in COMMANDS
        command_module(words[1]).configure(parser)
        _, extra = parser.parse_known_args(words[2:])  # raises UsageError for a value that is not allowed
        assert not extra
    elif words[0].endswith("python") and words[1:2] == ["-m"]:
        assert importlib.util.find_spec(words[2]) is not None
    elif words[0].endswith("python"):
        assert (ROOT / words[1]).is_file()
    else:
        assert (ROOT / words[0]).stat().st_mode & 0o111


def test_the_documentation_has_commands() -> None:
    pages = [page for page, _ in shell_commands()]
    assert pages.count("README.md") >= 5
    assert {"engines.md", "bundle.md", "install.md", "CONTRIBUTING.md"} <= set(pages)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "http://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for path in re.findall(
        r"(?<![\w/.<-])((?:docs|tests|benchmarks|examples|builders|kernels|twins_trt)/[\w/.-]+\.\w+)", text
    ):
        if "NAME" not in path:
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", NAMES)
def test_python_examples_import_what_is_there(name: str) -> None:
    for block in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("name", NAMES)
def test_python_examples_call_what_is_there(name: str) -> None:
    for block in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL):
        for call in ast.walk(ast.parse(block)):
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("twins_trt."):
                called = twins_trt
                for part in ast.unparse(call.func).split(".")[1:]:
                    called = getattr(called, part)
                inspect.signature(called).bind_partial(
                    *call.args, **{keyword.arg: None for keyword in call.keywords if keyword.arg}
                )


def test_the_first_page_and_the_page_on_python_show_one_example() -> None:
    first, second = (re.search(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL) for name in PYTHON_PAGES)
    assert first is not None and second is not None and first[1] == second[1]


def test_the_first_page_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n    examples/quickstart.sh\n" in text
    assert "\n    ./run_tests.sh\n" in text
