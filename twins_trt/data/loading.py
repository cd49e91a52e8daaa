"""Reads samples ahead in other processes, and gives them in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from twins_trt.errors import DataError, UsageError
from twins_trt.spelling import spelled

T = TypeVar("T")
R = TypeVar("R")


def load_in_order(read: Callable[[T], R], items: Sequence[T], *, workers: int = 0, ahead: int = 2) -> Iterator[R]:
    """Yield `read(item)` for every item in the order of `items`, whatever `workers` is.

    workers: processes that read; 0 reads in this one. ahead: results held per worker, so that memory is bounded by
    `workers * ahead` results. `read` and the items must pickle. An error of `read` is raised in place of its result.
    Closing the generator early drops what has not started. Raises UsageError for a negative `workers`, DataError if a
    worker dies.
    """
    if workers < 0:
        raise UsageError(f"{spelled('workers')} is {workers}", "give 0 or more")
    if ahead < 1:
        raise UsageError(f"ahead is {ahead}", "give 1 or more")
    if workers == 0 or len(items) <= 1:
        return map(read, items)
    return _read_ahead(read, items, min(workers, len(items)), ahead)


def _read_ahead(read: Callable[[T], R], items: Sequence[T], workers: int, ahead: int) -> Iterator[R]:
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # Spawned, not forked: threads of torch or ONNX Runtime usually run here, and a fork may copy their locks locked.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(read, item))
            if len(pending) >= workers * ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that reads samples ended unexpectedly (killed, or started from a script without a main guard)",
            f'put the script\'s calls under `if __name__ == "__main__":`, or read with {spelled("workers", 0)}',
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
