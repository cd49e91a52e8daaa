"""Every command: help, exit codes, output, and what an interrupt leaves behind."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import MODEL, SMALL, Twins, replace_command

import twins_trt.cli as cli
from twins_trt.cli.console import Console, table
from twins_trt.cli.parsing import new_parser
from twins_trt.errors import GateError, UsageError
from twins_trt.verbs.kinds import parse_batch, parse_size, parse_test_scale
from twins_trt.version import __version__


def test_the_overview_lists_every_command_and_each_has_help_with_an_example(twins: Twins) -> None:
    overview = twins("--help")
    assert overview.code == 0
    for command in cli.COMMANDS:
        assert f"\n  {command} " in overview.out
        ran = twins(command, "-h")
        assert ran.code == 0
        assert f"example:\n  twins-trt {command} " in ran.out
        assert "--json" in ran.out and "--verbose" in ran.out


def test_an_option_of_several_commands_is_the_same_everywhere() -> None:
    shapes: dict[str, set[tuple[object, object]]] = {}
    for command in cli.COMMANDS:
        parser = new_parser("twins-trt", summary="", example="")
        cli.command_module(command).configure(parser)
        for action in parser._actions:
            for option in action.option_strings:
                shapes.setdefault(option, set()).add((action.metavar, action.nargs))
    own = {"--out", "--engine", "--batch", "--precision", "--target"}  # a file or a folder; what may be chosen differs
    assert {option: found for option, found in shapes.items() if len(found) > 1 and option not in own} == {}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_defaults_are_said_alike(twins: Twins, command: str) -> None:
    shown = " ".join(twins(command, "-h").out.split())
    assert re.findall(r"default \S+", re.sub(r"\(default\)|by default|default:", "", shown)) == []


def test_only_commands_that_exist_are_listed() -> None:
    folder = Path(cli.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {
        "__init__",
        "__main__",
        "console",
        "parsing",
        "environment",
        "inspect_checkpoint",
    }
    assert {name.replace("-", "_") for name in cli.COMMANDS} == modules


def test_no_command_shows_the_overview_and_is_a_usage_error(twins: Twins) -> None:
    assert twins().code == 2
    assert "doctor" in twins().out


def test_version(twins: Twins) -> None:
    ran = twins("--version")
    assert (ran.code, ran.out) == (0, f"twins-trt {__version__}\n")


def test_help_imports_nothing_heavy_and_is_fast() -> None:
    script = (
        "import sys, time; start = time.perf_counter(); from twins_trt.cli import main; main(['--help']);"
        "took = time.perf_counter() - start;"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'cv2', 'PIL', 'tensorrt_rtx'} & set(sys.modules);"
        "print(took, sorted(heavy), file=sys.stderr)"
    )
    best, heavy = 1e9, ""
    for _ in range(3):  # the best of three: others use this machine as well
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        took, heavy = done.stderr.split(" ", 1)
        best = min(best, float(took))
    assert heavy.strip() == "[]"
    assert best < 0.15


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        (GateError("0.4 below the gate", "raise blocks"), 3, "0.4 below the gate"),
        (RuntimeError("odd"), 1, "unexpected RuntimeError: odd"),
        (MemoryError(), 1, "out of memory"),
        (PermissionError(13, "Permission denied", "x.onnx"), 1, "x.onnx: Permission denied"),
        (ImportError("libfoo.so.1 not found"), 4, "a package cannot be loaded: libfoo.so.1 not found"),
        (ModuleNotFoundError("No module named 'onnx.helper'", name="onnx.helper"), 4, "twins-trt models needs onnx"),
    ],
)
def test_any_error_is_one_cause_and_one_mend(
    twins: Twins, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, cause: str
) -> None:
    def fail() -> int:
        raise error

    replace_command(monkeypatch, "models", fail)
    quiet = twins("models", "--json")
    assert quiet.code == code
    assert set(quiet.json) == {"error", "fix"}
    assert quiet.json["error"].startswith(cause)
    assert quiet.err.startswith(f"error: {cause}") and "\n  fix: " in quiet.err
    assert "Traceback" not in quiet.err
    plain = twins("models")
    assert (plain.code, plain.out) == (code, "")
    assert ("Traceback" in twins("models", "-v").err) == (not isinstance(error, GateError))


def test_logging_is_on_stderr_by_level_and_gone_afterwards(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("twins_trt")

    def speak() -> int:
        log.debug("one")
        log.info("two")
        log.warning("three")
        return 0

    replace_command(monkeypatch, "models", speak)
    before = (log.level, list(log.handlers))
    assert twins("models").err == "warning: three\n"
    assert twins("models", "-v").err == "info: two\nwarning: three\n"
    assert twins("models", "-vv").err == "debug: one\ninfo: two\nwarning: three\n"
    assert (log.level, log.handlers) == before


def test_an_interrupt_is_one_line_and_130(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    replace_command(monkeypatch, "models", interrupt)
    assert (twins("models").code, twins("models").err) == (130, "interrupted\n")


def test_a_reader_that_goes_away_gets_no_complaint() -> None:
    script = "import sys; from twins_trt.cli import main; sys.exit(main(['models', '--json']))"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.parametrize(
    ("number", "code", "step", "target"),
    [(signal.SIGINT, 130, "engine", "sm_89"), (signal.SIGTERM, 143, "weights", "cpu")],
)
def test_a_build_that_is_stopped_leaves_nothing(tmp_path: Path, number: int, code: int, step: str, target: str) -> None:
    if target != "cpu":
        pytest.importorskip("tensorrt_rtx")
    (scratch := tmp_path / "scratch").mkdir()
    (place := tmp_path / "place").mkdir()
    words = ["build", MODEL, "--seeded", *SMALL, "--target", target, "--out", str(place / "x.bundle"), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "twins_trt.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None and process.stdout is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if step in line:
            assert bool(list(scratch.rglob("graph.onnx"))) == (step == "engine")
            time.sleep(0.2)
            process.send_signal(number)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=60) == code, "".join(seen) + rest
    assert "Traceback" not in rest
    assert process.stdout.read() == ""
    assert list(scratch.iterdir()) == [] and list(place.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_redrawn_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "30")
    console = Console()
    console.progress("[1/2] graph", "a detail that is much too long for it", 0.5)
    console.progress("[2/2] x")
    console.note("done")
    first, second, cleared = stream.getvalue().split("\r")[1:4]
    assert first == "[1/2] graph  50 %  a detai..." and len(first) == 29
    assert second == "[2/2] x".ljust(29)
    assert cleared == " " * 7  # what the last line drew, and no more
    assert stream.getvalue().endswith("\rdone\n")


def test_progress_is_one_line_a_step_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    console = Console()
    for share in (0.0, 0.5, 1.0):
        console.progress("[1/2] weights", share=share)
    console.progress("[2/2] graph", "fp16")
    assert stream.getvalue() == "[1/2] weights   0 %\n[2/2] graph  fp16\n"


def test_a_long_step_says_now_and_then_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    console = Console()
    for second in range(0, 25, 4):
        clock[0] = 100.0 + second
        console.progress("eval", f"{second}")
    assert stream.getvalue() == "eval  0\neval  12\neval  24\n"


def test_results_are_ascii_json_whatever_a_name_holds(capsys: pytest.CaptureFixture[str]) -> None:
    name = "straße\udcff.png"  # a byte that is no UTF-8, as os.listdir gives it
    Console(as_json=True).result({"image": name}, "")
    printed = capsys.readouterr().out
    assert printed.isascii() and json.loads(printed)["image"] == name


def test_names_out_of_files_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.note("a\x1b[2Jb")
    console.progress("step\r", "\x07")
    console.result({}, "two\nlines\x1b]0;title")
    printed = capsys.readouterr()
    assert (printed.err, printed.out) == ("a?[2Jb\nstep?  ?\n", "two\nlines?]0;title\n")


def test_a_table_is_as_wide_as_its_cells() -> None:
    assert table([("a", "1"), ("bcd", "22")], right=frozenset({1})) == "a     1\nbcd  22"


def test_sizes() -> None:
    assert parse_size("512x384") == (512, 384)
    assert parse_size("512") == (512, 512)
    assert parse_size("360X480") == (360, 480)
    height, width = parse_size("256:512:1024x256:512:2048")
    assert (height.min, height.opt, height.max) == (256, 512, 1024)  # type: ignore[union-attr]
    assert (width.min, width.opt, width.max) == (256, 512, 2048)  # type: ignore[union-attr]
    assert parse_size("64:96:128")[0] == parse_size("64:96:128")[1]
    assert parse_batch("8") == 8
    batch = parse_batch("1:4:16")
    assert (batch.min, batch.opt, batch.max) == (1, 4, 16)  # type: ignore[union-attr]
    assert parse_test_scale("512x2048") == parse_test_scale("2048x512") == (2048, 512)
    assert parse_test_scale("none") == "none"


@pytest.mark.parametrize("text", ["", "x", "64x", "x64", "64x64x64", "-64x64", "6.4x64", "64:128x64", "1e3", "64x9999"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"size|side"):
        parse_size(text)
