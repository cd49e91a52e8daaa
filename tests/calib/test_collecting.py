"""Collecting counts the right values; order, grouping, shards and interruptions change no bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calib_graphs import HEIGHT, OBSERVED, WIDTH, forward, photo, photos, write_graph
from onnx import numpy_helper
from told import Told

from twins_trt.calib import (
    CalibrationOptions,
    Collection,
    CollectRun,
    calibrate,
    collect,
    load_collection,
    merge,
    save_collection,
)
from twins_trt.calib.images import is_noise
from twins_trt.errors import DataError, EngineError, ImageError, MissingDependencyError, UsageError

OPTIONS = CalibrationOptions(minimum=4)
HERE = Path(__file__).parent


def same(first: Collection, second: Collection) -> bool:
    return first.histograms == second.histograms and sorted(first.digests) == sorted(second.digests)


def run_script(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


def test_ranges_are_those_of_the_activations(graph: Path) -> None:
    images = photos(6)
    ranges = calibrate(graph, images, options=OPTIONS)
    assert (ranges.images, tuple(ranges.ranges)) == (6, OBSERVED)
    expected = [forward(image) for image in images]
    for name in OBSERVED:
        values = np.concatenate([each[name].ravel() for each in expected])
        found = ranges.ranges[name]
        assert (found.min, found.max) == pytest.approx((values.min(), values.max()), rel=1e-4, abs=1e-6)
        assert found.amax["percentile"] == pytest.approx(np.percentile(np.abs(values), 99.99), rel=0.01)
        assert found.amax["minmax"] == max(-found.min, found.max)


def test_histograms_count_every_value_once(graph: Path) -> None:
    collection = collect(graph, photos(5), options=OPTIONS)
    sizes = {name: value.size for name, value in forward(photo(0)).items()}
    assert {name: histogram.total for name, histogram in collection.histograms.items()} == {
        name: 5 * size for name, size in sizes.items()
    }


def test_order_batches_groups_and_threads_change_no_bit(graph: Path) -> None:
    images = photos(8)
    whole = collect(graph, images, options=OPTIONS)
    assert same(whole, collect(graph, reversed(images), options=OPTIONS))
    assert same(whole, collect(graph, [np.stack(images[:3]), *images[3:6], np.stack(images[6:])], options=OPTIONS))
    assert same(whole, collect(graph, iter(images), options=OPTIONS, run=CollectRun(threads=1)))
    assert calibrate(graph, images, options=OPTIONS) == calibrate(graph, images[::-1], options=OPTIONS)


def test_tensors_in_several_runs_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    opened = []

    def session(part: bytes, *given: Any, **named: Any) -> Any:
        opened.append(len(onnx.load_from_string(part).graph.output))
        return original(part, *given, **named)

    original = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    graph = write_graph(tmp_path / "large.onnx", size=(256, 320))  # 6.6 MB of softmax
    images = [photo(seed, height=256, width=320) for seed in range(4)]
    runs = (CollectRun(memory_mib=limit) for limit in (64, 1))
    together, apart = (collect(graph, images, options=OPTIONS, run=each) for each in runs)
    assert opened == [10, 10, 10, 2, 5, 1, 2]  # each time the shapes first; then the softmax has a run of its own
    assert same(together, apart)
    assert together.ranges() == apart.ranges()


def test_shards_of_several_processes_are_the_whole_bit_for_bit(graph: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from calib_graphs import photos; from twins_trt.calib import *\n"
        "graph, out, first, count = sys.argv[1:]\n"
        "options = CalibrationOptions(minimum=4)\n"
        "save_collection(collect(graph, photos(int(count), first=int(first)), options=options), out)"
    )
    parts = [(0, 3), (3, 1), (4, 5)]  # one with fewer images than the minimum, which holds for the whole
    running = [run_script(script, graph, tmp_path / f"{first}.npz", first, count) for first, count in parts]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    shards = [load_collection(tmp_path / f"{first}.npz") for first, _ in reversed(parts)]
    whole = collect(graph, photos(9), options=OPTIONS)
    assert same(merge(shards), whole)
    assert merge(shards).ranges() == whole.ranges() == calibrate(graph, photos(9), options=OPTIONS)


def test_shards_that_do_not_belong_together(graph: Path) -> None:
    shard = collect(graph, photos(4), options=OPTIONS)
    other = collect(graph, photos(4, first=4), options=CalibrationOptions(minimum=4, bins=2048))
    with pytest.raises(DataError, match="different graphs or settings"):
        merge([shard, other])
    with pytest.raises(DataError, match="1 images are in more than one shard"):
        merge([shard, collect(graph, photos(3, first=3), options=OPTIONS)])
    with pytest.raises(DataError, match="no shards"):
        merge([])


def test_a_killed_run_goes_on_where_it_was(graph: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time; from calib_graphs import photos; from twins_trt.calib import *\n"
        "def images():\n"
        "    for number, image in enumerate(photos(30)):\n"
        "        if number == 20: print('hanging', flush=True); time.sleep(60)\n"
        "        yield image\n"
        "run = CollectRun(state=sys.argv[2])\n"
        "calibrate(sys.argv[1], images(), options=CalibrationOptions(minimum=4), run=run)"
    )
    state = tmp_path / "state"
    running = run_script(script, graph, state)
    assert running.stdout is not None and running.stdout.readline() == "hanging\n"
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert len(load_collection(state).digests) == 16  # two writings of eight; the last four are lost
    images, said = photos(30), Told()
    resumed = calibrate(graph, images[::-1], options=OPTIONS, run=CollectRun(state=state, progress=said))
    assert [detail.split(",")[0] for detail in said.details] == [f"{done} of 30 images" for done in range(17, 31)]
    assert resumed == calibrate(graph, images, options=OPTIONS)
    again = Told()
    assert calibrate(graph, images, options=OPTIONS, run=CollectRun(state=state, progress=again)) == resumed
    assert again.calls == []


def test_a_state_of_something_else_is_refused(graph: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    collect(graph, photos(5), options=OPTIONS, run=CollectRun(state=state))
    with pytest.raises(DataError, match=r"of another graph or other settings: its key is [0-9a-f]{64}, wanted is"):
        collect(graph, photos(5), options=CalibrationOptions(minimum=5), run=CollectRun(state=state))
    with pytest.raises(DataError, match="of another graph or other settings"):
        other = write_graph(tmp_path / "other.onnx", seed=1)
        collect(other, photos(5), options=OPTIONS, run=CollectRun(state=state))
    with pytest.raises(DataError, match="holds 2 images that are not among the 4 of this run"):
        collect(graph, photos(4, first=2), options=OPTIONS, run=CollectRun(state=state))


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-100], lambda content: bytes(500), lambda content: b"text"]
)
def test_a_damaged_state_is_named_and_collected_anew(
    graph: Path, tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    expected = collect(graph, photos(5), options=OPTIONS, run=CollectRun(state=state))
    content = damage(state.read_bytes())
    state.write_bytes(content)
    with pytest.raises(DataError, match="is no collection"):
        load_collection(state)
    assert collect(graph, photos(5), options=OPTIONS, run=CollectRun(state=state)) == expected
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"{state} is no collection: ")
    assert caplog.messages[0].endswith("; collecting starts over, and what was there is now state.damaged")
    assert load_collection(state) == expected
    assert (tmp_path / "state.damaged").read_bytes() == content  # a slip of the hand costs no file


def test_a_state_that_cannot_be_one_stays(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(DataError, match="is no collection"):
        collect(graph, photos(5), options=OPTIONS, run=CollectRun(state=tmp_path / "state"))
    assert [path.name for path in tmp_path.iterdir() if path != graph] == ["state"]


def test_collections_round_trip(graph: Path, tmp_path: Path) -> None:
    collection = collect(graph, photos(4), options=OPTIONS)
    assert load_collection(save_collection(collection, tmp_path / "shard")) == collection


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Iterator[np.ndarray]]:
    """Makes streams of photographs. By the clock, which only they move, each photograph takes 100 seconds."""
    now = [5000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def stream(count: int) -> Iterator[np.ndarray]:
        for image in photos(count):
            now[0] += 100
            yield image

    return stream


def test_progress_has_an_eta_where_the_number_is_known(
    graph: Path, camera: Callable[[int], Iterator[np.ndarray]]
) -> None:
    said = Told()
    collect(graph, camera(4), options=OPTIONS, run=CollectRun(progress=said, total=4))
    assert said.calls == [
        ("calibrate", "1 of 4 images, 300 s left", 0.25),
        ("calibrate", "2 of 4 images, 200 s left", 0.5),
        ("calibrate", "3 of 4 images, 100 s left", 0.75),
        ("calibrate", "4 of 4 images, 0 s left", 1.0),
    ]
    said = Told()
    collect(graph, camera(4), options=OPTIONS, run=CollectRun(progress=said))
    assert said.calls == [("calibrate", f"{done} images", None) for done in range(1, 5)]


def test_lists_and_their_batches_are_counted_in_advance(graph: Path) -> None:
    for images in (photos(4), [np.stack(photos(3)), photo(3)]):
        said = Told()
        collect(graph, images, options=OPTIONS, run=CollectRun(progress=said))
        assert [share for _, _, share in said.calls] == [0.25, 0.5, 0.75, 1.0]
        assert said.details[-1] == "4 of 4 images, 0 s left"


def test_a_resumed_run_reckons_with_its_own_images(
    graph: Path, tmp_path: Path, camera: Callable[[int], Iterator[np.ndarray]]
) -> None:
    state, said = tmp_path / "state", Told()
    collect(graph, photos(2), options=OPTIONS, run=CollectRun(state=state))
    collect(graph, camera(4), options=OPTIONS, run=CollectRun(state=state, progress=said, total=4))
    assert said.details == ["3 of 4 images, 300 s left", "4 of 4 images, 0 s left"]  # two were only read


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def test_data_that_is_none(graph: Path) -> None:
    blank = np.full((HEIGHT, WIDTH, 3), 7, np.uint8)
    for images, said in (
        ([], "no images"),
        (photos(3), "3 different images are too few to calibrate with; the minimum is 4"),
        ([photo(0)] * 9, "1 different images are too few"),
        ([*photos(5), blank], "image 6 has the value 7 everywhere"),
        ([noise(seed) for seed in range(4)], "4 of 4 images are noise"),
        ([*photos(2), *map(noise, range(3))], "3 of 5 images are noise"),
    ):
        with pytest.raises(DataError, match=said):
            calibrate(graph, images, options=OPTIONS)
    assert calibrate(graph, [*photos(4), noise(0)], options=OPTIONS).images == 5
    with pytest.raises(DataError, match=r"a\.png has the value 7"):
        calibrate(graph, [blank], options=OPTIONS, run=CollectRun(names=["a.png"]))
    default = CalibrationOptions()
    with pytest.raises(DataError, match="7 different images are too few to calibrate with; the minimum is 8"):
        calibrate(graph, photos(7), options=default)


def test_random_data_stops_early(graph: Path) -> None:
    drawn: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            drawn.append(len(drawn))
            yield noise(len(drawn))

    with pytest.raises(DataError, match="noise"):
        calibrate(graph, endless(), options=OPTIONS)
    assert len(drawn) == 4


def test_noise_is_told_from_photographs() -> None:
    assert all(is_noise(noise(seed)) for seed in range(20))
    assert not any(is_noise(photo(seed)) for seed in range(20))
    stripes = np.repeat(noise(0)[:, :1], WIDTH, axis=1)  # neighbours agree along one axis: no noise
    assert not is_noise(stripes)
    assert not is_noise(np.zeros((1, 1, 3), np.uint8))


@pytest.mark.shared
def test_no_photograph_of_camvid_is_noise(camvid: Path) -> None:
    from twins_trt.data import open_dataset

    dataset = open_dataset(f"camvid:{camvid}", split="train")
    assert not any(is_noise(dataset[index].image) for index in range(0, len(dataset), max(1, len(dataset) // 40)))


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), "a.png"]
)
def test_what_is_no_image(graph: Path, bad: object) -> None:
    with pytest.raises(ImageError, match="an image for calibration is"):
        collect(graph, [bad], options=OPTIONS)


def test_graphs_that_overflow_or_do_not_run(graph: Path, tmp_path: Path) -> None:
    model = onnx.load(str(graph))
    (scale,) = (weight for weight in model.graph.initializer if weight.name == "scale")
    scale.CopyFrom(numpy_helper.from_array(np.zeros(1, np.float32), "scale"))
    onnx.save(model, str(tmp_path / "zero.onnx"))
    with pytest.raises(DataError, match="input/pixels is not finite at image 1"):
        collect(tmp_path / "zero.onnx", photos(1), options=OPTIONS)
    (node,) = (node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "NoSuchOperator"
    onnx.save(model, str(tmp_path / "unknown.onnx"))
    with pytest.raises(EngineError, match="refuses"):
        collect(tmp_path / "unknown.onnx", photos(1), options=OPTIONS)
    with pytest.raises(DataError, match="cannot be read"):
        collect(tmp_path / "absent.onnx", photos(1), options=OPTIONS)


def test_where_it_runs(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    with pytest.raises(UsageError, match="no device 'tpu'"):
        collect(graph, photos(1), run=CollectRun(device="tpu"))
    with pytest.raises(UsageError, match="memory_mib is 0"):
        collect(graph, photos(1), run=CollectRun(memory_mib=0))
    on_cpu = collect(graph, photos(1), run=CollectRun(device="cpu"))
    assert on_cpu.collected_with.endswith("CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match="no CUDA provider"):
        collect(graph, photos(1), run=CollectRun(device="cuda"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="calibration needs onnxruntime"):
        collect(graph, photos(1))


def test_a_fixed_batch_is_filled(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "two.onnx", batch=2)
    single = write_graph(tmp_path / "one.onnx", batch=1)
    images = photos(6)
    assert collect(graph, images, options=OPTIONS).histograms == collect(single, images, options=OPTIONS).histograms
    with pytest.raises(DataError, match="takes 2 images at once, and 1 are left over"):
        collect(graph, images[:5], options=OPTIONS)


def test_peak_memory_is_flat_in_the_number_of_images(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "small.onnx", size=(96, 128))  # 0.3 MB of activations an image
    script = (
        "import sys; from calib_graphs import photo; from twins_trt.calib import *\n"
        "from twins_trt.host_memory import peak_host_mib\n"
        "images = (photo(seed, height=96, width=128) for seed in range(int(sys.argv[2])))\n"
        "collect(sys.argv[1], images, run=CollectRun(threads=1))\n"
        "print(peak_host_mib())"
    )
    peaks = []
    for count in (10, 500):
        out, _ = run_script(script, graph, count).communicate(timeout=120)
        peaks.append(float(out))
    assert peaks[1] <= 1.05 * peaks[0]
