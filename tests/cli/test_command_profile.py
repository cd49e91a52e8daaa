"""`twins-trt profile`: a bundle, a plain graph and PyTorch in one table; results written, saved and compared."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from commands import MODEL, Twins

from twins_trt.cli import profile as command
from twins_trt.cli.console import Console
from twins_trt.cli.parsing import new_parser
from twins_trt.profiling.results import PROFILE, Profile, ProfileOptions, read_profile
from twins_trt.runtime import open_bundle
from twins_trt.verbs.profile import FLAGS, ProfileJob

QUICK = ("--rounds", "2", "--calls", "2", "--warm-up", "0", "--threads", "1", "--batches", "1,2", "--power", "none")


def test_a_bundle_its_graph_and_the_model_side_by_side(
    twins: Twins, bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.bundle"
    shutil.copytree(bundle, copy)
    out = tmp_path / "profile.json"
    others = ("--onnx", copy / "graph.onnx", "--torch", MODEL, "--checkpoint", checkpoint, "--device", "cpu")
    ran = twins("profile", copy, *others, *QUICK, "--baseline", "graph", "--save", "--out", out, "--json")
    assert ran.code == 0, ran.err
    found = read_profile(out)
    assert Profile.from_json(ran.json) == found
    assert [m.subject.label for m in found.measurements] == ["copy", "graph", f"{MODEL} PyTorch eager"]
    assert [m.subject.engine for m in found.measurements] == ["onnxruntime", "onnxruntime", "pytorch"]
    assert {m.subject.size for m in found.measurements} == {(64, 96)}
    assert [len(m.end_to_end.samples) for m in found.measurements] == [4, 4, 4]
    assert {ratio.baseline for ratio in found.ratios} == {"graph"}
    ours, plain, eager = found.measurements
    assert ours.subject.graph_sha256 == plain.subject.graph_sha256
    assert eager.subject.weights_sha256 == ours.subject.weights_sha256
    assert ours.subject.simulated and not plain.subject.simulated  # the bundle holds a TensorRT-RTX engine
    assert [[batch.size for batch in m.batches] for m in found.measurements] == [[1], [1], [1, 2]]
    blocks = ours.blocks()
    assert {"neck", "head", "stages.0.blocks.0.attn", "stages.3.blocks.3.ffn"} <= set(blocks)
    assert blocks.get("other", 0.0) < 0.05 * sum(blocks.values())
    assert "--baseline graph" in found.command and "--out" not in found.command
    assert read_profile(open_bundle(copy).file(PROFILE)) == found
    inspected = twins("inspect", copy).out
    assert "end to end, median" in inspected


def test_text_names_candidates_stages_and_doubts(twins: Twins, bundle: Path) -> None:
    ran = twins("profile", bundle, *QUICK, "--no-layers")
    assert ran.code == 0, ran.err
    assert "milliseconds end to end, from file to mask; 2 rounds of 2 calls; drawn, 64x96" in ran.out
    assert "beside the engine" in ran.out and "layers by block" not in ran.out
    assert "note: rtx: onnxruntime stands in" in ran.out
    assert "measure" in ran.err


def test_a_dry_run_measures_nothing(twins: Twins, bundle: Path, tmp_path: Path) -> None:
    others = ("--torch", MODEL, "--seeded", "--engine", "auto,onnxruntime")
    ran = twins("profile", bundle, *others, "--out", tmp_path / "p.json", "--dry-run", "--json")
    labels = ["rtx on auto", "rtx on onnxruntime", f"{MODEL} PyTorch eager"]
    assert (ran.code, ran.json) == (0, {"dry_run": True, "candidates": labels})
    assert list(tmp_path.iterdir()) == []


def test_bundles_of_one_name_go_by_their_paths(twins: Twins, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, twin := tmp_path / bundle.name)
    assert twins("profile", bundle, twin, "--dry-run", "--json").json["candidates"] == [str(bundle), str(twin)]


def test_results_of_different_times_are_compared(twins: Twins, bundle: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, threads in zip(files, ("1", "2"), strict=True):
        quick = [threads if word == "1" else word for word in QUICK]
        assert twins("profile", bundle, *quick, "--no-layers", "--out", file).code == 0
    ran = twins("profile", "--compare", *files)
    assert ran.code == 0, ran.err
    assert "no comparison: these are not the same in both" in ran.out
    assert "rtx: threads: 1, then 2" in ran.out
    assert "note: the two were not measured in turn" in ran.out
    same = twins("profile", "--compare", files[0], files[0], "--json").json
    assert (same["comparable"], same["changes"][0]["value"]) == (True, 1.0)


def test_an_interrupt_shows_and_writes_what_there_is(
    twins: Twins, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_after_the_rounds(console: Console, step: str, detail: str = "", share: float | None = None) -> None:
        if step in ("sweep", "layers", "energy"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Console, "progress", interrupt_after_the_rounds)
    out = tmp_path / "p.json"
    ran = twins("profile", bundle, *QUICK, "--out", out, "--save")
    assert ran.code == 130
    assert "profile.json" not in open_bundle(bundle).files
    assert read_profile(out).interrupted
    assert "note: interrupted" in ran.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "there is nothing to measure"),
        (("--seeded",), "--checkpoint and --seeded are the PyTorch model's"),
        (("--torch", "twins_svt-q_fpn", "--seeded"), "twins_svt-q_fpn"),
        (("--torch", MODEL, "--seeded", "--size", "64:96:128"), "give one size"),
        (("--onnx", "none.onnx"), "none.onnx does not exist"),
        (("plain.onnx",), "fix: --onnx plain.onnx"),
        (("none.bundle",), "none.bundle does not exist"),
        (("none.bundle", "--engine", "cuda"), "there is no engine 'cuda'"),
        (("none.bundle", "--rounds", "0"), "--rounds is 0"),
        (("none.bundle", "--batches", "1,x"), "--batches: '1,x' is no list"),
        (("none.bundle", "--warm-up", "nan"), "--warm-up is nan"),
        (("--torch", MODEL, "--seeded", "--power", "sun"), "there is no power meter 'sun'"),
        (("--torch", MODEL, "--seeded", "--out", "none/p.json"), "in a folder that does not exist"),
        (("x.bundle", "--compare", "a.json", "b.json"), "--compare measures nothing"),
        (("--compare", "a.json", "b.json"), "a.json cannot be read"),
    ],
)
def test_wrong_words_are_named(
    twins: Twins, words: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = twins("profile", *words)
    assert ran.code in (1, 2)
    assert says in ran.err and "fix:" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_the_command_is_written_down_without_defaults() -> None:
    parser = new_parser("twins-trt profile", summary="", example="")
    command.configure(parser)
    words = ["a b.bundle", "--onnx", "c.onnx", "--onnx", "d.onnx", "--rounds", "20", "--threads", "2", "--no-layers"]
    request = FLAGS.read(parser.parse_args([*words, "--save", "--json", "--out", "p.json"]))
    written = ProfileJob(request, ProfileOptions(), (), ()).command
    assert written == "twins-trt profile 'a b.bundle' --onnx c.onnx --onnx d.onnx --threads 2 --no-layers"
    assert FLAGS.read(parser.parse_args(shlex.split(written)[2:])) == replace(request, save=False, out=None)
