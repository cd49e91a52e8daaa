"""What a training run reports: its progress, and its result at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twins_trt.codec import encode
from twins_trt.training.run.start import Start


@dataclass(frozen=True)
class TrainStep:
    """Where a run is, in numbers. phase: `train`, or `validate` while it scores images.

    iteration: of `iterations`. loss: of the last step. miou: of the last validation, percent; None before any.
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

    def in_words(self, scored: str | None = None) -> str:
        """The detail of a `Progress`. scored: the scores of a running validation, in words, in place of `miou`."""
        parts = [f"iteration {self.iteration} of {self.iterations}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if scored is not None:
            parts.append(scored)
        elif self.miou is not None:
            parts.append(f"mIoU {self.miou:.2f}")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)


@dataclass(frozen=True)
class TrainReport:
    """The result of a run.

    out: the run's folder, in which last and best are checkpoints. start: where the weights came from. resumed: the
    iteration it was resumed at, 0 for a new run. first_loss, last_loss: means of the first and last tenth of the
    iterations of this call. miou: of the last validation, best_miou: of the best one, percent; None without any.
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


def duration(seconds: float) -> str:
    """Formats a duration, such as `1 h 05 min`, `3 min 20 s` or `7 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
