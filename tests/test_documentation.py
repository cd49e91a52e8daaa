"""The documentation fits the code: tables are rendered, commands parse, links lead to files, examples import."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
from words import retired_words

from benchmarks import kernel_tables, render
from twins_trt.cli import COMMANDS, command_module
from twins_trt.cli.parsing import new_parser
from twins_trt.models import list_models

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PYTHON_PAGES = ("README.md", "docs/api.md")
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
DOCS = [name for name in NAMES if name.startswith("docs/")]
PROGRAM = r"(\S*/)?(twins-trt|python|run_tests\.sh|quickstart\.sh|venv\.sh)\b"
METADATA = {"twins_trt.model", "twins_trt.precision", "twins_trt.attentions", "twins_trt.info"}
"""Keys of a graph's metadata: no names of modules."""


def shell_commands() -> list[tuple[str, str]]:
    """Page and command of every indented or fenced shell line that starts one of our programs."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            command = line.split("#", 1)[0].strip()
            if line.startswith("    ") and re.match(PROGRAM, command):
                found.append((page.name, command))
    return found


def code(text: str) -> str:
    """The fenced and indented blocks of a page, without comments, and its code spans. Rendered tables are left out:
    results files keep the words that they were written with."""
    text = re.sub(r"<!-- begin ([\w-]+).*?<!-- end \1 -->", "", text, flags=re.DOTALL)
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    blocks = "\n".join([*fenced, *re.findall(r"^    .*$", text, re.MULTILINE)])
    return "\n".join([re.sub(r"#.*", "", blocks), *re.findall(r"`([^`]+)`", text)])


def retired_patterns() -> list[str]:
    """Patterns of the retired words. `Manifest` and `Progress` are among these, but keep one of their meanings."""
    words = set(retired_words()) - {"Manifest", "Progress"}
    return sorted(re.escape(word).replace(r"\.\.\.", r"\w*") for word in words)


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
        assert f"| `{name}` |" in kernel_tables.kernels()


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


@pytest.mark.parametrize("name", DOCS)
def test_a_page_opens_with_its_command(name: str) -> None:
    """A command or a call comes first, behind two sentences at most."""
    title, _, text = (ROOT / name).read_text(encoding="utf-8").partition("\n\n")
    assert title.startswith("# ")
    before, block = re.split(r"^(?=```python\n|    )", text, maxsplit=1, flags=re.MULTILINE)
    assert len(re.findall(r"[.:!?](?=\s)", before)) <= 2 and "|" not in before and "#" not in before
    assert block.startswith("```python\n") or re.match(PROGRAM, block.strip())


def test_the_table_of_words_is_read() -> None:
    words = retired_patterns()
    assert {"forms", "Lane", r"\w*Settings", "plan_build"} <= set(words)
    assert not {"PrecisionPlan", "Progress", "Manifest", "target"} & set(words)
    assert re.search(rf"(?<!\w){words[words.index('forms')]}(?!\w)", code("a\n\n    twins-trt export --forms cpu\n"))
    assert code("<!-- begin t -->\n    new\n<!-- end t -->") == code("    # new\n").strip() == ""


@pytest.mark.parametrize("name", ["README.md", *DOCS])
def test_code_of_the_documentation_has_no_retired_word(name: str) -> None:
    text = code((ROOT / name).read_text(encoding="utf-8"))
    found = {word for word in retired_patterns() if re.search(rf"(?<!\w){word}(?!\w)", text)}
    assert not found, "see the table of words in CONTRIBUTING.md"


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
    for path in re.findall(
        r"`((?:docs|docker|tests|benchmarks|examples|builders|calib|kernels|twins_trt)/[\w/]*)`", text
    ):
        assert (ROOT / path).is_dir(), path


@pytest.mark.parametrize("name", NAMES)
def test_modules_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for dotted in re.findall(r"(?<![\w.])twins_trt(?:\.[A-Za-z_]\w*)+", text):
        if dotted not in METADATA:
            pkgutil.resolve_name(dotted)  # raises where there is none


@pytest.mark.parametrize("name", NAMES)
def test_python_examples_import_what_is_there(name: str) -> None:
    for block in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("name", NAMES)
def test_python_examples_call_what_is_there(name: str) -> None:
    """What a block imports takes the arguments that the block gives it."""
    for block in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL):
        nodes = list(ast.walk(ast.parse(block)))
        imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
        known = {alias.name: f"{node.module}:{alias.name}" for node in imports for alias in node.names}
        for call in nodes:
            if not isinstance(call, ast.Call):
                continue
            spelled = ast.unparse(call.func)
            target = spelled if spelled.startswith("twins_trt.") else known.get(spelled)
            if target is not None:
                given = {keyword.arg: None for keyword in call.keywords if keyword.arg}
                inspect.signature(pkgutil.resolve_name(target)).bind_partial(*call.args, **given)


def test_the_first_page_and_the_page_on_python_show_one_example() -> None:
    first, second = (re.search(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL) for name in PYTHON_PAGES)
    assert first is not None and second is not None and first[1] == second[1]


def test_the_first_page_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n    examples/quickstart.sh\n" in text
    assert "\n    ./run_tests.sh\n" in text
