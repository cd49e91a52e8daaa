"""Every error that this package raises on purpose: a cause in one sentence and, if possible, a line that fixes it."""

from __future__ import annotations


class TwinsError(Exception):
    """Base of all errors of this package.

    `cause`: one sentence. `fix`: one line with the command or change that mends it. `exit_code`: the CLI's exit code.
    """

    exit_code = 1

    def __init__(self, cause: str, fix: str | None = None) -> None:
        self.cause = cause
        self.fix = fix
        super().__init__(cause if fix is None else f"{cause}\n  fix: {fix}")


class UsageError(TwinsError, ValueError):
    """An argument is not one this call takes (unknown model, target, precision, size, option)."""

    exit_code = 2


class CheckpointError(TwinsError):
    """A checkpoint is missing, truncated, unsafe, or does not fit the model. Nothing was loaded."""


class FetchError(TwinsError):
    """A download failed or what arrived does not match its sha256."""


class ImageError(TwinsError):
    """An image cannot be found, decoded or used at this size."""


class DataError(TwinsError):
    """A dataset's folder, labels or classes are not what its layout asks for."""


class ExportError(TwinsError):
    """The model cannot be written as the graph that was asked for."""


class BuildError(TwinsError):
    """The compiler refused a graph, a target or a setting."""


class UnfusedAttentionError(BuildError):
    """An FP16 or INT8 engine left an attention unfused."""


class BundleError(TwinsError):
    """A bundle is incomplete, altered, or made for something else."""


class EngineError(TwinsError):
    """An engine cannot be loaded or run here."""


class GateError(TwinsError):
    """An engine's accuracy is outside the gate's thresholds, or the gate's reference is doubtful."""

    exit_code = 3


class PackError(TwinsError):
    """A gate's pack is damaged, cannot be written, or was made for something else."""


class ProfileError(TwinsError):
    """Profile results cannot be read, written or compared."""


class ReportError(TwinsError):
    """What a report is made from cannot be read, or the report cannot be written."""


class TrainingError(TwinsError):
    """A training run diverged, or its folder cannot be written or resumed from."""


class MissingDependencyError(TwinsError, ImportError):
    """Something this call needs is not installed."""

    exit_code = 4


def missing(package: str, *, extra: str, purpose: str) -> MissingDependencyError:
    """The error for an absent package: `raise missing("onnx", extra="build", purpose="export") from error`."""
    cause = f"{purpose} needs {package}, which is not installed"
    return MissingDependencyError(cause, f'pip install "twins-trt[{extra}]"')


def first_line(error: BaseException) -> str:
    """The first line of another library's error; the name of its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
