"""The gate passes an equal graph, fails a broken one, and fails on too few images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from commands import run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from PIL import Image

from twins_trt.builders.bundle.run import build_bundle
from twins_trt.builders.export import DynamicDim
from twins_trt.builders.gate import Gallery, bootstrap_drop, gate_bundle, load_reference, record_gate, reference_images
from twins_trt.builders.gate.statistics import mean_iou, overlap
from twins_trt.data import open_dataset
from twins_trt.errors import BundleError, ImageError
from twins_trt.evaluation import ConfusionMatrix
from twins_trt.models.weights import load_weights
from twins_trt.runtime import open_bundle, write_bundle
from twins_trt.verbs.build import BuildRequest

SIZE, CLASSES, IMAGES = (64, 96), 5, 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty small images with random labels: only the difference between two sets of masks counts here."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(3)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for i in range(IMAGES):
        blocks = rng.integers(0, 255, (8, 12, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        Image.fromarray(blocks).save(folder / "images" / f"{i:02}.png")
        labels = rng.integers(0, CLASSES, (4, 6)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
        Image.fromarray(labels).save(folder / "labels" / f"{i:02}.png")
    (folder / "classes.txt").write_text("".join(f"class {i}\n" for i in range(CLASSES)))
    return folder


def small(path: Path, **fields: Any) -> BuildRequest:
    """The demo's model, for the CPU."""
    more = {"size": SIZE, "num_classes": CLASSES, "targets": ("cpu",), **fields}
    return BuildRequest("twins_svt-demo_fpn", str(path), seeded=True, **more)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "x.bundle"
    build_bundle(small(path))
    return path


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(built, tmp_path / "x.bundle"))


def gate(bundle: Path, data: Path, *more: object) -> tuple[int, dict]:
    """Exit code and answer of `twins-trt gate`."""
    ran = run_command("gate", bundle, "--data", f"folder:{data}", "--seeded", "--json", *more)
    return ran.code, ran.json


def sabotage(bundle: Path) -> None:
    """Makes the classifier of the bundle's graph favour one class, and updates the manifest's hash."""
    opened = open_bundle(bundle)
    proto = onnx.load(opened.file("graph.onnx"))
    (bias,) = (each for each in proto.graph.initializer if "classifier.bias" in each.name)
    values = numpy_helper.to_array(bias).copy()
    values.reshape(-1)[1] += 1.0
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    write_bundle(bundle, opened.manifest, {"graph.onnx": proto.SerializeToString()}, overwrite=True)


def test_an_equal_graph_passes_and_the_bundle_says_so(bundle: Path, data: Path) -> None:
    code, result = gate(bundle, data)
    assert code == 0 and result["passed"] and result["reasons"] == []
    assert result["agreement"] > 0.999 and result["repeats"] is True and result["batch_agrees"] is None
    assert abs(result["drop"]["mean"]) <= 0.05 and result["images"] == IMAGES
    assert result["simulated"] is False  # a bundle for the CPU ships no engine that something else stands in for
    assert result["seeded"] is True
    opened = open_bundle(bundle)
    assert opened.manifest.gate == "passed"
    assert opened.read_json("gate.json") == result


def test_a_broken_graph_fails_with_exit_code_3_and_pictures(bundle: Path, data: Path, tmp_path: Path) -> None:
    sabotage(bundle)
    code, result = gate(bundle, data, "--pictures", tmp_path / "pictures", "--min-agreement", "0.99")
    assert code == 3 and not result["passed"]
    assert any("pixels agree" in reason for reason in result["reasons"])
    assert open_bundle(bundle).manifest.gate == "failed"
    worst = [row["name"] for row in result["worst"]]
    pictures = {path.stem for path in (tmp_path / "pictures").iterdir()}
    assert pictures == set(worst) and len(pictures) == 8
    with Image.open(tmp_path / "pictures" / f"{worst[0]}.png") as picture:
        assert picture.size == (5 * SIZE[1], SIZE[0])


def show(gallery: Gallery, name: str, *, wrong: int) -> None:
    """Shows the gallery an image of 4 × 6 pixels with two masks that differ in `wrong` pixels."""
    image, label = np.full((4, 6, 3), 200, np.uint8), np.zeros((4, 6), np.uint8)
    mask = label.copy()
    mask.reshape(-1)[:wrong] = 1
    gallery(name, image, label, label, mask)


def test_pictures_of_the_worst_images_wait_for_the_verdict(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path / "pictures", ((0, 0, 0), (100, 150, 250)), keep=2)
    for name, wrong in (("a", 3), ("b", 0), ("c", 9), ("d", 5), ("e", 5)):
        show(gallery, name, wrong=wrong)
    assert not (tmp_path / "pictures").exists()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"of another run")
    assert gallery.save() == [tmp_path / "pictures" / name for name in ("c.png", "d.png")]
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"a.png", "c.png", "d.png"}
    assert (tmp_path / "pictures" / "a.png").read_bytes() == b"of another run"
    with Image.open(tmp_path / "pictures" / "c.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (4, 30, 3)
    assert pixels[0, [0, 6, 12, 18, 24]].tolist() == [[200] * 3, [80] * 3, [80] * 3, [140, 170, 230], [255, 0, 0]]
    assert pixels[3, [18, 24]].tolist() == [[80] * 3, [80] * 3]


def test_a_full_disk_costs_pictures_and_no_verdict(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load_weights("twins_svt-demo_fpn", seeded=True, num_classes=CLASSES)
    gallery = Gallery(tmp_path / "pictures", open_bundle(bundle).manifest.interface.palette)
    images = reference_images(open_bundle(bundle), model, open_dataset(f"folder:{data}").first(2))
    result = gate_bundle(open_bundle(bundle), images, look=gallery)
    assert record_gate(open_bundle(bundle), result).manifest.gate == "failed"  # two images are too few

    def refuse(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(ImageError, match=r"\.png cannot be written: .*No space left"):
        gallery.save()
    assert list((tmp_path / "pictures").iterdir()) == []
    assert open_bundle(bundle).read_json("gate.json")["images"] == 2


def test_a_verdict_is_not_written_into_another_graph(bundle: Path, data: Path) -> None:
    model, _ = load_weights("twins_svt-demo_fpn", seeded=True, num_classes=CLASSES)
    opened = open_bundle(bundle)
    result = gate_bundle(opened, reference_images(opened, model, open_dataset(f"folder:{data}").first(2)))
    sabotage(bundle)  # another build
    with pytest.raises(BundleError, match="holds another graph or other engines than when it was opened"):
        record_gate(opened, result)
    assert open_bundle(bundle).manifest.gate == "ungated"


def test_random_weights_are_warned_of_and_a_missing_verdict_is_not(
    bundle: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.gate == "ungated"
    model = load_reference(opened, checkpoint=None, seeded=True)
    gate_bundle(opened, reference_images(opened, model, open_dataset(f"folder:{data}").first(2)))
    assert caplog.messages == [f"{bundle} holds random weights: its masks mean nothing"]


@pytest.mark.parametrize("opens", [True, False])
def test_a_bundle_that_is_replaced_while_its_engine_opens_is_not_judged(
    opens: bool, bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the engine opens or not: it may be of either bundle."""
    opened = open_bundle(bundle)
    model = load_reference(opened, checkpoint=None, seeded=True)
    other, real = opened.graph.read_bytes() + b"\n", onnxruntime.InferenceSession

    def replace_first(*given: Any, **named: Any) -> Any:
        write_bundle(bundle, opened.manifest, {"graph.onnx": other}, overwrite=True)
        if not opens:
            raise RuntimeError("no such graph")
        return real(*given, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", replace_first)
    with pytest.raises(BundleError, match="was replaced since it was opened"):
        gate_bundle(
            opened, reference_images(opened, model, open_dataset(f"folder:{data}").first(2)), engine="onnxruntime"
        )


def test_images_in_a_batch_are_judged_too(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.bundle"
    build_bundle(small(path, batch=DynamicDim(1, 2, 4)))
    code, result = gate(path, data)
    assert code == 0 and result["batch_agrees"] is True
    # A graph that computes the batch's first image for every place in it.
    proto = onnx.load(open_bundle(path).graph)
    first = [numpy_helper.from_array(np.array(value, np.int64), f"first.{value[0]}") for value in ([0], [1])]
    proto.graph.initializer.extend(first)
    for node in proto.graph.node:
        node.input[:] = ["only" if name == "image" else name for name in node.input]
    shape = helper.make_node("Shape", ["image"], ["shape of image"])
    one = helper.make_node("Slice", ["image", "first.0", "first.1", "first.0"], ["one"])
    proto.graph.node.insert(0, helper.make_node("Expand", ["one", "shape of image"], ["only"]))
    proto.graph.node.insert(0, one)
    proto.graph.node.insert(0, shape)
    write_bundle(path, open_bundle(path).manifest, {"graph.onnx": proto.SerializeToString()}, overwrite=True)
    code, result = gate(path, data)
    assert code == 3 and result["reasons"] == ["images in a batch get other masks than alone"]


def test_too_few_images_fail_however_well_they_score(bundle: Path, data: Path) -> None:
    code, result = gate(bundle, data, "--limit", "5")
    assert code == 3
    assert result["reasons"] == ["5 images are too few to judge by, at least 30 are asked for"]


def test_a_wider_allowance_lets_it_pass_and_a_dry_run_changes_nothing(bundle: Path, data: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    assert gate(bundle, data, "--dry-run")[1]["dry_run"] is True
    assert (bundle / "manifest.json").read_bytes() == before
    assert gate(bundle, data, "--limit", "5", "--min-images", "5", "--max-drop", "100")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--max-drop", "-1"], 2, "-1.0 points"),
        (["--min-images", "0"], 2, "0 images"),
        (["--min-agreement", "2"], 2, "no share"),
        (["--limit", "0"], 2, "--limit is 0"),
        (["--engine", "magic"], 2, "magic"),
    ],
)
def test_wrong_arguments(arguments: list[str], code: int, words: str, bundle: Path, data: Path) -> None:
    got, answer = gate(bundle, data, *arguments)
    assert got == code and words in answer["error"]


def test_the_weights_are_not_judged_in_place_of_the_graph(bundle: Path, data: Path) -> None:
    code, said = gate(bundle, data, "--engine", "torch")
    assert code == 2 and "runs the weights, not the graph" in said["error"]
    assert open_bundle(bundle).manifest.gate == "ungated"


def test_the_reference_must_have_the_bundles_own_weights(bundle: Path, data: Path) -> None:
    ran = run_command("gate", bundle, "--data", f"folder:{data}", "--checkpoint", "other.pth", "--json")
    assert ran.code == 2 and "has seeded weights" in ran.json["error"]


def overlaps(rng: np.random.Generator, images: int, *, error: float) -> list[np.ndarray]:
    out = []
    for _ in range(images):
        matrix = ConfusionMatrix(3)
        label = rng.integers(0, 3, (40, 40)).astype(np.uint8)
        wrong = rng.random((40, 40)) < error
        matrix.update(np.where(wrong, (label + 1) % 3, label).astype(np.uint8), label)
        out.append(overlap(matrix))
    return out


def test_classes_that_the_model_does_not_have_fail_the_gate(bundle: Path, data: Path) -> None:
    """A broken engine gets a verdict, not an error about the data set."""
    opened = open_bundle(bundle)
    proto = onnx.load(opened.file("graph.onnx"))
    (last,) = (node for node in proto.graph.node if "mask" in node.output)
    factor = numpy_helper.from_array(np.array(60, np.int64), "factor")
    proto.graph.initializer.append(factor)
    product = helper.make_node("Mul", [last.input[0], factor.name], ["sixtyfold"])
    proto.graph.node.insert(list(proto.graph.node).index(last), product)
    last.input[0] = product.output[0]
    write_bundle(bundle, opened.manifest, {"graph.onnx": proto.SerializeToString()}, overwrite=True)
    code, result = gate(bundle, data)
    assert code == 3
    (reason,) = (each for each in result["reasons"] if "have a class that the model does not have" in each)
    share = float(reason.split(" %")[0])
    assert 0 < share <= 100 and 100 * result["agreement"] == pytest.approx(100 - share, abs=0.5)
    assert result["drop"]["mean"] > 0


def test_the_interval_holds_the_mean_and_narrows_with_images() -> None:
    rng = np.random.default_rng(0)
    few, many = (bootstrap_drop(overlaps(rng, n, error=0.10), overlaps(rng, n, error=0.12)) for n in (20, 320))
    for drop in (few, many):
        assert drop.low < drop.mean < drop.high
    assert many.high - many.low < 0.5 * (few.high - few.low)  # a quarter by the square root of 16, with room
    assert many.low > 0  # two points more errors are seen


def test_equal_masks_drop_nothing() -> None:
    same = overlaps(np.random.default_rng(1), 10, error=0.2)
    drop = bootstrap_drop(same, same)
    assert drop.mean == drop.low == drop.high == 0.0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_mean_iou_is_the_confusion_matrixs(seed: int) -> None:
    matrix = ConfusionMatrix(4)
    rng = np.random.default_rng(seed)
    matrix.update(rng.integers(0, 3, (6, 6)).astype(np.uint8), rng.integers(0, 3, (6, 6)).astype(np.uint8))
    assert float(mean_iou(overlap(matrix))) == pytest.approx(matrix.scores().miou)
