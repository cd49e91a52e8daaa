"""What a training run says: while it runs, and at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twins_trt.codec import encode
from twins_trt.training.start import Start


@dataclass(frozen=True)
class TrainStep:
    """Where a run is. phase: `train`, or `validate` while it scores images.

    iteration: of `iterations`. loss: of the last step. miou: of the last validation, percent, if there was one.
    seconds_left: until the end of the training, at the speed of the last steps; None before there are any.
    share: of the phase's work that is done, 0 to 1.
    """

    phase: str
    iteration: int
    iterations: int
    share: float
    loss: float | None = None
    miou: float | None = None
    seconds_left: float | None = None


Progress = Callable[[TrainStep], None]


@dataclass(frozen=True)
class TrainReport:
    """What a run came to.

    out: the run's folder, in which last and best are checkpoints. start: where the weights came from. resumed: the
    iteration it went on from, 0 for a new run. first_loss, last_loss: means of the first and last tenth of the
    iterations run now. miou: of the last validation, best_miou: of the best one, percent; None without any.
    seconds: wall time of this call.
    """

    out: str
    last: str
    best: str | None
    start: Start
    iterations: int
    resumed: int
    first_loss: float | None
    last_loss: float | None
    miou: float | None
    best_miou: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        plain: dict[str, Any] = encode(self)
        return plain
