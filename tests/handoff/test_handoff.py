"""What all targets share: the folder, the choice of an engine, the command."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stand_ins import ADA, ORIN, RTX
from tiny_graphs import MakeBundle

from twins_trt.cli import main
from twins_trt.errors import BundleError, UsageError
from twins_trt.handoff import TARGETS, HandoffOptions, resolve_handoff, write_handoff
from twins_trt.handoff.engines import capability, choose, single_engine
from twins_trt.handoff.folder import Handoff
from twins_trt.handoff.prototext import Symbol, prototext
from twins_trt.runtime import write_bundle
from twins_trt.runtime.advice import rebuild_with


def test_a_folder_is_recorded_and_only_one_of_ours_replaced(make_bundle: MakeBundle, tmp_path: Path) -> None:
    handoff = Handoff("triton-server", make_bundle(), {"a/b.txt": b"one", "run.sh": b"#!/bin/sh\n"}, ("note",))
    out = write_handoff(handoff, tmp_path / "out")
    record = json.loads((out / "handoff.json").read_text())
    assert record["target"] == "triton-server" and record["notes"] == ["note"]
    assert record["files"][0] == {"path": "a/b.txt", "sha256": hashlib.sha256(b"one").hexdigest(), "size": 3}
    assert (out / "run.sh").stat().st_mode & 0o111 and not (out / "a" / "b.txt").stat().st_mode & 0o111
    with pytest.raises(BundleError, match="exists"):
        write_handoff(handoff, out)
    write_handoff(Handoff("triton-server", handoff.bundle, {"c.txt": b"two"}), out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["c.txt", "handoff.json"]
    (out / "handoff.json").unlink()
    with pytest.raises(BundleError, match="no earlier hand-off"):
        write_handoff(handoff, out, overwrite=True)


def test_a_folder_is_whole_or_absent(make_bundle: MakeBundle, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(BundleError, match="cannot be written"):
        write_handoff(Handoff("x", make_bundle(), {"a": b"a", "b": tmp_path / "missing"}), out)
    assert list(out.parent.iterdir()) == []
    with pytest.raises(BundleError, match="not a plain path"):
        write_handoff(Handoff("x", make_bundle(), {"../a": b"a"}), out)


def test_a_bundle_that_was_replaced_meanwhile_is_not_handed_over(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    handoff = Handoff("x", bundle, {"model.onnx": bundle.graph})
    write_bundle(bundle.path, bundle.manifest, {"graph.onnx": b"of another build"}, overwrite=True)
    with pytest.raises(BundleError, match="was replaced since it was opened"):
        write_handoff(handoff, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [bundle.path.name]


def test_which_engine_is_taken(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(engines=(RTX, ORIN, ADA))
    assert choose(bundle, "auto", tool="T").engines == {"sm_87": ORIN, "sm_89": ADA}
    assert choose(bundle, "sm_89", tool="T").engines == {"sm_89": ADA}
    assert choose(bundle, "orin.engine", tool="T").engines == {"sm_87": ORIN}
    assert choose(bundle, "onnxruntime", tool="T").engines == {}
    assert choose(make_bundle(engines=(RTX,)), "auto", tool="T").engines == {}
    with pytest.raises(BundleError, match="compiled by tensorrt_rtx, which T does not load") as error:
        choose(bundle, "sm_120", tool="T")
    assert error.value.fix is not None and "--flavour tensorrt" in error.value.fix
    with pytest.raises(BundleError, match=r"no engine sm_75; its engines: engines/rtx.engine \(sm_86, sm_120\); "):
        choose(bundle, "sm_75", tool="T")
    with pytest.raises(UsageError, match='engine="graph" is for a device, not for T'):
        choose(bundle, "graph", tool="T")
    with pytest.raises(BundleError, match="T takes one"):
        single_engine(bundle, "auto", tool="T", file="p")
    with pytest.raises(BundleError, match="TensorRT engines only"):
        single_engine(bundle, "onnxruntime", tool="T", file="p")
    with pytest.raises(BundleError, match="two engines for sm_87"):
        choose(make_bundle(engines=(ORIN, type(ORIN)("engines/b", "tensorrt", "10", ("sm_87",)))), "auto", tool="T")


def test_without_an_engine_the_graph_and_a_program_that_builds_one(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """The program calls trtexec, here one that only says what it is asked for."""
    bundle = make_bundle(24, 32, batch=(1, 4, 16))
    files, notes = single_engine(bundle, "auto", tool="T", file="model.plan")
    assert set(files) == {"graph.onnx", "build_engine.sh"} and "build_engine.sh" in notes[0]
    out = write_handoff(Handoff("x", bundle, files), tmp_path / "a b")
    fake = tmp_path / "trtexec"
    fake.touch(0o755)

    def run(knows: str) -> subprocess.CompletedProcess[str]:
        fake.write_text(f'#!/bin/sh\n[ "$*" = --help ] && echo " {knows}" && exit\npwd\nprintf "%s\\n" "$@"\n')
        program = [out / "build_engine.sh"]
        env = {"TRTEXEC": str(fake), "PATH": os.environ["PATH"]}
        return subprocess.run(program, env=env, capture_output=True, text=True)

    old = run("--fp16")
    assert (old.returncode, old.stdout) == (1, "") and "TensorRT 10 or later" in old.stderr
    done = run("--stronglyTyped")
    assert done.stdout.splitlines() == [
        str(out),
        "--onnx=graph.onnx",
        "--saveEngine=model.plan",
        "--stronglyTyped",
        "--minShapes=image:1x24x32x3",
        "--optShapes=image:4x24x32x3",
        "--maxShapes=image:16x24x32x3",
    ]


@pytest.mark.parametrize(("target", "shown"), [("sm_87", "8.7"), ("sm_120", "12.0"), ("sm_103", "10.3")])
def test_compute_capabilities(target: str, shown: str) -> None:
    assert capability(target) == shown


def test_the_command_that_rebuilds_with_other_options() -> None:
    command = "twins-trt build m --input uint8 --target cpu --out 'a b.bundle'"
    words = shlex.split(rebuild_with(command, {"--input": "float32", "--batch": "1:4:16", "--target": None}))
    assert words == ["twins-trt", "build", "m", "--input", "float32", "--out", "a b.bundle", "--batch", "1:4:16"]


def test_the_text_format() -> None:
    text = prototext({"a": 1, "b": [], "c": None, "d": [{"e": 'x"\n', "f": True}, {"g": [1, 2.5]}], "h": Symbol("K")})
    assert text == 'a: 1\nd {\n  e: "x\\"\\n"\n  f: true\n}\nd {\n  g: [1, 2.5]\n}\nh: K\n'
    with pytest.raises(TypeError, match="bytes has no text format"):
        prototext({"a": b"1"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"instances": 0}, "instances is 0"), ({"max_batch": 0}, "max_batch is 0"), ({"name": "a/b"}, "'a/b' is no name")],
)
def test_options_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HandoffOptions(**fields)


def test_an_unknown_target(make_bundle: MakeBundle) -> None:
    with pytest.raises(UsageError, match="no target 'tritn'"):
        resolve_handoff(make_bundle(), "tritn")


def test_the_command_writes_and_says_what(
    make_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = make_bundle(), tmp_path / "models"
    words = ["export-to", "triton-server", str(bundle.path), "--out", str(out), "--json"]
    assert main([*words, "--dry-run"]) == 0 and not out.exists()
    planned = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {key: value for key, value in planned.items() if key != "dry_run"}
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == {*said["files"], "handoff.json"}
    assert main(words) == 1  # it is there
    assert main([*words, "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["export-to", "trito", "x.bundle", "--out", "y"]) == 2
    assert ", ".join(TARGETS) in capsys.readouterr().err


def test_handing_over_needs_numpy_alone(make_bundle: MakeBundle, tmp_path: Path) -> None:
    heavy = ["torch", "onnx", "onnxruntime", "cv2", "PIL", "tensorrt", "tensorrt_rtx", "cuda", "google"]
    words = ["export-to", "triton-server", str(make_bundle().path), "--out", str(tmp_path / "out")]
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy!r})); from twins_trt.cli import main; main({words!r})"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
    assert (tmp_path / "out" / "handoff.json").is_file()
