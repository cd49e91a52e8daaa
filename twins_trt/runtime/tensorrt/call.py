"""A call under way in an execution slot."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twins_trt.errors import UsageError

if TYPE_CHECKING:
    from twins_trt.runtime.engines.protocol import Array
    from twins_trt.runtime.tensorrt.slot import ExecutionSlot
    from twins_trt.runtime.tensorrt.slots import Slots


class GpuCall:
    """See `Pending`. image: lives as long as this, because the GPU may read it where it lies."""

    def __init__(
        self, slots: Slots, slot: ExecutionSlot, *, outputs: list[str], out: Mapping[str, Array] | None, image: Any
    ) -> None:
        self._slots, self._outputs, self._out, self._image = slots, outputs, out, image
        self._slot: ExecutionSlot | None = slot
        self._lock = threading.Lock()

    def result(self) -> dict[str, Array]:
        """See `Pending.result`. Raises UsageError the second time, and EngineError if the engine was closed."""
        slot = self._leave()
        if slot is None:
            raise UsageError("this call is over already", "take its result once, and keep that")
        with self._slots.using(slot):
            return slot.finish(self._outputs, self._out)

    def discard(self) -> None:
        """See `Pending.discard`. Does nothing if the call is over already, or if the engine was closed."""
        slot = self._leave()
        if slot is not None and not self._slots.closed:
            with self._slots.using(slot):
                slot.settle()

    def _leave(self) -> ExecutionSlot | None:
        """The slot, the first time: given back twice, it would serve two calls at once."""
        with self._lock:
            slot, self._slot = self._slot, None
        return slot
