"""Writes ONNX nodes one call at a time, into an onnx-graphsurgeon graph.

Nodes are written rather than traced, for three reasons. What compiles to few kernels differs from the PyTorch module
in almost every block. Every node must carry its block's name, because plans, audits and profiles refer to blocks. A
traced graph changes with each torch release. A test holds the graphs to the module instead
(tests/builders/export/test_export.py).

Float tensors are written as float32; `precision.py` turns the graph into float16 afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import ArrayLike, NDArray

from twins_trt.builders.export.dims import Dim, MapShape, Sym

Tensor: TypeAlias = Any  # gs.Variable or gs.Constant; graphsurgeon carries no types
Attributes = Mapping[str, object]


class GraphWriter:
    """A graph under construction.

    target: `gpu` writes what compiles to the fewest kernels, `cpu` what computes least. graph: the one to add to, by
    default an empty one. `islands` maps names of nodes that stay float32 in an FP16 graph to the reason.
    """

    def __init__(self, opset: int, *, target: str = "gpu", graph: gs.Graph | None = None) -> None:
        self.graph = gs.Graph(opset=opset) if graph is None else graph
        self.opset = opset
        self.target = target
        self.islands: dict[str, str] = {}
        self._scopes: list[str] = []
        self._island: str | None = None
        self._names: dict[str, int] = {}
        self._symbols: dict[Sym, Tensor] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], gs.Constant] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of nodes written inside begin with `name/`."""
        self._scopes.append(name)
        yield
        self._scopes.pop()

    @contextmanager
    def float32_island(self, reason: str) -> Iterator[None]:
        """Nodes written inside stay float32 in an FP16 graph."""
        self._island = reason
        yield
        self._island = None

    def unique(self, name: str) -> str:
        """`name` below the scopes, with a number behind it from the second time on."""
        full = "/".join([*self._scopes, name])
        count = self._names.get(full, 0)
        self._names[full] = count + 1
        return full if count == 0 else f"{full}_{count}"

    def input(self, name: str, dtype: type, shape: Sequence[int | str]) -> Tensor:
        """A new graph input. shape: a name for each dimension that is open."""
        variable = gs.Variable(name, dtype=np.dtype(dtype), shape=list(shape))
        self.graph.inputs.append(variable)
        return variable

    def output(self, x: Tensor, name: str, shape: Sequence[int | str]) -> None:
        """Makes `x` a graph output called `name`."""
        x.name, x.shape = name, list(shape)
        self.graph.outputs.append(x)

    def const(self, value: ArrayLike, name: str = "const") -> gs.Constant:
        """A constant; equal small ones are one tensor. float64 becomes float32; other types stay."""
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        if array.size > 64:
            return gs.Constant(self.unique(name), np.ascontiguousarray(array))
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = gs.Constant(self.unique(name), array)
        return self._constants[key]

    def op(
        self,
        op: str,
        inputs: Sequence[Tensor],
        name: str | None = None,
        *,
        attrs: Attributes | None = None,
        dtype: type | None = None,
        outputs: int = 1,
    ) -> Tensor:
        """Writes one node and returns its output (a list where `outputs` > 1).

        dtype: of the outputs, by default the first input's.
        """
        node_name = self.unique(name or op.lower())
        out_dtype = np.dtype(dtype) if dtype is not None else inputs[0].dtype
        results = [gs.Variable(node_name if i == 0 else f"{node_name}:{i}", dtype=out_dtype) for i in range(outputs)]
        self.graph.nodes.append(
            gs.Node(op, name=node_name, attrs=dict(attrs or {}), inputs=list(inputs), outputs=results)
        )
        if self._island is not None:
            self.islands[node_name] = self._island
        return results[0] if outputs == 1 else results

    # --- sizes -------------------------------------------------------------------------------------------------

    def axis(self, x: Tensor, axis: int) -> Sym:
        """The run-time size of an axis of `x`."""
        key = Sym("axis", (x.name, axis))
        if key not in self._symbols:
            shape = self.op("Shape", [x], "shape", dtype=np.int64)
            self._symbols[key] = self.op("Gather", [shape, self.const([axis])], "axis", attrs={"axis": 0})
        return key

    def size(self, dims: Sequence[Dim]) -> Tensor:
        """An int64 tensor of the given dimensions."""
        if all(isinstance(dim, int) for dim in dims):
            return self.const(np.array(dims, np.int64), "size")
        parts = [self._dim(dim) for dim in dims]
        return parts[0] if len(parts) == 1 else self.op("Concat", parts, "size", attrs={"axis": 0})

    def _dim(self, dim: Dim) -> Tensor:
        if isinstance(dim, int):
            return self.const(np.array([dim], np.int64), "size")
        if dim not in self._symbols:
            args = [self._dim(arg) for arg in dim.args if not isinstance(arg, str)]
            self._symbols[dim] = self.op(dim.op, args, "size")
        return self._symbols[dim]

    # --- layout ------------------------------------------------------------------------------------------------

    def reshape(self, x: Tensor, dims: Sequence[Dim], name: str = "reshape") -> Tensor:
        """`x` in the shape `dims`. A single dimension that is not known becomes -1, which needs no shape arithmetic."""
        symbols = [i for i, dim in enumerate(dims) if isinstance(dim, Sym)]
        if len(symbols) == 1:
            dims = [-1 if i == symbols[0] else dim for i, dim in enumerate(dims)]
        return self.op("Reshape", [x, self.size(dims)], name)

    def transpose(self, x: Tensor, order: Sequence[int], name: str = "transpose") -> Tensor:
        return self.op("Transpose", [x], name, attrs={"perm": list(order)})

    def slice(
        self,
        x: Tensor,
        starts: Sequence[Dim],
        ends: Sequence[Dim],
        axes: Sequence[int],
        name: str = "slice",
        *,
        steps: Sequence[int] | None = None,
    ) -> Tensor:
        inputs = [x, self.size(starts), self.size(ends), self.const(np.array(axes, np.int64))]
        if steps is not None:
            inputs.append(self.const(np.array(steps, np.int64)))
        return self.op("Slice", inputs, name)

    def split(self, x: Tensor, sizes: Sequence[int], axis: int, name: str = "split") -> list[Tensor]:
        sizes_in = self.const(np.array(sizes, np.int64), "sizes")
        return self.op("Split", [x, sizes_in], name, attrs={"axis": axis}, outputs=len(sizes))

    def concat(self, parts: Sequence[Tensor], axis: int, name: str = "concat") -> Tensor:
        return self.op("Concat", parts, name, attrs={"axis": axis})

    def pad(
        self, x: Tensor, before: Sequence[Dim], after: Sequence[Dim], *, mode: str = "constant", name: str = "pad"
    ) -> Tensor:
        return self.op("Pad", [x, self.size([*before, *after])], name, attrs={"mode": mode})

    # --- layers ------------------------------------------------------------------------------------------------

    def add(self, x: Tensor, y: Tensor, name: str = "add") -> Tensor:
        return self.op("Add", [x, y], name)

    def linear(self, x: Tensor, weight: NDArray, bias: NDArray | None, name: str) -> Tensor:
        """x: [..., in]; weight: [out, in] as PyTorch stores it; bias: [out]."""
        out = self.op("MatMul", [x, self.const(weight.T, f"{name}.weight")], name)
        return out if bias is None else self.add(out, self.const(bias, f"{name}.bias"), f"{name}.add")

    def conv(
        self,
        x: Tensor,
        weight: NDArray,
        bias: NDArray | None,
        name: str,
        *,
        stride: int = 1,
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        group: int = 1,
    ) -> Tensor:
        """x: [N, C, H, W]; weight: [out, in/group, k, k]; pads: top, left, bottom, right."""
        inputs = [x, self.const(weight, f"{name}.weight")]
        if bias is not None:
            inputs.append(self.const(bias, f"{name}.bias"))
        kernel = list(weight.shape[2:])
        attrs = {"kernel_shape": kernel, "strides": [stride, stride], "pads": list(pads), "group": group}
        return self.op("Conv", inputs, name, attrs=attrs)

    def layer_norm(self, x: Tensor, weight: NDArray, bias: NDArray, eps: float, name: str) -> Tensor:
        """One `LayerNormalization` op: decomposed, it collapses in FP16 (TensorRT#2564, #3657)."""
        inputs = [x, self.const(weight, f"{name}.weight"), self.const(bias, f"{name}.bias")]
        return self.op("LayerNormalization", inputs, name, attrs={"axis": -1, "epsilon": eps})

    def gelu(self, x: Tensor, name: str = "gelu") -> Tensor:
        """GELU with erf, as PyTorch's default: one op from opset 20 on, below that the formula that compilers know."""
        if self.opset >= 20:
            return self.op("Gelu", [x], name)
        erf = self.op("Erf", [self.op("Div", [x, self.const(np.float32(np.sqrt(2.0)))], f"{name}.div")], f"{name}.erf")
        scaled = self.op("Mul", [x, self.add(erf, self.const(np.float32(1.0)), f"{name}.one")], f"{name}.mul")
        return self.op("Mul", [scaled, self.const(np.float32(0.5))], name)

    def resize(self, x: Tensor, to: MapShape, name: str, *, mode: str = "linear") -> Tensor:
        """x: [B, C, h, w] -> [B, C, H, W]; linear is PyTorch's align_corners=False, nearest its floor rule."""
        attrs = {"mode": mode, "coordinate_transformation_mode": "half_pixel" if mode == "linear" else "asymmetric"}
        if mode == "nearest":
            attrs["nearest_mode"] = "floor"
        empty = gs.Variable.empty()
        return self.op("Resize", [x, empty, empty, self.size([to.batch, to.channels, *to.size])], name, attrs=attrs)
