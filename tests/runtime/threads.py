"""Work in several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def in_threads(work: Callable[[Any], Iterable[object]], groups: Sequence[Any]) -> list[object]:
    """Runs `work(group)` for each group in a thread of its own, all at once; what they gave and raised."""
    said: list[object] = []
    start = threading.Barrier(len(groups))

    def run(group: Any) -> None:
        try:
            start.wait(60)
            said.extend(work(group))
        except Exception as error:
            said.append(error)

    threads = [threading.Thread(target=run, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return said + ["a thread does not end" for thread in threads if thread.is_alive()]
