"""`export-to`: the request of a hand-off to another program, its defaults and flags; `twins_trt.handoff` does it."""

from __future__ import annotations

from dataclasses import dataclass

from twins_trt.handoff import TARGETS, HandoffOptions
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.kinds import SWITCH, WHOLE

_DEFAULTS = HandoffOptions()


@dataclass(frozen=True)
class ExportToRequest:
    """A hand-off. target: of `handoff.TARGETS`. bundle: a folder. out: the folder to write. overwrite: replace an
    earlier hand-off in it. `HandoffOptions` describes the other fields."""

    target: str = ""
    bundle: str = ""
    out: str = ""
    overwrite: bool = False
    engine: str = _DEFAULTS.engine
    max_batch: int | None = _DEFAULTS.max_batch
    name: str | None = _DEFAULTS.name
    instances: int = _DEFAULTS.instances
    queue_delay: int = _DEFAULTS.queue_delay

    def __post_init__(self) -> None:
        settle(self, TABLE)

    @property
    def options(self) -> HandoffOptions:
        """The options of the hand-off. Raises UsageError as `HandoffOptions` does."""
        return HandoffOptions(
            engine=self.engine,
            name=self.name,
            max_batch=self.max_batch,
            instances=self.instances,
            queue_delay=self.queue_delay,
        )


TRITON = "Triton"

TABLE: tuple[Flag, ...] = (
    Flag(f"{{{','.join(TARGETS)}}}", "target", "the program that shall run the bundle"),
    Flag("BUNDLE", "bundle", "a folder that twins-trt build wrote"),
    Flag("--out", "out", "the folder to write", metavar="DIR", required=True),
    Flag("--overwrite", "overwrite", "replace an earlier hand-off that is there", SWITCH, sets=True),
    Flag(
        "--engine",
        "engine",
        "what it runs: the bundle's TensorRT engines, else the graph (auto); the graph; or one engine; "
        "default: {default}",
        metavar="{auto,onnxruntime,sm_NN,FILE}",
    ),
    Flag("--max-batch", "max_batch", "images at once at most; default: the graph's limit", WHOLE, "N"),
    Flag("--name", "name", "the model's name in requests; default: the model's own", metavar="NAME", group=TRITON),
    Flag("--instances", "instances", "copies of the model; default: {default}", WHOLE, "N", group=TRITON),
    Flag(
        "--queue-delay",
        "queue_delay",
        "how long a request waits for others; default: {default}",
        WHOLE,
        "US",
        group=TRITON,
    ),
)

FLAGS = FlagTable(ExportToRequest, TABLE)
