"""A process that measures rows, one after another, and can be ended in the middle of one.

A compilation or an autotuning cannot be stopped from within, a failed capture leaves torch's allocator captured, and a
kernel that reads where it must not ruins its process's CUDA context. Here the next row gets a new process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.jobs import LIMIT, SECTIONS, Job, Measure, Row, list_jobs
from benchmarks.gpu.parent import die_with_parent

if TYPE_CHECKING:
    from benchmarks.gpu.workload import Workload

START_SECONDS = 120.0


class Worker:
    """Measures rows in a process of its own, which starts with the first row and anew after one that spoiled it.

    sections: name and module of each section. Close it, or use it in `with`.
    """

    def __init__(self, workload: Workload, sections: Mapping[str, str] = SECTIONS) -> None:
        self._workload, self._sections = workload, dict(sections)
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def do(self, job: Job, limit_s: float | None = None) -> Row:
        """The row of the job; one with `error` where it fails or its process dies.

        limit_s: seconds after which it is given up: its row has `given_up`. None for no limit.
        """
        end = None if limit_s is None else time.monotonic() + limit_s
        connection = self._started()
        try:
            left = None if end is None else max(0.0, end - time.monotonic())
            connection.send((*job.key, left))
            if not connection.poll(left):
                self._kill()
                return failed(job.section, f"given up after {limit_s:.0f} s", given_up=True)
            row, is_spoiled = connection.recv()
        except (EOFError, OSError):
            process = self._process
            if process is not None:
                process.join(10)
            code = None if process is None else process.exitcode
            self._kill()
            return failed(job.section, f"its process died with exit code {code}")
        if is_spoiled:
            self._kill()
        return dict(row)

    def close(self) -> None:
        """End the process; what it was measuring is lost."""
        self._kill()

    def _started(self) -> Connection:
        if self._connection is None:
            context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._workload, self._sections))
            self._process.start()
            theirs.close()  # so that its death is seen
            with contextlib.suppress(EOFError, OSError):  # the row will say that it died
                if self._connection.poll(START_SECONDS):
                    self._connection.recv()
        return self._connection

    def _kill(self) -> None:
        if self._process is not None and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with Inductor's compilers and pytest below it
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def measured(section: str, measure: Measure) -> Row:
    """The row, or one with its error: a form that a GPU or a shape does not have must not end the run."""
    import torch

    from benchmarks.gpu.timing import CaptureError

    on_stream: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if torch.cuda.is_available():
        on_stream = torch.cuda.stream(torch.cuda.Stream())  # the default stream cannot be captured
    try:
        with on_stream:
            return measure()
    except Exception as error:
        lines = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
        kinds = {"capture_failed": CaptureError, "timed_out": subprocess.TimeoutExpired}
        return failed(section, said, **{name: True for name, kind in kinds.items() if isinstance(error, kind)})
    finally:
        torch.compiler.reset()  # so that no form uses what another compiled, or meets the limit of recompiling
        if torch.cuda.is_available():
            with contextlib.suppress(RuntimeError):  # it raises after a failed capture, and the row must be kept
                torch.cuda.empty_cache()


def failed(section: str, said: str, **facts: bool) -> Row:
    """The row of what could not be measured; a check that cannot be made is red."""
    return {"error": said, **facts, **({"passed": False} if section == "checks" else {})}


def _serve(connection: Connection, workload: Workload, sections: Mapping[str, str]) -> None:
    """The process: takes section and name, gives back the row and whether the process must end."""
    os.setsid()  # a group of its own, which is ended as a whole
    die_with_parent()
    if workload.smoke:
        import torch

        torch.set_num_threads(1)  # a miniature gains nothing by more, and loses much where others use the cores
    listed: dict[str, dict[str, Job]] = {}
    connection.send("ready")
    while True:
        try:
            section, name, limit_s = connection.recv()
        except EOFError:
            return
        if section not in listed:
            listed[section] = {job.name: job for job in list_jobs(workload, {section: sections[section]})}
        if limit_s is not None:
            LIMIT.set(limit_s)
        row = measured(section, listed[section][name].measure)
        connection.send((row, is_spoiled(row)))


def is_spoiled(row: Mapping[str, Any]) -> bool:
    """Whether this process is of no use any more: a capture failed, CUDA answers with errors, or what it started may
    still run."""
    import torch

    if row.get("capture_failed") or row.get("timed_out"):
        return True
    if "error" not in row or not torch.cuda.is_available():
        return False
    try:
        torch.ones(8, device="cuda").sum().item()
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
