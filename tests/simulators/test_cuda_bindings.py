"""The simulated `cuda.bindings.runtime` has the functions, parameters, results, handles and values of the real one.

Without a driver every real function fails, but it still shows how many results it has, and what it takes.
"""

from __future__ import annotations

import ctypes
import inspect
import re
from types import ModuleType
from typing import Any

import fake_driver
import pytest
from fake_capture import Mode, Status
from fake_cuda import _CONSTANTS, cuda_bindings
from fake_gpu import FakeGpu

from twins_trt.device import Device

FUNCTIONS = {name: call for name, call in vars(cuda_bindings(FakeGpu())).items() if hasattr(call, "function")}
HANDLES = ("cudaStream_t", "cudaEvent_t", "cudaGraph_t", "cudaGraphExec_t")
PLAIN = ("cudaGetLastError", "cudaPeekAtLastError", "cudaGetErrorString", "cudaGetErrorName")


@pytest.fixture(scope="module")
def real() -> ModuleType:
    runtime: ModuleType = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    return runtime


@pytest.fixture
def fake() -> Any:
    return cuda_bindings(FakeGpu())


def documented(real: ModuleType, name: str) -> tuple[list[str], list[str]]:
    """The parameters of a real function, and the names of what it returns after the error, by its docstring."""
    text = getattr(real, name).__doc__
    inside = re.search(r"\((.*)\)", text.splitlines()[0])
    assert inside is not None
    given = [re.split(r"[ :]", part.strip())[0 if ":" in part else -1] for part in inside[1].split(",") if part]
    returns = text.partition("Returns\n-------\n")[2].partition("\nSee Also")[0]
    return given, re.findall(r"^(\w+) :", returns, re.MULTILINE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_the_parameters_and_the_results_of_the_real_one(real: ModuleType, name: str) -> None:
    parameters, results = documented(real, name)
    signature = inspect.signature(FUNCTIONS[name].function)
    assert list(signature.parameters) == parameters
    assert len(results) == int(signature.return_annotation not in (None, "None"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_call_that_fails_returns_a_tuple_of_the_same_form(real: ModuleType, name: str) -> None:
    if real.cudaGetDeviceCount()[0] == real.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU, and the call would do what it says")
    gpu = FakeGpu()
    gpu.broken = Status.cudaErrorIllegalAddress
    count = len(inspect.signature(FUNCTIONS[name].function).parameters)
    given = [real.cudaStreamCaptureMode(1) if "Mode" in name and count == 1 else 1] * count
    if name in ("cudaStreamBeginCapture", "cudaMemcpyAsync"):
        given[-1 if name == "cudaStreamBeginCapture" else 3] = (
            real.cudaStreamCaptureMode(1) if name == "cudaStreamBeginCapture" else real.cudaMemcpyKind(1)
        )
    expected = getattr(real, name)(*given)
    found = getattr(cuda_bindings(gpu), name)(*given)
    assert expected[0] != real.cudaError_t.cudaSuccess and found[0] != Status.cudaSuccess
    assert expected[1:] == found[1:]


@pytest.mark.parametrize("name", PLAIN)
def test_functions_of_errors_have_their_form(real: ModuleType, fake: Any, name: str) -> None:
    given = ["cudaErrorNotReady"] * ("Get" in name and "Last" not in name)
    expected = getattr(real, name)(*[getattr(real.cudaError_t, each) for each in given])
    found = getattr(fake, name)(*[getattr(fake.cudaError_t, each) for each in given])
    assert [type(each) for each in found[1:]] == [type(each) for each in expected[1:]]
    assert found[1:] == expected[1:] or name == "cudaGetErrorString"  # the words are CUDA's, ours are the names


@pytest.mark.parametrize("name", _CONSTANTS)
def test_every_constant_has_the_value_of_the_real_one(real: ModuleType, fake: Any, name: str) -> None:
    value = getattr(fake, name)
    if name in HANDLES:
        assert inspect.isclass(getattr(real, name))
    elif isinstance(value, int):
        assert value == int(getattr(real, name))
    else:
        for member, number in value.__members__.items():
            assert int(getattr(getattr(real, name), member)) == number, member


@pytest.mark.parametrize("kind", ["cudaMemcpyKind", "cudaStreamCaptureMode", "cudaStreamCaptureStatus"])
def test_an_enum_that_is_simulated_is_whole(real: ModuleType, fake: Any, kind: str) -> None:
    assert set(getattr(fake, kind).__members__) == set(getattr(real, kind).__members__)


def test_an_enum_is_called_and_not_subscripted(real: ModuleType, fake: Any) -> None:
    member = fake.cudaMemcpyKind.cudaMemcpyDefault
    assert (int(fake.cudaMemcpyKind(4)), member.name, member == 4) == (4, "cudaMemcpyDefault", True)
    with pytest.raises(TypeError, match="not subscriptable"):
        fake.cudaMemcpyKind["cudaMemcpyDefault"]
    member = real.cudaMemcpyKind.cudaMemcpyDefault
    assert (int(real.cudaMemcpyKind(4)), member.name, member == 4) == (4, "cudaMemcpyDefault", True)


@pytest.mark.parametrize("name", HANDLES)
def test_a_handle_is_no_number_but_becomes_one(real: ModuleType, fake: Any, name: str) -> None:
    for module in (real, fake):
        handle = getattr(module, name)
        assert int(handle(5)) == 5 and handle(5) != 5 and handle(5) == handle(5) and hash(handle(5)) == hash(5)
        assert hasattr(handle(5), "__cuda_stream__") == (name == "cudaStream_t")
    assert fake.cudaStream_t(5).__cuda_stream__() == real.cudaStream_t(5).__cuda_stream__()


def test_what_is_no_number_is_refused_as_the_real_package_does(real: ModuleType, fake: Any) -> None:
    for module in (real, fake):
        for name, given, error in (
            ("cudaMalloc", ("x",), TypeError),
            ("cudaMalloc", (-1,), OverflowError),
            ("cudaMalloc", (), TypeError),
            ("cudaMalloc", (1, 2), TypeError),
            ("cudaStreamSynchronize", ("x",), TypeError),
            ("cudaFree", ("x",), TypeError),
            ("cudaStreamBeginCapture", (4096, "x"), (AttributeError, TypeError, ValueError)),
        ):
            with pytest.raises(error):
                getattr(module, name)(*given)
        getattr(module, "cudaStreamSynchronize")(stream=None)  # noqa: B009  None is the default stream
        module.cudaStreamSynchronize(module.cudaStream_t(4096))


def test_what_a_call_that_succeeds_returns(fake: Any) -> None:
    """The kinds of values, which the real package documents beside their names."""
    kinds = {
        "cudaStreamCreateWithFlags": (1,),
        "cudaEventCreateWithFlags": (0,),
        "cudaThreadExchangeStreamCaptureMode": (Mode(1),),
        "cudaMalloc": (8,),
        "cudaGetDevice": (),
    }
    found = {name: getattr(fake, name)(*given) for name, given in kinds.items()}
    assert {name: type(values[1]).__name__ for name, values in found.items()} == {
        "cudaStreamCreateWithFlags": "cudaStream_t",
        "cudaEventCreateWithFlags": "cudaEvent_t",
        "cudaThreadExchangeStreamCaptureMode": "Mode",
        "cudaMalloc": "int",
        "cudaGetDevice": "int",
    }
    assert all(len(values) == 2 and values[0] == fake.cudaError_t.cudaSuccess for values in found.values())


def test_the_simulated_driver_has_functions_of_the_real_one() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for name, count in fake_driver.FUNCTIONS.items():
        # The real package returns what C writes through its first pointer, and calls the newest of a name's versions.
        parameters, results = documented(driver, name.removesuffix("_v2"))
        assert count == len(set(parameters) | set(results)), name
    for number, name in (
        (fake_driver.INTEGRATED, "INTEGRATED"),
        (fake_driver.MAJOR, "COMPUTE_CAPABILITY_MAJOR"),
        (fake_driver.MINOR, "COMPUTE_CAPABILITY_MINOR"),
    ):
        assert int(getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")) == number
    for status, name in ((fake_driver.NOT_INITIALIZED, "NOT_INITIALIZED"), (fake_driver.NO_DEVICE, "NO_DEVICE")):
        assert int(getattr(driver.CUresult, f"CUDA_ERROR_{name}")) == status


def test_the_simulated_driver_starts_with_init_and_lacks_what_is_not_there() -> None:
    driver = fake_driver.FakeDriver(Device("x", "sm_90"))
    name = ctypes.create_string_buffer(64)
    assert driver.cuDeviceGetName(name, 64, 0) == fake_driver.NOT_INITIALIZED and name.value == b""
    assert driver.cuInit(0) == driver.cuDeviceGetName(name, 64, 0) == 0
    assert name.value == b"x"
    assert not hasattr(driver, "cuDeviceGetNames")
