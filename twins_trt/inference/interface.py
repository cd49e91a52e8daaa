"""The interface of a graph: all that is needed to fit a picture into it and to read its outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from twins_trt.data.palette import Colour
from twins_trt.data.preprocessing import Preprocessing, Size
from twins_trt.errors import UsageError
from twins_trt.inference.tensors import TensorSpec

Layout = Literal["NHWC", "NCHW"]

MAX_CLASSES = 255
MASK_HOLDS = f"an 8-bit mask holds 1 to {MAX_CLASSES}, and 255 for ignored pixels"


@dataclass(frozen=True)
class GraphInterface:
    """A graph's input and outputs, its classes, and the preprocessing of its images.

    inputs: exactly one, uint8 [N, H, W, 3] RGB with normalization inside the graph, or float [N, 3, H, W].
    outputs: `mask` uint8 [N, H, W], `logits` float [N, classes, h, w], and with a threshold also `probability` float32
    [N, H, W], of the foreground.
    classes, palette: one name and one RGB colour per class, by index.
    preprocessing: normalization, which is inside the graph if the input is uint8, and the test scale. Planes are in its
    order of channels.
    threshold: of a head with one logit, whose two classes are background and foreground: a pixel is foreground where
    the logit's sigmoid is larger. None for a head with softmax.
    Raises UsageError, naming the field and both values, if the parts contradict each other.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    threshold: float | None = None

    def __post_init__(self) -> None:
        for fault in (*_class_faults(self), *_tensor_faults(self)):
            raise UsageError(fault)

    @classmethod
    def unnamed(
        cls,
        image: TensorSpec,
        outputs: tuple[TensorSpec, ...],
        num_classes: int,
        *,
        preprocessing: Preprocessing | None = None,
    ) -> GraphInterface:
        """The interface of a graph whose classes have no names or colours."""
        names = tuple(f"class {index}" for index in range(num_classes))
        return cls((image,), outputs, names, ((0, 0, 0),) * num_classes, preprocessing or Preprocessing())

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image(self) -> TensorSpec:
        """The one input."""
        return self.inputs[0]

    @property
    def layout(self) -> Layout:
        """`NHWC` for a graph that takes pixels, `NCHW` for one that takes normalized planes."""
        return "NHWC" if self.image.dtype == "uint8" else "NCHW"

    @property
    def batch_limits(self) -> tuple[int, int | None]:
        """(min, max) batch; max is None without a limit."""
        return self.image.limits()[0]

    @property
    def size_limits(self) -> tuple[tuple[int, int | None], tuple[int, int | None]]:
        """(min, max) height and (min, max) width, pixels; max is None without a limit."""
        height, width = self.image.limits()[self._size_axes]
        return height, width

    @property
    def size(self) -> Size | None:
        """(height, width) of a graph of fixed size; None if it is dynamic."""
        (height, highest), (width, widest) = self.size_limits
        return (height, width) if height == highest and width == widest else None

    @property
    def opt_size(self) -> Size | None:
        """(height, width) that the graph is optimized for; None where it takes any size alike."""
        height, width = (self.image.opt or self.image.shape)[self._size_axes]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    @property
    def _size_axes(self) -> slice:
        """Where height and width stand in the image's shape."""
        return slice(1, 3) if self.layout == "NHWC" else slice(2, 4)

    def output(self, name: str) -> TensorSpec | None:
        """The output called `name`, or None."""
        return next((spec for spec in self.outputs if spec.name == name), None)


def _class_faults(interface: GraphInterface) -> list[str]:
    faults, count = [], interface.num_classes
    if not 1 <= count <= MAX_CLASSES:
        faults.append(f"num_classes is {count}; {MASK_HOLDS}")
    if len(interface.palette) != count:
        faults.append(f"there are {count} classes but palette has {len(interface.palette)} entries")
    if interface.threshold is not None and (count != 2 or not 0 < interface.threshold < 1):
        faults.append(
            f"threshold is {interface.threshold} with {count} classes; a head with one logit tells 2 apart by a number "
            "between 0 and 1"
        )
    faults += [
        f"palette[{i}] is {colour}, not 0 to 255"
        for i, colour in enumerate(interface.palette)
        if not all(0 <= value <= 255 for value in colour)
    ]
    return faults


def _tensor_faults(interface: GraphInterface) -> list[str]:
    if len(interface.inputs) != 1:
        return [f"inputs has {len(interface.inputs)} entries, not 1"]
    (image,) = interface.inputs
    channels = 3 if image.dtype == "uint8" else 1
    if len(image.shape) != 4 or image.shape[channels] != 3 or image.dtype not in ("uint8", "float16", "float32"):
        return [f"inputs[0] is {image}, neither uint8 [N, H, W, 3] nor float [N, 3, H, W]"]
    faults = [] if interface.outputs else ["outputs is empty"]
    for i, spec in enumerate(interface.outputs):
        if spec.name == "mask":
            fits, wanted = spec.dtype == "uint8" and len(spec.shape) == 3, "mask uint8 [N, H, W]"
        elif spec.name == "probability" and interface.threshold is not None:
            fits, wanted = spec.dtype == "float32" and len(spec.shape) == 3, "probability float32 [N, H, W]"
        else:
            wanted = f"logits float [N, {interface.num_classes}, h, w]"
            fits = spec.name == "logits" and spec.dtype in ("float16", "float32") and len(spec.shape) == 4
            fits = fits and spec.shape[1] == interface.num_classes
        if not fits:
            faults.append(f"outputs[{i}] is {spec}, not {wanted}")
    if len({spec.name for spec in interface.outputs}) != len(interface.outputs):
        faults.append("outputs names a tensor twice")
    return faults
