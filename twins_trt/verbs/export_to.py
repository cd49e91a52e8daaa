"""`export-to`: the request of a hand-off to a device or another program, its defaults and flags.

`twins_trt.handoff` does it.
"""

from __future__ import annotations

from dataclasses import dataclass

from twins_trt.handoff import TARGETS, HandoffOptions
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.kinds import SWITCH, WHOLE

_DEFAULTS = HandoffOptions()


@dataclass(frozen=True)
class ExportToRequest:
    """A hand-off. target: of `handoff.TARGETS`. bundle: a folder. out: the folder to write; for a device also a tar
    file. overwrite: replace an earlier hand-off there. `HandoffOptions` describes the other fields."""

    target: str = ""
    bundle: str = ""
    out: str = ""
    overwrite: bool = False
    engine: str = _DEFAULTS.engine
    pack: str | None = _DEFAULTS.pack
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
            pack=self.pack,
            name=self.name,
            max_batch=self.max_batch,
            instances=self.instances,
            queue_delay=self.queue_delay,
        )


DEVICE, TRITON = "a device", "Triton"

TABLE: tuple[Flag, ...] = (
    Flag(f"{{{','.join(TARGETS)}}}", "target", "what runs the bundle: a device with twins-trt, or another program"),
    Flag("BUNDLE", "bundle", "a folder that twins-trt build wrote"),
    Flag("--out", "out", "the folder to write; for a device also a .tar or .tar.gz", metavar="DIR", required=True),
    Flag("--overwrite", "overwrite", "replace an earlier hand-off that is there", SWITCH, sets=True),
    Flag(
        "--engine",
        "engine",
        "what it runs: the bundle's TensorRT engines, else the graph (auto); the graph (onnxruntime); or one engine; "
        "for a device see below; default: {default}",
        metavar="{auto,graph,onnxruntime,sm_NN,FILE}",
    ),
    Flag("--pack", "pack", "send this gate pack along; default: the bundle's own", metavar="FILE", group=DEVICE),
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

GROUPS = {
    DEVICE: "It gets the graph, and the engines unless the bundle awaits one of a device (auto), the graph\n"
    "alone (graph), or engines alone: those for one GPU (sm_NN) or one FILE. The classes, the gate's verdict\n"
    "and the audits go with it. The checkpoint, the plan and the ranges stay."
}

FLAGS = FlagTable(ExportToRequest, TABLE, groups=GROUPS)
