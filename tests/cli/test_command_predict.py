from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import Twins, scene
from PIL import Image
from tiny_graphs import MakeBundle

from twins_trt.errors import UsageError
from twins_trt.runtime import Segmenter, Tiles, open_bundle
from twins_trt.verbs.predict import result_files, result_names


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """a.png of the bundle's size, b.jpg of another, c/1.png and c/2.png, and notes.txt."""
    folder = tmp_path / "pictures"
    (folder / "c").mkdir(parents=True)
    Image.fromarray(scene(64, 96, 1)).save(folder / "a.png")
    Image.fromarray(scene(101, 75, 2)).save(folder / "b.jpg", quality=95)
    Image.fromarray(scene(64, 96, 3)).save(folder / "c" / "1.png")
    Image.fromarray(scene(30, 40, 4)).convert("L").save(folder / "c" / "2.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_files_folders_and_patterns_become_masks_and_overlays(
    twins: Twins, bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = twins("predict", bundle, pictures / "a.png", pictures / "c", f"{pictures}/*.jpg", "--out", out, "--json")
    assert ran.code == 0, ran.err
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{name}_{kind}.png" for name in ("a", "b", "1", "2") for kind in ("mask", "overlay")
    )
    records = {Path(record["image"]).name: record for record in ran.json["images"]}
    assert list(records) == ["a.png", "1.png", "2.png", "b.jpg"] and ran.json["failed"] == 0
    palette = np.array(open_bundle(bundle).manifest.interface.palette, np.uint8)
    with Segmenter(bundle) as segmenter:
        for source in (pictures / "a.png", pictures / "b.jpg"):
            expected = segmenter(source)
            record = records[source.name]
            with Image.open(record["mask"]) as mask:
                assert mask.mode == "P" and mask.size == Image.open(source).size
                indices = np.asarray(mask)
                assert np.array_equal(np.asarray(mask.convert("RGB")), palette[indices])
            assert np.array_equal(indices, expected.mask)
            assert len(np.unique(indices)) > 1
            assert np.array_equal(np.asarray(Image.open(record["overlay"])), expected.overlay())
            assert (record["height"], record["width"]) == indices.shape
            assert sum(record["areas"].values()) == pytest.approx(1, abs=1e-4)


def test_one_failing_image_is_reported_and_the_rest_goes_on(
    twins: Twins, bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "b.jpg").write_bytes((pictures / "b.jpg").read_bytes()[:200])
    out = tmp_path / "out"
    words = ("predict", bundle, pictures, pictures / "gone.png", pictures / "notes.txt", "--out", out)
    ran = twins(*words, "--json")
    assert ran.code == 1
    assert ran.json["failed"] == 3
    errors = {Path(record["image"]).name: record["error"] for record in ran.json["images"] if "error" in record}
    assert errors.keys() == {"b.jpg", "gone.png", "notes.txt"}
    assert "cannot be decoded" in errors["b.jpg"] and "does not exist" in errors["gone.png"]
    assert sorted(path.name for path in out.iterdir()) == ["a_mask.png", "a_overlay.png"]
    assert ran.err.count("error: ") == 3
    text = twins(*words)
    assert text.code == 1 and text.out == f"1 images segmented into {out}, 3 failed\n"


def test_masks_or_overlays_alone(twins: Twins, bundle: Path, pictures: Path, tmp_path: Path) -> None:
    assert twins("predict", bundle, pictures / "a.png", "--out", tmp_path / "m", "--no-overlay").code == 0
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["a_mask.png"]
    words = ("--no-mask", "--alpha", "1")
    assert twins("predict", bundle, pictures / "a.png", "--out", tmp_path / "o", *words).code == 0
    with Segmenter(bundle) as segmenter:
        colours = segmenter(pictures / "a.png").colours()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "o" / "a_overlay.png")), colours)


def test_a_dynamic_bundle_takes_any_size(twins: Twins, cpu_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    ran = twins("predict", cpu_bundle, pictures, pictures / "c", "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert [(r["height"], r["width"]) for r in ran.json["images"]] == [(64, 96), (101, 75), (64, 96), (30, 40)]
    assert Image.open(tmp_path / "out" / "b_mask.png").size == (75, 101)


def test_names_keep_as_much_as_tells_them_apart(tmp_path: Path) -> None:
    assert result_names([Path("x/a.png"), Path("y/b.jpg")]) == ["a", "b"]
    assert result_names([Path("x/a.png"), Path("y/A.jpg"), Path("x/b.png")]) == ["x/a", "y/A", "x/b"]
    assert result_names([Path("x/a.png"), Path("x/a.jpg"), Path("y/a.jpg")]) == ["x/a.png", "x/a.jpg", "y/a.jpg"]
    assert result_names([Path("x/../a.png"), Path("x/a.png")]) == ["a", "x/a"]
    files = result_files(
        [tmp_path / "x" / "a.png", tmp_path / "y" / "a.png"], tmp_path / "out", masks=True, overlays=False
    )
    assert [each.mask for each in files] == [
        tmp_path / "out" / "x" / "a_mask.png",
        tmp_path / "out" / "y" / "a_mask.png",
    ]
    assert [each.overlay for each in files] == [None, None]


def test_an_image_is_never_replaced_by_a_result(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "a_mask.png"]
    with pytest.raises(UsageError, match=r"a_mask\.png is one of the images"):
        result_files(paths, tmp_path, masks=True, overlays=True)


def test_large_images_in_tiles(twins: Twins, make_bundle: MakeBundle, pictures: Path, tmp_path: Path) -> None:
    bundle = make_bundle(outputs=("logits",)).path
    out = tmp_path / "out"
    ran = twins(
        "predict", bundle, pictures / "b.jpg", "--out", out, "--tile", "24x32", "--overlap", "8", "--no-overlay"
    )
    assert ran.code == 0, ran.err
    with Segmenter(bundle, mode=Tiles((24, 32), 8)) as segmenter:
        expected = segmenter(pictures / "b.jpg").mask
    assert expected.shape == (101, 75)
    assert np.array_equal(np.asarray(Image.open(out / "b_mask.png")), expected)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mode", "whale"), "there is no mode 'whale'"),
        (("--mode", "slide", "--tile", "64"), "--tile and --overlap are of --mode tile, not slide"),
        (("--tile", "32:64:96"), "is a range"),
        (("--tile", "8", "--overlap", "8"), "overlap by 8"),
        (("--engine", "cuda"), "there is no engine 'cuda'"),
        (("--mode", "tile"), "gives logits can be run in parts"),
    ],
)
def test_modes_that_cannot_be(
    twins: Twins, make_bundle: MakeBundle, pictures: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    ran = twins("predict", make_bundle().path, pictures / "b.jpg", "--out", tmp_path / "out", *words)
    assert ran.code == 2 and said in ran.err


def test_an_engine_that_is_not_there_is_said_to_be(
    twins: Twins, make_bundle: MakeBundle, pictures: Path, tmp_path: Path
) -> None:
    bundle = make_bundle().path
    ran = twins("predict", bundle, pictures / "b.jpg", "--out", tmp_path / "out", "--engine", "tensorrt")
    assert ran.code == 1 and "there is no CUDA device or driver here" in ran.err
    shown = twins("inspect", bundle, "--json").json["runs_here"]
    assert shown["onnxruntime"] == {"ready": True, "why_not": None}
    assert shown["tensorrt"] == {"ready": False, "why_not": "the bundle has no such engine"}
    assert list(twins("inspect", bundle, "--engine", "tensorrt", "--json").json["runs_here"]) == ["tensorrt"]
