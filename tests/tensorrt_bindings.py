"""The real TensorRT bindings of any version, imported without TensorRT: names, enum values and signatures.

The bindings wheels on PyPI hold no library, only the extension module that calls a dozen C functions of three shared
libraries. Stand-ins for those, whose functions return null, are enough to import it and look at it.

    pip download --no-deps -d wheels tensorrt-bindings==8.6.1 tensorrt-cu12-bindings==10.3.0 ...
    python tests/tensorrt_bindings.py wheels --out tests/tensorrt_names.json

rewrites the description that `fake_tensorrt.py` makes its modules from. Needs gcc and a Python that the wheels fit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
    "getInferLibVersion",
    "getInferLibBuildVersion",
    "getLogger",
    # The UFF and Caffe parsers of 8.x are C++.
    "_ZN11nvuffparser15createUffParserEv",
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
    "_ZN14nvcaffeparser117createCaffeParserEv",
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
)
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers")
MAJORS = (8, 10, 11)

# What builders and engines of this package touch, or might by mistake.
CLASSES = (
    "Builder",
    "EngineInspector",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProfiler",
    "IProgressMonitor",
    "IRuntimeCache",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "Logger",
    "OnnxParser",
    "ParserError",
    "Runtime",
)
ENUMS = (
    "BuilderFlag",
    "ComputeCapability",
    "CudaGraphStrategy",
    "DataType",
    "EngineInvalidityDiagnostics",
    "EngineStat",
    "EngineValidity",
    "ErrorCode",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "LayerInformationFormat",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParserFlag",
    "ProfilingVerbosity",
    "TensorIOMode",
    "TensorLocation",
)


def compile_stubs(folder: Path) -> Path:
    """Shared libraries under the names the bindings ask for. Raises CalledProcessError without a compiler."""
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for library in LIBRARIES:
        for major in MAJORS:
            name = f"lib{library}.so.{major}"
            subprocess.run(
                ["gcc", "-shared", "-fPIC", "-o", str(folder / name), str(source), f"-Wl,-soname,{name}"], check=True
            )
    return folder


def describe(module: Any) -> dict[str, Any]:
    """{"version", "classes": {name: {member: signature, or "" for attributes}}, "enums": {name: {member: value}}}."""
    classes: dict[str, dict[str, Any]] = {}
    for name in CLASSES:
        if not hasattr(module, name):
            continue
        kind = getattr(module, name)
        # A network's hundred ways to add a layer are the parser's business; whether it has attention is ours.
        members = [member for member in dir(kind) if not re.match(r"_|add_(?!attention$|optimization)", member)]
        classes[name] = {member: signature(kind, member) for member in members}
    enums = {
        name: {member: int(value) for member, value in getattr(module, name).__members__.items()}
        for name in ENUMS
        if hasattr(module, name)
    }
    enums["ILogger.Severity"] = {member: int(value) for member, value in module.ILogger.Severity.__members__.items()}
    return {"version": module.__version__, "classes": classes, "enums": enums}


def signature(kind: Any, member: str) -> str:
    """The signature that pybind11 wrote into the docstring, one a line of overloads; "" for attributes, "..." for
    what has none."""
    value = getattr(kind, member)
    if not callable(value):
        return ""
    text = re.sub(r"\b\w+\.tensorrt(?:_rtx)?\.", "", getattr(value, "__doc__", None) or "").strip()
    if overloads := re.findall(rf"^\d+\. ({member}\(.*)$", text, re.MULTILINE):
        return "\n".join(overloads)
    first = text.partition("\n")[0]
    return first if first.startswith(f"{member}(") and "*args, **kwargs" not in first else "..."


def run_with_wheel(wheel: Path, stubs: Path, code: str) -> str:
    """What `code` prints where `tensorrt_bindings` is the wheel's, in a process of its own: versions do not mix."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        # This file and the wheel's package have the same name, so this one goes along under another.
        (Path(folder) / "tensorrt_describe.py").write_text(Path(__file__).read_text())
        environment = {**os.environ, "LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": folder}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=True
        ).stdout


def describe_wheel(wheel: Path, stubs: Path) -> dict[str, Any]:
    """`describe` of the bindings in a wheel."""
    code = "import json, tensorrt_bindings as t, tensorrt_describe as d; print(json.dumps(d.describe(t)))"
    return json.loads(run_with_wheel(wheel, stubs, code))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("wheels", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stubs = compile_stubs(Path(folder))
        found = [describe_wheel(wheel, stubs) for wheel in sorted(arguments.wheels.glob("*.whl"))]
    try:
        import tensorrt_rtx
    except ImportError:
        print("tensorrt_rtx is not installed: left out", file=sys.stderr)
    else:
        found.append({**describe(tensorrt_rtx), "version": f"rtx-{tensorrt_rtx.__version__}"})
    found.sort(key=lambda each: [int(part) for part in re.findall(r"\d+", each["version"])])
    names = {each.pop("version"): each for each in found}
    lines = []
    for version, each in names.items():
        parts = []
        for part in ("classes", "enums"):
            entries = [f"   {json.dumps(name)}: {json.dumps(values)}" for name, values in each[part].items()]
            parts.append(f'  "{part}": {{\n' + ",\n".join(entries) + "\n  }")
        lines.append(f' "{version}": {{\n' + ",\n".join(parts) + "\n }")
    arguments.out.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{arguments.out}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
