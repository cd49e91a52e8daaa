"""The table of bad inputs: for each the kind of error, the exit code, and the message."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import MODEL, CommandResult, Twins, scene
from PIL import Image

# Words in braces name files of `bad` below; OUT is a path that does not exist yet and must not exist afterwards.
BUILD = f"build {MODEL} --num-classes 4 --size 64x96 --target cpu --out OUT"
SEEDED = f"build {MODEL} --seeded --num-classes 4 --target cpu --out OUT"
EVAL = "eval {bundle} --data"
PREDICT = "predict {bundle} --out OUT"

TABLE = [
    # checkpoint
    (f"{BUILD} --checkpoint nowhere.pth", "CheckpointError", 1, r"nowhere\.pth does not exist"),
    (f"{BUILD} --checkpoint {{folder}}", "CheckpointError", 1, r"is a directory, not a checkpoint"),
    (f"{BUILD} --checkpoint {{truncated.pth}}", "CheckpointError", 1, r"truncated after \d+ bytes"),
    (f"{BUILD} --checkpoint {{altered.pth}}", "CheckpointError", 1, r"the checksum of .* does not match"),
    (f"{BUILD} --checkpoint {{empty.pth}}", "CheckpointError", 1, r"empty\.pth is empty"),
    (f"{BUILD} --checkpoint {{page.pth}}", "CheckpointError", 1, r"web page that was saved in place of a checkpoint"),
    (f"{BUILD} --checkpoint {{evil.pth}}", "CheckpointError", 1, r"asks for \S*system to be run .* nothing was run"),
    (f"{BUILD} --checkpoint {{picture.png}}", "CheckpointError", 1, r"is no torch checkpoint"),
    (f"{BUILD} --checkpoint {{nan.pth}}", "CheckpointError", 1, r"NaN or infinite weights in 1 tensors"),
    (f"{BUILD} --checkpoint {{lacking.pth}}", "CheckpointError", 1, r"1 missing \(decode_head\.conv_seg\.bias\)"),
    (
        "build twins_pcpvt-s_fpn --checkpoint {good.pth} --target cpu --out OUT",
        "CheckpointError",
        1,
        rf"holds {MODEL} with 4 classes, not twins_pcpvt-s_fpn.*fix: use {MODEL}, or leave the name out",
    ),
    (
        f"export {MODEL} --checkpoint {{good.pth}} --num-classes 7 --out OUT",
        "CheckpointError",
        1,
        r"trained on 4 classes, the model was asked for 7.*fix: --num-classes 4",
    ),
    (f"eval {MODEL} --checkpoint {{evil.pth}} --data folder:{{scenes}}", "CheckpointError", 1, r"nothing was run"),
    (f"{BUILD} --checkpoint {{good.pth}} --seeded", "UsageError", 2, r"exclude each other"),
    (f"{SEEDED} --plan plan.json", "UsageError", 2, r"--plan applies only to INT8 builds"),
    (f"{SEEDED} --max-drop 1", "UsageError", 2, r"--max-drop needs images to judge on.*--gate-data"),
    (BUILD, "UsageError", 2, rf"no weights are named.*--seeded.*twins-trt fetch {MODEL}"),
    ("convert nowhere.pth OUT", "CheckpointError", 1, r"there is no checkpoint nowhere\.pth"),
    ("convert {evil.pth} OUT", "CheckpointError", 1, r"nothing was run"),
    ("convert {good.pth} {empty.pth}", "UsageError", 2, r"empty\.pth exists.*--overwrite"),
    ("convert {good.pth} OUT --direction to_mmseg", "CheckpointError", 1, r"fix: use to_official"),
    ("convert {good.pth} OUT --family pcpvt", "CheckpointError", 1, r"svt's, not pcpvt's"),
    ("inspect {truncated.pth}", "CheckpointError", 1, r"truncated"),
    # image
    (f"{PREDICT} nowhere.png", None, 1, r"nowhere\.png does not exist"),
    (f"{PREDICT} {{corrupt.jpg}}", None, 1, r"corrupt\.jpg cannot be decoded"),
    (f"{PREDICT} {{text.png}}", None, 1, r"text\.png cannot be decoded: it is not an image"),
    (f"{PREDICT} {{empty.png}}", None, 1, r"empty\.png cannot be decoded: it is empty"),
    (f"{PREDICT} {{folder}}", None, 1, r"folder holds no images"),
    (f"{PREDICT} {{folder}}/*.png", None, 1, r"no image matches"),
    ("predict {bundle} {picture.png} --out {text.png}/x", "ImageError", 1, r"cannot be written"),
    (f"{PREDICT} {{picture.png}} --alpha 2", "UsageError", 2, r"--alpha is 2"),
    (f"{PREDICT} {{picture.png}} --no-mask --no-overlay", "UsageError", 2, r"nothing to write"),
    (f"{PREDICT} {{picture.png}} --fit crop", "UsageError", 2, r"no fit 'crop'.*stretch or letterbox"),
    (f"{PREDICT} {{picture.png}} --engine gpu", "UsageError", 2, r"no engine 'gpu'.*onnxruntime"),
    (f"{PREDICT} {{picture.png}} --batch 3", "UsageError", 2, r"batch is 3"),
    (f"{PREDICT} {{picture.png}} --threads 0", "UsageError", 2, r"threads is 0"),
    # size and batch
    (f"{SEEDED} --size 16x64", "UsageError", 2, r"height 16 is too small.*use 32"),
    (f"{SEEDED} --size 0", "UsageError", 2, r"height 0 is too small"),
    (f"{SEEDED} --size big", "UsageError", 2, r"'big' is not a size.*HxW"),
    (f"{SEEDED} --size 64x64x3", "UsageError", 2, r"is not a size"),
    (f"{SEEDED} --size=-64x64", "UsageError", 2, r"is not a size"),
    (f"{SEEDED} --size 64x20000", "UsageError", 2, r"side of more than 8192 pixels"),
    (f"{SEEDED} --size 128:64:256x64:96:128", "UsageError", 2, r"MIN:OPT:MAX"),
    (f"{SEEDED} --size 64x64:96:128", "UsageError", 2, r"both be fixed or both be dynamic"),
    (f"{SEEDED} --batch 0", "UsageError", 2, r"batch 0 is too small"),
    (f"{SEEDED} --batch many", "UsageError", 2, r"'many' is not a batch"),
    (f"{SEEDED} --size 64 --test-scale 2048x512", "UsageError", 2, r"test scale needs a graph of dynamic size"),
    (f"{SEEDED} --size 64:64:128 --test-scale large", "UsageError", 2, r"'large' is not a test scale"),
    # bundle
    ("predict nowhere.bundle {picture.png} --out OUT", "BundleError", 1, r"nowhere\.bundle does not exist"),
    ("predict {folder} {picture.png} --out OUT", "BundleError", 1, r"not a bundle: it has no manifest\.json"),
    ("predict {text.png} {picture.png} --out OUT", "BundleError", 1, r"is a file, not a bundle"),
    ("predict {altered.bundle} {picture.png} --out OUT", "BundleError", 1, r"sha256 of graph\.onnx.*twins-trt build"),
    ("predict {shorter.bundle} {picture.png} --out OUT", "BundleError", 1, r"size of graph\.onnx is \d+, the file has"),
    ("predict {lacking.bundle} {picture.png} --out OUT", "BundleError", 1, r"graph\.onnx, which is missing"),
    ("predict {garbage.bundle} {picture.png} --out OUT", "BundleError", 1, r"manifest\.json cannot be read"),
    ("predict {newer.bundle} {picture.png} --out OUT", "BundleError", 1, r"format_version is 99"),
    ("predict {more.bundle} {picture.png} --out OUT", "BundleError", 1, r"extra\.bin, which manifest\.json does not"),
    ("inspect {altered.bundle}", "BundleError", 1, r"sha256 of graph\.onnx"),
    ("inspect nowhere.bundle", "BundleError", 1, r"does not exist"),
    ("inspect {cut.onnx}", "BuildError", 1, r"truncated or no ONNX file"),
    ("inspect x.engine", "UsageError", 2, r"inspect the bundle that it lies in"),
    ("eval nowhere.bundle --data folder:{scenes}", "BundleError", 1, r"does not exist"),
    # data
    (f"{EVAL} {{scenes}}", "UsageError", 2, r"does not name a data set.*camvid:PATH, ade20k:PATH, folder:PATH"),
    (f"{EVAL} cityscapes:{{scenes}}", "UsageError", 2, r"does not name a data set"),
    (f"{EVAL} folder:nowhere", "DataError", 1, r"there is no folder nowhere"),
    (f"{EVAL} camvid:{{folder}}", "DataError", 1, r"classes\.txt is missing"),
    (f"{EVAL} folder:{{scenes}} --split test", "DataError", 1, r"no split test.*splits found: odd, val"),
    (f"{EVAL} folder:{{unlabelled}}", "DataError", 1, r"no labels to score against"),
    (f"{EVAL} camvid:{{five}}", "DataError", 1, r"the model has 4 classes, camvid:\S+ has 5"),
    (f"{EVAL} folder:{{scenes}} --limit 0", "UsageError", 2, r"--limit is 0"),
    (f"{EVAL} folder:{{scenes}} --num-classes 7", "UsageError", 2, r"--num-classes is 7, \S+ has 4 classes"),
    (
        f"{EVAL} folder:{{scenes}} --mode ms_flip",
        "UsageError",
        2,
        r"only a bundle that gives logits can be run in parts",
    ),
    (f"{EVAL} folder:{{scenes}} --checkpoint {{good.pth}}", "UsageError", 2, r"a bundle has its weights inside"),
    (f"{EVAL} folder:{{scenes}} --test-scale 1", "UsageError", 2, r"'1' is not a test scale"),
    (f"eval {MODEL} --seeded --data folder:{{scenes}} --mode tta", "UsageError", 2, r"there is no mode 'tta'"),
    (f"eval {MODEL} --seeded --data folder:{{scenes}} --device tpu", "UsageError", 2, r"no device 'tpu'"),
    # options
    ("biuld", "UsageError", 2, r"no command 'biuld'.*use one of: build"),
    ("--frobnicate", "UsageError", 2, r"no option '--frobnicate'"),
    (f"{SEEDED} --precison fp16", "UsageError", 2, r"no option '--precison'.*did you mean --precision"),
    ("models extra", "UsageError", 2, r"no argument 'extra'"),
    ("build --seeded --out OUT", "UsageError", 2, r"no model is named.*--checkpoint FILE"),
    (f"build {MODEL} --seeded", "UsageError", 2, r"no bundle is named to write.*--out x\.bundle"),
    (f"build {MODEL} --seeded --out x.tar.gz", "UsageError", 2, r"writes a folder.*twins-trt export-to device packs"),
    ("build twins_svt-small_fpn --seeded --out OUT", "UsageError", 2, rf"no model called.*use one of: .*{MODEL}"),
    ("export segformer --seeded --out OUT", "UsageError", 2, r"no model called 'segformer'"),
    ("eval twins_svt_s_fpn --seeded --data folder:{scenes}", "UsageError", 2, rf"no bundle and no model.*{MODEL}"),
    ("fetch twins_svt-s", "UsageError", 2, r"no model called"),
    (f"fetch {MODEL} --url ftp://x/y", "UsageError", 2, r"only http and https"),
    (f"{SEEDED} --target sm_86,gpu", "UsageError", 2, r"'gpu' is not a GPU target"),
    (f"{SEEDED} --target gpu", "UsageError", 2, r"'gpu' is not a GPU target.*sm_86"),
    (f"{SEEDED} --target cpu,sm_86", "UsageError", 2, r"the target cpu cannot be combined with others"),
    (f"{SEEDED} --target rtx-409", "UsageError", 2, r"'rtx-409' is not a GPU target.*did you mean rtx-4090"),
    (f"{SEEDED} --target sm_88", "UsageError", 2, r"there is no GPU of sm_88 on record"),
    (f"{SEEDED} --target jetson-orin --jetpack 5.1", "UsageError", 2, r"there is no JetPack 5\.1.*6\.0, 6\.1"),
    (f"{SEEDED} --target jetson-thor --jetpack 6.1", "UsageError", 2, r"jetson-thor has no JetPack 6\.1.*7\.0, 7\.1"),
    (f"{SEEDED} --jetpack 6.1", "UsageError", 2, r"--jetpack applies only to a Jetson.*--target jetson-orin"),
    (f"{SEEDED} --target jetson-orin --jetpack 6.0 --opset 20", "UsageError", 2, r"reads opset 17 at most"),
    (f"{SEEDED} --target jetson-orin --workspace 64", "UsageError", 2, r"--workspace applies only .*twins-trt compile"),
    ("build {bundle} --out OUT", "UsageError", 2, r"is a bundle, and a build needs a model.*twins-trt compile "),
    (f"{SEEDED} --target sm_86 --flavour onnx", "UsageError", 2, r"flavour 'onnx'.*tensorrt_rtx, tensorrt"),
    (f"{SEEDED} --target sm_86 --workspace 0", "UsageError", 2, r"workspace of 0 MiB"),
    (f"{SEEDED} --target sm_86 --optimization-level 9", "UsageError", 2, r"optimization level 9.*0 to 5"),
    (f"{SEEDED} --target sm_86 --hardware-compatibility all", "UsageError", 2, r"hardware compatibility 'all'"),
    (f"{SEEDED} --precision int4", "UsageError", 2, r"precision cannot be 'int4'.*fp32, fp16"),
    (f"{SEEDED} --opset 12", "UsageError", 2, r"opset cannot be 12.*17, 18, 19, 20"),
    (f"{SEEDED} --opset new", "UsageError", 2, r"--opset: invalid int value: 'new'"),
    (f"{SEEDED} --outputs depth", "UsageError", 2, r"outputs cannot be.*mask, logits"),
    (f"{SEEDED} --outputs ,", "UsageError", 2, r"outputs cannot be"),
    (f"{SEEDED} --input float16", "UsageError", 2, r"input cannot be 'float16'"),
    (f"{SEEDED} --padding reflect", "UsageError", 2, r"padding must be one of parity, masked"),
    (f"{SEEDED} --upernet-levels 2", "UsageError", 2, r"needs a UPerNet head"),
    (f"{SEEDED} --num-classes 0", "UsageError", 2, r"--num-classes must be 1 to 255"),
    (f"{SEEDED} --num-classes 256", "UsageError", 2, r"--num-classes must be 1 to 255"),
    (
        f"export {MODEL} --seeded --target npu --out OUT",
        "UsageError",
        2,
        r"target cannot be 'npu'.*one graph serves every GPU",
    ),
    ("doctor --for dinner", "UsageError", 2, r"use one of: predict, eval"),
    # output
    (f"build {MODEL} --seeded --target cpu --out {{altered.bundle}}", "BundleError", 1, r"exists.*--overwrite"),
    (f"build {MODEL} --seeded --target cpu --out {{folder}} --overwrite", "BundleError", 1, r"is not a bundle"),
    (f"build {MODEL} --seeded --target cpu --out {{text.png}}/x", "BundleError", 1, r"is no folder to write in"),
    (f"export {MODEL} --seeded --out {{text.png}}", "ExportError", 1, r"text\.png exists.*--overwrite"),
    (f"export {MODEL} --seeded --out {{folder}}", "ExportError", 1, r"is a folder"),
    (f"export {MODEL} --seeded --out {{folder}}/none/g.onnx", "ExportError", 1, r"there is no folder.*mkdir"),
]


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, bundle: Path, scenes: Path) -> Path:
    """A folder with one good checkpoint and many bad things, `scenes` and `bundle` linked into it."""
    import torch

    root = tmp_path_factory.mktemp("bad")
    (root / "good.pth").symlink_to(checkpoint)
    (root / "scenes").symlink_to(scenes)
    (root / "bundle").symlink_to(bundle)
    data = checkpoint.read_bytes()
    (root / "truncated.pth").write_bytes(data[: len(data) // 2])
    (root / "altered.pth").write_bytes(data[:30_000_000] + bytes(16) + data[30_000_016:])
    (root / "empty.pth").touch()
    (root / "page.pth").write_text("<!DOCTYPE html><title>404</title>")
    (root / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.save({k: v for k, v in state.items() if k != "decode_head.conv_seg.bias"}, root / "lacking.pth")
    torch.save({**state, "decode_head.conv_seg.bias": torch.full((4,), torch.nan)}, root / "nan.pth")
    (root / "folder").mkdir()
    Image.fromarray(scene(64, 96, 0)).save(root / "picture.png")
    Image.fromarray(scene(64, 96, 0)).save(root / "whole.jpg")
    (root / "corrupt.jpg").write_bytes((root / "whole.jpg").read_bytes()[:300])
    (root / "text.png").write_text("not a picture")
    (root / "empty.png").touch()
    (root / "cut.onnx").write_bytes((bundle / "graph.onnx").read_bytes()[:1_000_000])
    _bad_bundles(root, bundle)
    shutil.copytree(scenes / "val" / "images", root / "unlabelled" / "images")
    shutil.copytree(scenes, root / "five")
    (root / "five" / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    return root


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def _bad_bundles(root: Path, bundle: Path) -> None:
    """Bundles of the graph alone, each with one fault."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["engines"] = []
    manifest["files"] = [entry for entry in manifest["files"] if entry["path"] == "graph.onnx"]
    graph = (bundle / "graph.onnx").read_bytes()
    contents = {
        "altered": (graph[:1000] + bytes([graph[1000] ^ 1]) + graph[1001:], manifest),
        "shorter": (graph[:-1], manifest),
        "lacking": (None, manifest),
        "newer": (b"", {**manifest, "format_version": 99}),
        "more": (graph, manifest),
    }
    for name, (content, facts) in contents.items():
        folder = root / f"{name}.bundle"
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps(facts))
        if content is not None:
            (folder / "graph.onnx").write_bytes(content)
    (root / "more.bundle" / "extra.bin").touch()
    (root / "garbage.bundle").mkdir()
    (root / "garbage.bundle" / "manifest.json").write_text("{]")


@pytest.mark.parametrize(("line", "kind", "code", "said"), TABLE, ids=[row[0] for row in TABLE])
def test_bad_input(
    twins: Twins,
    bad: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    kind: str | None,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWINS_TRT_CACHE", str(tmp_path / "cache"))
    raised: list[Exception] = []
    words = [re.sub(r"\{([^}]+)\}", lambda found: str(bad / found[1]), word) for word in line.split(" ")]
    words = [word.replace("OUT", str(tmp_path / "out")) for word in words]
    ran = twins(*words, "--json", on_error=raised.append)
    assert ran.code == code, ran.out + ran.err
    assert re.search(said, ran.err, re.DOTALL), ran.err
    assert re.search(r"^error: ", ran.err, re.MULTILINE) and "Traceback" not in ran.err
    # Of a bad image predict reports and goes on, so nothing is raised.
    assert [type(error).__name__ for error in raised] == ([] if kind is None else [kind])
    assert list(tmp_path.iterdir()) == []
    if kind is None:
        assert ran.json["failed"] == 1 and ran.json["images"][0]["error"] in ran.err
    else:
        assert f"error: {ran.json['error']}" in ran.err and (ran.json["fix"] or "") in ran.err


MISSING = [
    ("torch", f"build {MODEL} --seeded --target cpu --out OUT", r"build needs torch.*twins-trt\[build\]"),
    ("torch", f"eval {MODEL} --seeded --data folder:{{scenes}}", r"needs torch.*twins-trt\[build\]"),
    ("torch", "inspect {good.pth}", r"inspect needs torch"),
    ("onnx", f"export {MODEL} --seeded --out OUT", r"export needs onnx.*twins-trt\[build\]"),
    ("onnx_graphsurgeon", f"export {MODEL} --seeded --out OUT", r"export needs onnx-graphsurgeon"),
    ("tensorrt_rtx", f"build {MODEL} --seeded --target sm_86 --flavour tensorrt_rtx --out OUT", r"twins-trt\[rtx\]"),
    ("tensorrt", f"build {MODEL} --seeded --flavour tensorrt --out OUT", r"TensorRT engines needs"),
    ("onnxruntime", "predict {bundle} {picture.png} --out OUT", r"no engine can run.*twins-trt\[cpu\]"),
    ("onnxruntime", "predict {bundle} {picture.png} --out OUT --engine onnxruntime", r"twins-trt\[cpu\]"),
    ("cv2", f"eval {MODEL} --seeded --num-classes 4 --data folder:{{scenes}} --test-scale 64x48", r"needs opencv"),
    ("safetensors", "inspect {weights.safetensors}", r"needs safetensors.*pip install safetensors"),
]


@pytest.mark.parametrize(("package", "line", "said"), MISSING, ids=[f"{row[0]}-{row[1].split()[0]}" for row in MISSING])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    bad: Path, tmp_path: Path, package: str, line: str, said: str
) -> None:
    """In another process, in which the package cannot be imported."""
    (bad / "weights.safetensors").write_bytes(b"x" * 64)
    words = [re.sub(r"\{([^}]+)\}", lambda found: str(bad / found[1]), word) for word in line.split(" ")]
    words = [word.replace("OUT", str(tmp_path / "out")) for word in words]
    script = (
        f"import sys; sys.modules[{package!r}] = None; from twins_trt.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words, "--json"], capture_output=True, text=True)
    ran = CommandResult(done.returncode, done.stdout, done.stderr)
    assert ran.code == 4, ran.err
    assert re.search(said, f"{ran.json['error']}\n{ran.json['fix']}", re.DOTALL), ran.json
    assert "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []
