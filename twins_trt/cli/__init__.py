"""The command line. Every command is a module with EXAMPLE, `configure(parser)` and `run(arguments, console)`.

Exit codes: 0 done, 1 error, 2 usage, 3 gate failed, 4 the environment lacks something, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, ModuleType

from twins_trt.cli.console import Console, LogHandler, dump_json
from twins_trt.cli.parsing import nearest, new_parser, unknown_options
from twins_trt.errors import MissingDependencyError, TwinsError, UsageError, missing
from twins_trt.version import __version__

# The summary of each command. Their modules are imported one at a time, so that --help is instant.
COMMANDS = {
    "models": "list the models, with what was published for each",
    "fetch": "download a model's published ADE20K weights, resumed and checked",
    "convert": "convert weights between the official Twins repository and mmsegmentation",
    "export": "write a model as an ONNX graph",
    "calibrate": "collect the ranges of a graph's activations over images, for INT8",
    "targets": "list the devices that a build can name, and what each allows",
    "build": "build a bundle: graph, engines and audit",
    "compile": "compile a bundle's graph into an engine for the GPU of this machine",
    "gate": "judge a bundle: mIoU drop beside the PyTorch model it was built from, speed beside another bundle",
    "eval": "score a bundle or a PyTorch model on a data set: mIoU, accuracy, IoU per class",
    "train": "fine-tune a model on a data set: resumable, on one process or several",
    "profile": "measure bundles side by side: latency by stage and layer, throughput, memory, energy",
    "predict": "segment images with a bundle: masks and overlays as PNG",
    "report": "put what is known of a bundle on one page: HTML that works offline, or Markdown",
    "export-to": "hand a bundle over to a device, Triton Inference Server, DeepStream or Isaac ROS",
    "kernels": "list, check or write the Triton kernels for GPUs that need not be there, as cubins for C++",
    "inspect": "say what a bundle, an ONNX graph or a checkpoint is",
    "demo": "the whole way from checkpoint to report, on a CPU: calibrate, build INT8, audit, gate, profile",
    "doctor": "say which commands work on this machine, what is broken, and what mends it",
}

INTERRUPTED = 130  # 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM
BROKEN_PIPE = 141  # 128 + SIGPIPE

log = logging.getLogger("twins_trt")


def main(argv: Sequence[str] | None = None, *, on_error: Callable[[Exception], None] | None = None) -> int:
    """Runs one command line and returns its exit code.

    argv: the words after `twins-trt`; by default the process's. on_error: called with the exception that ends the
    command, before it is reported.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _forgive_odd_names()
    verbose = sum(word.count("v") for word in words if word in ("-v", "-vv", "-vvv")) + words.count("--verbose")
    console = Console(as_json="--json" in words)
    with _logging_to(console, verbose), _termination_as_exit():
        try:
            code = _dispatch(words, console)
            sys.stdout.flush()  # a closed pipe can still be caught here
            return code
        except SystemExit as error:  # argparse after --help, and SIGTERM
            return error.code if isinstance(error.code, int) else 0
        except BrokenPipeError:
            # The interpreter flushes stdout once more at its end, which must not complain.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except KeyboardInterrupt:
            console.note("interrupted")
            return INTERRUPTED
        except Exception as error:
            if on_error is not None:
                on_error(error)
            return _report(_typed(error, words), error, console, verbose=verbose > 0)


def command_module(name: str) -> ModuleType:
    """The module of the command `name`, a key of COMMANDS."""
    return importlib.import_module(f"twins_trt.cli.{name.replace('-', '_')}")


def _dispatch(words: list[str], console: Console) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else UsageError.exit_code
    if words[0] == "--version":
        print(f"twins-trt {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        kind = "option" if name.startswith("-") else "command"
        raise UsageError(f"there is no {kind} {name!r}", f"use one of: {', '.join(near or COMMANDS)}")
    from twins_trt.verbs.command_line import on_command_line

    command = command_module(name)
    parser = new_parser(f"twins-trt {name}", summary=COMMANDS[name], example=command.EXAMPLE)
    command.configure(parser)
    arguments, extra = parser.parse_known_args(words[1:])
    if extra:
        raise unknown_options(parser, extra)
    with on_command_line(getattr(command, "FLAGS", None)):
        return int(command.run(arguments, console))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: twins-trt COMMAND [OPTIONS]",
            "",
            "Twins segmentation models as TensorRT engines.",
            "",
            *lines,
            "",
            "twins-trt COMMAND -h shows a command's options and an example; twins-trt --version the version.",
            "Exit codes: 0 done, 1 error, 2 usage, 3 gate failed, 4 the environment lacks something.",
        ]
    )


def _typed(error: Exception, words: list[str]) -> TwinsError:
    """The error of this package that stands for any exception."""
    from twins_trt.diagnosis.packages import providing

    if isinstance(error, TwinsError):
        return error
    if isinstance(error, ImportError):
        package = providing(error.name or "") if isinstance(error, ModuleNotFoundError) else None
        if package is not None and package.extra is not None:
            return missing(package.distribution, extra=package.extra, purpose=f"twins-trt {words[0]}")
        return MissingDependencyError(f"a package cannot be loaded: {error}", "twins-trt doctor shows which, and why")
    if isinstance(error, MemoryError):
        return TwinsError("out of memory", "close other programs, or use a smaller --size or --batch")
    if isinstance(error, OSError) and error.filename is not None:
        return TwinsError(f"{error.filename}: {error.strerror}", "check the path, its permissions and the free space")
    lines = str(error).strip().splitlines()
    message = f": {lines[0]}" if lines else ""
    return TwinsError(
        f"unexpected {type(error).__name__}{message}",
        "this is a bug: run it again with -v, and report what it prints together with twins-trt doctor --json",
    )


def _report(error: TwinsError, original: Exception, console: Console, *, verbose: bool) -> int:
    if verbose and error is not original:
        import traceback

        console.note("".join(traceback.format_exception(original)).rstrip())
    console.note(f"error: {error}")
    if console.as_json:
        print(dump_json({"error": error.cause, "fix": error.fix}))
    return error.exit_code


@contextlib.contextmanager
def _logging_to(console: Console, verbose: int) -> Iterator[None]:
    """Shows the package's log on stderr while a command runs."""
    handler, level = LogHandler(console), log.level
    log.addHandler(handler)
    log.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    try:
        yield
    finally:
        console.clear()
        log.removeHandler(handler)
        log.setLevel(level)


@contextlib.contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Makes SIGTERM unwind the stack as Ctrl-C does, so that half-written files are removed.

    A caller that ignores or handles the signal keeps its own way.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _forgive_odd_names() -> None:
    """Escapes the bytes of file names that the terminal's encoding lacks, instead of failing at them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
