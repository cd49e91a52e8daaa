"""The simulated TensorRT has what the real bindings of a version have, and refuses what they refuse.

`test_engine_versions.py` compares the recorded names with the real ones; here are the modules that are made from them.
"""

from __future__ import annotations

import gc
import json
import re
from pathlib import Path
from typing import Any

import fake_builder
import fake_engines
import fake_tensorrt
import pytest
import tensorrt_bindings
from fake_engines import ALIGNMENT, Faults, runtime_module, serialize
from fake_gpu import FakeGpu
from tiny_graphs import tensors, tiny_graph

VERSIONS = fake_tensorrt.versions()
RTX = "rtx-1.7.1.116"


@pytest.fixture(params=["real", "simulated"])
def rtx(request: pytest.FixtureRequest) -> Any:
    """TensorRT-RTX itself, which starts without a GPU, and what stands for it."""
    if request.param == "real":
        return pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    return runtime_module(RTX, FakeGpu())


def is_ours(member: str) -> bool:
    """Whether a member is recorded: a network's hundred ways to add a layer are the parser's business."""
    return not re.match(r"_|add_(?!attention$|optimization)", member)


def members_of(kind: Any) -> set[str]:
    return set(filter(is_ours, dir(kind)))


@pytest.mark.shared
@pytest.mark.parametrize("version", [version for version in VERSIONS if version != "8.6.1"])
def test_a_module_has_the_classes_members_and_values_of_its_version_and_no_others(version: str, shared: Path) -> None:
    recorded = json.loads((shared / "data" / "tensorrt_api.json").read_text())
    (real,) = [each for name, each in recorded.items() if f"{version}.".startswith(f"{name}.")]
    module = fake_tensorrt.fake_module(version)
    for name in tensorrt_bindings.CLASSES:
        assert hasattr(module, name) == (name in real["classes"]), name
        if name in real["classes"]:
            assert members_of(getattr(module, name)) == set(filter(is_ours, real["classes"][name])), name
    for name in tensorrt_bindings.ENUMS:
        assert hasattr(module, name) == (name in real["enums"]), name
        if name in real["enums"]:
            members = getattr(module, name).__members__
            assert {member: int(value) for member, value in members.items()} == real["enums"][name]


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_simulated_that_a_version_lacks(version: str) -> None:
    """What a class lacks cannot be read, called or set, also if another version has it."""
    everywhere: dict[str, set[str]] = {}
    for each in VERSIONS:
        for name, members in fake_tensorrt.describe(each)["classes"].items():
            everywhere.setdefault(name, set()).update(members)
    module = runtime_module(version, FakeGpu())
    for name, members in fake_tensorrt.describe(version)["classes"].items():
        made = object.__new__(getattr(module, name))
        for absent in everywhere[name] - set(members):
            assert not hasattr(made, absent), (name, absent)
            with pytest.raises(AttributeError):
                setattr(made, absent, 1)


@pytest.mark.parametrize("module", [fake_engines, fake_builder, fake_tensorrt])
def test_every_behaviour_belongs_to_a_member_of_some_version(module: Any) -> None:
    real = {
        (name, member)
        for version in VERSIONS
        for name, members in fake_tensorrt.describe(version)["classes"].items()
        for member in members
    }
    assert set(module._BEHAVIOURS) <= real


def test_members_of_an_enum_are_no_numbers(rtx: Any) -> None:
    member = rtx.DataType.FLOAT
    assert (int(member), member.name, member.value, repr(member)) == (0, "FLOAT", 0, "<DataType.FLOAT: 0>")
    assert rtx.DataType(0) == member and hash(member) == hash(0)
    assert member != 0 and not isinstance(member, int) and member in rtx.DataType.__members__.values()
    flag = rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    for wrong in (
        lambda: rtx.DataType["FLOAT"],
        lambda: list(rtx.DataType),
        lambda: len(rtx.DataType),
        lambda: member < rtx.DataType.HALF,
        lambda: 1 << flag,
        lambda: flag | 1,
    ):
        with pytest.raises(TypeError):
            wrong()
    assert rtx.ILogger.Severity.ERROR < rtx.ILogger.Severity.INFO
    assert rtx.ILogger.ERROR == rtx.ILogger.Severity.ERROR != 1


class Quiet:
    """Makes a logger of a module that keeps what is said."""

    def __new__(cls, module: Any, said: list[str]) -> Any:
        class Logger(module.ILogger):
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                said.append(text)

        return Logger()


def test_only_what_the_bindings_construct_is_constructed(rtx: Any) -> None:
    for name in ("ICudaEngine", "IExecutionContext", "IHostMemory", "IRuntimeConfig", "IBuilderConfig", "ITensor"):
        with pytest.raises(TypeError):
            getattr(rtx, name)()
    for name in ("Runtime", "Builder"):
        for given in ((), ("x",), (rtx.IProfiler(),)):
            with pytest.raises(TypeError):
                getattr(rtx, name)(*given)


def test_a_runtime_refuses_what_is_no_engine_by_returning_none(rtx: Any) -> None:
    said: list[str] = []
    logger = Quiet(rtx, said)
    runtime = rtx.Runtime(logger)
    runtime.engine_host_code_allowed = False
    with pytest.raises(AttributeError):
        runtime.nonsense = 1
    for wrong in (("x",), (1,), ()):
        with pytest.raises(TypeError):
            runtime.deserialize_cuda_engine(*wrong)
    for content in (b"no engine", bytearray(b"no engine"), memoryview(b"no engine")):
        assert runtime.deserialize_cuda_engine(content) is None
    if type(runtime).__module__ == "tensorrt_rtx" and hasattr(rtx, "gpu"):
        assert said  # the real library keeps the first logger of a process, which may be another's


@pytest.fixture
def context() -> Any:
    """A context of a simulated engine, with what made it."""
    module = runtime_module("10.13.3.9", FakeGpu(devices=2), Faults())
    image, outputs = tensors(24, 32, 1, ("mask",), "uint8")
    runtime = module.Runtime(Quiet(module, []))
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(serialize(tiny_graph(image, outputs), version=module.__version__))
    return engine.create_execution_context()


@pytest.mark.parametrize("offset", [1, 16, 255, 256, 512])
def test_addresses_are_multiples_of_256(context: Any, offset: int) -> None:
    """ "must have at least 256-byte alignment" (C++ API, IExecutionContext::setTensorAddress)."""
    assert context.set_tensor_address("image", ALIGNMENT * 1000 + offset) == (offset % 256 == 0)


def test_a_context_runs_on_its_own_device_alone(context: Any) -> None:
    gpu = context._module.gpu
    context.set_input_shape("image", (1, 24, 32, 3))
    for name, size in (("image", 24 * 32 * 3), ("mask", 24 * 32)):
        assert context.set_tensor_address(name, gpu.allocate(size))
    stream = gpu.new_stream()
    assert context.execute_async_v3(stream)
    gpu.select(1)
    assert not context.execute_async_v3(stream)
    assert not context.execute_async_v3(gpu.new_stream())


@pytest.mark.parametrize("method", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_a_method_raises_where_bindings_do(context: Any, method: str) -> None:
    wrong = {"set_input_shape": ("image", (1, 1, 1, 1)), "set_tensor_address": ("image", 1), "execute_async_v3": (0,)}
    assert getattr(context, method)(*wrong[method]) is False
    context._module.faults.raises = frozenset({method})
    with pytest.raises(RuntimeError):
        getattr(context, method)(*wrong[method])


def test_a_context_does_not_keep_its_profiler(context: Any) -> None:
    module = context._module

    class Profiler(module.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.IProfiler.__init__(self)

    profiler = Profiler()
    context.profiler = profiler
    assert context.profiler is profiler
    del profiler
    gc.collect()
    with pytest.raises(AssertionError, match="profiler of a context is gone"):
        context.profiler  # noqa: B018
    context.profiler = None
    assert context.profiler is None


def test_shapes_are_unknown_until_they_are_set() -> None:
    module = runtime_module("10.13.3.9", FakeGpu())
    sides = (8, 32, 64)
    image, outputs = tensors(sides, sides, 1, ("mask",), "uint8")
    profile = (image.min, image.opt, image.max)
    runtime = module.Runtime(Quiet(module, []))
    runtime.engine_host_code_allowed = False
    content = serialize(tiny_graph(image, outputs), version=module.__version__, profile=profile)
    context = runtime.deserialize_cuda_engine(content).create_execution_context()
    assert context.infer_shapes() == ["image"] and -1 in context.get_tensor_shape("mask")
    assert not context.set_input_shape("image", (1, 65, 64, 3))
    assert context.set_input_shape("image", (1, 24, 32, 3)) and context.infer_shapes() == []
    assert context.get_tensor_shape("mask") == (1, 24, 32)
