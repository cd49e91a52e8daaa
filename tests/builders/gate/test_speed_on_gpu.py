"""Two engines timed on a simulated Orin: which engine ran, its clocks and heat, and what a CPU may not say of it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import run_command
from fake_arithmetic import OnnxSession
from fake_cuda import install_machine
from fake_engines import runtime_module, serialize
from fake_gpu import FakeGpu
from fake_tensorrt import versions

from tests.profiling import trees
from tests.tiny_graphs import MakeBundle
from twins_trt import compare_speed
from twins_trt.builders.gate.speed import judge_speed, pair_of, time_pair
from twins_trt.device import Device
from twins_trt.errors import EngineError
from twins_trt.profiling.results import ProfileOptions
from twins_trt.profiling.speed import outdated, read_speed
from twins_trt.runtime import Bundle, EngineFile, open_bundle, write_bundle

ORIN = Device("Orin", "sm_87", integrated=True)
ENGINE = "engines/orin.engine"
QUICK = ("--rounds", "6", "--calls", "5", "--warm-up", "0")
OPTIONS = ProfileOptions(rounds=6, calls=2, warm_up_s=0.0, layers=False, power_s=0.0)


class Paced(OnnxSession):
    """A session of a graph whose description says how many milliseconds a run takes."""

    called: Callable[[], object] | None = None

    def __init__(self, graph: bytes) -> None:
        super().__init__(graph)
        self._seconds = float(onnx.load_from_string(graph).doc_string) / 1e3

    def run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        time.sleep(self._seconds)
        if Paced.called is not None:
            Paced.called()
        return super().run(names, feeds)


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """`orin(version)` makes this machine an Orin with that TensorRT."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(Paced, "called", None)

    def install(version: str) -> None:
        gpu = FakeGpu(integrated=True)
        install_machine(monkeypatch, gpu, runtime_module(version, gpu, open_session=Paced), ORIN)

    return install


@pytest.fixture
def engine_of(make_bundle: MakeBundle) -> Callable[..., Bundle]:
    """`engine_of(name, milliseconds, version="10.3.0")`: a bundle with an engine for the Orin."""

    def make(name: str, milliseconds: float, version: str = "10.3.0") -> Bundle:
        plain = make_bundle(precision=name, gate="passed")
        model = onnx.load_from_string(plain.graph.read_bytes())
        model.doc_string = str(milliseconds)
        engine = EngineFile(ENGINE, "tensorrt", version, ("sm_87",))
        files = {"graph.onnx": plain.graph, ENGINE: serialize(model.SerializeToString(), version=version)}
        manifest = replace(plain.manifest, engines=(engine,), files=())
        return write_bundle(plain.path.with_name(f"{name}.bundle"), manifest, files)

    return make


@pytest.mark.parametrize("version", [each for each in versions() if not each.startswith("rtx-")])
def test_engines_of_every_tensorrt_are_timed_where_they_run(
    orin: Callable[[str], None], engine_of: Callable[..., Bundle], version: str
) -> None:
    orin(version)
    int8, fp16 = engine_of("int8", 2.0, version), engine_of("fp16", 15.0, version)
    ran = run_command("gate", int8.path, "--against", fp16.path, *QUICK)
    assert ran.code == 0, ran.err
    found = read_speed(open_bundle(int8.path))
    assert found is not None
    assert (found.passed, found.simulated, found.ship, found.measured_on) == (
        True,
        False,
        "int8.bundle",
        "Orin (sm_87)",
    )
    digests = {entry.path: entry.sha256 for entry in int8.manifest.files}
    assert (found.ours.engine, found.ours.file, found.ours.file_sha256) == ("tensorrt", ENGINE, digests[ENGINE])
    assert found.theirs.engines == {ENGINE: {entry.path: entry.sha256 for entry in fp16.manifest.files}[ENGINE]}
    assert found.ours.times["call"].p50 > 2 and found.theirs.times["call"].p50 > 15

    slower = run_command("gate", fp16.path, "--against", int8.path, *QUICK, "--json")
    assert slower.code == 3
    assert slower.json["speed"]["ship"] == "int8.bundle"


def test_an_int8_engine_that_is_slower_is_not_shipped(
    orin: Callable[[str], None], engine_of: Callable[..., Bundle]
) -> None:
    orin("10.3.0")
    found = compare_speed(engine_of("int8", 15.0), engine_of("fp16", 2.0), rounds=6, calls=5, warm_up=0.0, record=False)
    assert (found.passed, found.ship) == (False, "fp16.bundle")
    assert found.advice == "ship fp16.bundle: it is faster than int8.bundle"


def test_a_bundle_that_would_run_on_the_cpu_is_not_compared_with_one_on_the_gpu(
    orin: Callable[[str], None], engine_of: Callable[..., Bundle], make_bundle: MakeBundle
) -> None:
    orin("10.3.0")
    int8, graph_alone = engine_of("int8", 2.0), make_bundle()
    for pair in ((int8, graph_alone), (graph_alone, int8)):
        with pytest.raises(
            EngineError, match=r"would run on the CPU \(onnxruntime\) and the other one on the GPU"
        ) as it:
            pair_of(*pair)
        assert str(graph_alone.path) in it.value.cause
        assert it.value.fix == f"twins-trt compile {graph_alone.path}"


def test_the_verdict_ends_with_its_engine(orin: Callable[[str], None], engine_of: Callable[..., Bundle]) -> None:
    orin("10.3.0")
    int8, fp16 = engine_of("int8", 2.0), engine_of("fp16", 15.0)
    compare_speed(int8, fp16, rounds=6, calls=1, warm_up=0.0)
    timed = open_bundle(int8.path)
    files: dict[str, bytes | Path] = {name: timed.file(name).read_bytes() for name in timed.files}
    files[ENGINE] = engine_of("again", 2.5).file(ENGINE).read_bytes()  # as after an upgrade of JetPack
    compiled = write_bundle(int8.path, replace(timed.manifest, files=()), files, overwrite=True)
    found = read_speed(compiled)
    assert found is not None and outdated(found, compiled.manifest) == f"{ENGINE} was replaced since"
    assert f"counts no more ({ENGINE} was replaced since), was passed" in run_command("inspect", int8.path).out


def test_a_cpu_in_place_of_the_engines_says_so_and_replaces_nothing(
    orin: Callable[[str], None], engine_of: Callable[..., Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    orin("10.3.0")
    int8, fp16 = engine_of("int8", 2.0), engine_of("fp16", 15.0)
    measured = compare_speed(int8, fp16, rounds=6, calls=1, warm_up=0.0)
    on_cpu = compare_speed(int8, fp16, rounds=6, calls=1, warm_up=0.0, engine="onnxruntime", threads=1)
    assert (on_cpu.simulated, on_cpu.ship, on_cpu.ours.file) == (True, None, None)
    assert on_cpu.measured_on != measured.measured_on
    assert read_speed(open_bundle(int8.path)) == measured
    assert "keeps its speed verdict, which was measured on Orin (sm_87)" in caplog.text


def test_engines_that_do_not_fit_leave_the_cpu_and_a_reason(
    orin: Callable[[str], None], engine_of: Callable[..., Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    """As after an upgrade of JetPack, where ONNX Runtime is installed."""
    orin("10.13.3.9")
    pair = engine_of("int8", 2.0, "10.3.0"), engine_of("fp16", 15.0, "10.3.0")
    found = compare_speed(*pair, rounds=6, calls=1, warm_up=0.0, threads=1, record=False)
    assert (found.simulated, found.ship, found.ours.engine) == (True, None, "onnxruntime")
    for bundle in pair:
        assert f"{bundle.path} runs on the CPU: tensorrt: " in caplog.text
    assert "was built with TensorRT 10.3.0, installed is 10.13.3.9" in caplog.text


def test_heat_clocks_and_power_mode_are_in_the_verdict(
    orin: Callable[[str], None],
    engine_of: Callable[..., Bundle],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """With every call the board gets hotter; from 70 °C on its GPU is throttled, and is slow from then on."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    tool = tmp_path / "bin" / "nvpmodel"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf 'NV Power Mode: MAXN\\n0\\n'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    gpu, thermal = "sys/class/devfreq/17000000.gpu", "sys/class/thermal"
    zone, cooling = f"{thermal}/thermal_zone0", f"{thermal}/cooling_device0"
    still: dict[str, object] = {
        f"{gpu}/max_freq": 918_000_000,
        f"{zone}/type": "tj-thermal",
        f"{zone}/trip_point_0_type": "passive",
        f"{zone}/trip_point_0_temp": 70_000,
        f"{cooling}/type": "devfreq-17000000.gpu",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0, GCID: 1",
    }
    root = trees.write(tmp_path / "root", still)
    calls = 0

    def heat_up() -> None:
        nonlocal calls
        calls += 1
        degrees = 30 + calls // 4
        hot = degrees >= 70
        clock = 306_000_000 if hot else 918_000_000
        state = {
            f"{zone}/temp": degrees * 1000,
            f"{gpu}/cur_freq": clock,
            f"{cooling}/cur_state": int(hot),
        }
        trees.write(root, state)

    heat_up()
    orin("10.3.0")
    monkeypatch.setattr(Paced, "called", staticmethod(heat_up))
    pair = pair_of(engine_of("int8", 4.0), engine_of("fp16", 12.0))
    options = replace(OPTIONS, rounds=20, settle_s=0.01)
    found = judge_speed(pair, time_pair(pair, options, root=root))
    assert calls > 4 * 40
    assert found.passed  # it is slowed down as well as the other one
    assert (found.power_mode, found.versions["l4t"]) == ("MAXN", "36.4.0")
    assert found.machine.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found.before.temperatures_c["tj-thermal"] == 30.0 < found.during[0].temperatures_c["tj-thermal"]
    assert found.during[-1].clocks_mhz["gpu"] == 306.0
    said = "\n".join(found.warnings)
    assert "clocks were held back: cooling by devfreq-17000000.gpu" in said
    assert (
        "the gpu clock was down to 306 MHz at work, its maximum is 918 MHz; sudo jetson_clocks holds it there" in said
    )
    assert "tj-thermal reached" in said and "is slowed down from 70 °C on" in said
    assert "clocks and latencies were not steady after" in said
    lines = found.table().splitlines()
    assert "power mode    MAXN" in lines and f"note          {found.warnings[0]}" in lines


def test_a_device_needs_none_of_the_builders_packages() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys('torch onnx onnxruntime onnx_graphsurgeon cv2 scipy'.split()))\n"
        "import twins_trt, twins_trt.builders.gate.speed, twins_trt.profiling.speed, twins_trt.cli.gate\n"
        "print(twins_trt.compare_speed.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "compare_speed", done.stderr
