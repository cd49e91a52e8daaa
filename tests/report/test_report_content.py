"""What a report says and leaves out: nothing estimated, nothing unescaped, gaps named."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from samples import SCRIPT, WORST, audit, full_bundle, full_profile, gate, ladder, pictures

from tests.builders.gate.speed_pairs import around, int8_and_fp16, timed
from tests.profiling.results_of import measurement, profile
from tests.tiny_graphs import FOR_CPUS, MakeBundle
from twins_trt.builders.gate.speed import judge_speed, record_speed
from twins_trt.cli import main
from twins_trt.errors import BundleError, ProfileError, ReportError
from twins_trt.profiling.results import Layer, write_profile
from twins_trt.report import write_report
from twins_trt.report.blocks import Facts, Note, Page, Table
from twins_trt.report.inputs import read_inputs
from twins_trt.report.page import build_page
from twins_trt.report.roofline import BlockWork, block_work, find_ceilings
from twins_trt.runtime import write_bundle
from twins_trt.runtime.manifest import AwaitedEngine


class Tags(HTMLParser):
    """The names and attributes of all tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes |= {name for name, _ in attrs}


def table(page: Page, section: str, caption: str) -> list[list[str]]:
    found = next(each for each in page.sections if each.key == section)
    one = next(block for block in found.blocks if isinstance(block, Table) and block.caption.startswith(caption))
    return [[cell.text for cell in row] for row in one.rows]


def words(page: Page, section: str) -> str:
    found = next(each for each in page.sections if each.key == section)
    notes = [block.text for block in found.blocks if isinstance(block, Note)]
    return " ".join([*notes, *(f"{k}: {v}." for b in found.blocks if isinstance(b, Facts) for k, v in b.rows if v)])


def test_names_cannot_become_markup(full_report: Path) -> None:
    page = full_report.read_text(encoding="utf-8")
    tags = Tags(page)
    assert SCRIPT not in page and "<b>" not in page
    assert tags.names.count("script") == 1 and tags.names.count("img") == 10
    assert not any(name.startswith("on") for name in tags.attributes)
    assert not re.search(r"(?:src|href|url\()\s*=?\s*[\"']?(?:https?:)?//", page)


def test_the_page_holds_the_numbers(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = full_bundle(make_bundle)
    page = build_page(read_inputs(bundle.path, profiles=[full_profile(tmp_path, bundle)], ladder=ladder(tmp_path)))
    assert (page.gate, page.mood) == ("gate passed, simulated", "good")
    tiles = {tile.label: (tile.value, tile.detail) for tile in page.tiles}
    assert tiles["mIoU"] == ("75.00 %", "PyTorch float32: 76.95 %")
    assert tiles["mIoU lost"] == ("+0.21", "points; at most 0.41, 0.5 allowed")
    assert tiles["Fused attentions"] == ("2 of 2", "12 kernels")
    assert tiles["Latency, median"][1] == "onnxruntime on a test"
    classes = table(page, "gate", "Every class")
    assert [row[1:] for row in classes[2:]] == [
        ["70.00", "71.50", "+1.50"],
        ["60.00", "66.00", "+6.00"],
        ["", "", ""],  # a class that no image shows
    ]
    assert table(page, "worst", "Where")[1] == [WORST[1], "95.000", "−1.00"]
    rungs = table(page, "ladder", "Every precision")
    assert rungs[0] == ["fp32", "77.00", "+0.00", "+0.00 to +0.00", "", "20.0"]
    assert rungs[2] == ["int8-attention", "70.00", "+7.00", "+6.00 to +8.00", "", ""]
    assert "Simulated" in words(page, "gate") and "interval +0.050 to +0.410" in words(page, "gate")
    assert "Kernels: 12." in words(page, "audit") and "Moved: 2.5 MB between kernels." in words(page, "audit")
    assert table(page, "plan", "Level")[1] == ["head", "fp16"]
    listed = {row[0]: row[2] for row in table(page, "provenance", "Files")}
    assert listed == {entry.path: entry.sha256 for entry in bundle.manifest.files}
    assert table(page, "provenance", "Figures")[0][-1] == "yes"
    latency = table(page, "latency", "Latency of a call")
    assert latency[0][0] == SCRIPT and latency[0][-1] == "yes" and latency[1][-1] == "no"


def test_gaps_are_named_and_have_no_tiles(make_bundle: MakeBundle) -> None:
    page = build_page(read_inputs(make_bundle().path))
    assert (page.gate, page.mood) == ("ungated", "warn")
    assert [tile.label for tile in page.tiles] == ["Bundle"]
    for section, gap in (
        ("gate", "ungated"),
        ("ladder", "No ladder"),
        ("latency", "No profile"),
        ("blocks", "No profile of this bundle"),
        ("audit", "No engine was compiled"),
        ("worst", "no image to compare"),
    ):
        assert gap in words(page, section), section


def test_a_failed_gate_says_why(make_bundle: MakeBundle) -> None:
    plain = make_bundle(gate="failed")
    files: dict[str, bytes | Path] = {"graph.onnx": plain.graph, "gate.json": json.dumps(gate(passed=False)).encode()}
    bundle = write_bundle(plain.path, plain.manifest, files, overwrite=True)
    page = build_page(read_inputs(bundle.path))
    assert page.mood == "bad"
    assert "Failed. The mIoU may drop by 2.000 points" in words(page, "gate")


@pytest.mark.parametrize("content", [{}, [], {"classes": 3, "worst": [None, 5], "drop": "x", "scores": {"miou": True}}])
def test_results_of_another_shape_leave_cells_empty(make_bundle: MakeBundle, content: object) -> None:
    plain = make_bundle(gate="passed")
    files: dict[str, bytes | Path] = {"graph.onnx": plain.graph}
    files |= {name: json.dumps(content).encode() for name in ("gate.json", "audit.json", "plan.json")}
    page = build_page(read_inputs(write_bundle(plain.path, plain.manifest, files, overwrite=True).path))
    assert [tile.label for tile in page.tiles] == ["Bundle"]
    assert "mIoU:" not in words(page, "gate")


def test_markdown_has_the_same_facts_and_escapes_them(make_bundle: MakeBundle, tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    write_report(full_bundle(make_bundle).path, out, markdown=True)
    text = out.read_text(encoding="utf-8")
    assert text.startswith("# tiny1.bundle\n\n")
    assert "| \\`pole\\` | 60.00 | 66.00 | +6.00 |" in text
    assert "| a &amp; b \\| c | 70.00 | 71.50 | +1.50 |" in text
    assert "<script" not in text and "\\[x\\](javascript" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_a_profile_saved_in_the_bundle_is_found(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = full_bundle(make_bundle)
    files: dict[str, bytes | Path] = {name: bundle.file(name) for name in bundle.files}
    files["profile.json"] = full_profile(tmp_path, bundle)
    bundle = write_bundle(bundle.path, bundle.manifest, files, overwrite=True)
    inputs = read_inputs(bundle.path)
    assert [name for name, _ in inputs.profiles] == ["profile.json"]
    assert inputs.own is not None and inputs.own[1].subject.label == SCRIPT


def test_fused_attentions_that_a_compiler_does_not_list_are_not_known(make_bundle: MakeBundle) -> None:
    """TensorRT 8.6 shows a transformer as one layer: none of 18 would be wrong."""
    plain = make_bundle()
    content = audit()
    content["engines"][0]["audit"] |= {"attentions": 0, "expected_attentions": 18, "opaque": ["{ForeignNode[a...b]}"]}
    files = {"graph.onnx": plain.graph.read_bytes(), "audit.json": json.dumps(content).encode()}
    bundle = write_bundle(plain.path, plain.manifest, files, overwrite=True)
    page = build_page(read_inputs(bundle.path))
    assert "Fused attentions: not known: this compiler does not list it." in words(page, "audit")
    assert not [tile for tile in page.tiles if tile.label == "Fused attentions"]


def test_the_audit_of_the_nearest_architecture_is_said_to_be_one(make_bundle: MakeBundle) -> None:
    plain = make_bundle(awaits=(AwaitedEngine("sm_87", "jetson-orin", "10.3"), AwaitedEngine("sm_90")))
    content = audit()
    content["engines"][0] |= {"file": None, "stands_for": ["sm_87"]}
    content["not_audited"] = {"sm_90": "it was not to be"}
    files = {"graph.onnx": plain.graph.read_bytes(), "audit.json": json.dumps(content).encode()}
    bundle = write_bundle(plain.path, plain.manifest, files, overwrite=True)
    page = build_page(read_inputs(bundle.path))
    built, audited = words(page, "built"), words(page, "audit")
    assert "Engine on the device: jetson-orin (sm_87, TensorRT 10.3). twins-trt compile makes it there." in built
    assert "no engine was compiled" not in built
    assert "Engine: none that shipped (sm_86)." in audited
    assert "In place of: sm_87, which the device compiles: the nearest architecture was audited." in audited
    assert "Nothing was audited in place of sm_90: it was not to be." in audited
    assert [tile.detail for tile in page.tiles if tile.label == "Fused attentions"] == [
        "12 kernels on sm_86, the nearest architecture"
    ]


def test_a_graph_alone_says_what_runs_it(make_bundle: MakeBundle) -> None:
    for bundle, runs in (
        (make_bundle(rebuild=FOR_CPUS), "ONNX Runtime runs it on a CPU"),
        (make_bundle(), "twins-trt compile makes one on the device"),
    ):
        (built,) = (each for each in build_page(read_inputs(bundle.path)).sections if each.key == "built")
        (note,) = (each.text for each in built.blocks if isinstance(each, Note))
        assert note == f"The bundle holds the graph alone, and no engine was compiled; {runs}."


def test_a_speed_verdict_is_shown_with_what_limits_it(make_bundle: MakeBundle) -> None:
    pair = int8_and_fp16(make_bundle, gates=("passed", "passed"))
    measured = timed(pair, around(6.5), around(6.0))
    hot = replace(measured, warnings=("clocks were held back: too hot",))
    assert "speed" not in [each.key for each in build_page(read_inputs(pair.ours.path)).sections]
    found = judge_speed(pair, hot)
    record_speed(pair.ours, replace(found, simulated=True))
    page = build_page(read_inputs(pair.ours.path))
    said = words(page, "speed")
    assert said.startswith("Failed. int8.bundle is 0.9") and "times as fast as fp16.bundle: not faster." in said
    assert "Simulated: onnxruntime stood in for the engines" in said
    assert "clocks were held back: too hot." in said and "Advice: ship fp16.bundle" in said
    assert "Power mode: MAXN." in said and "counts no more" not in said
    rows = table(page, "speed", "Both bundles")
    assert [row[:4] for row in rows] == [
        ["int8.bundle", "int8", "onnxruntime", "6.50"],
        ["fp16.bundle", "fp16", "onnxruntime", "6.00"],
    ]
    other = record_speed(make_bundle(48), found)
    stale = words(build_page(read_inputs(other.path)), "speed")
    assert stale.startswith("This verdict counts no more: the graph was replaced since. Time them again: Failed.")


def test_work_is_counted_on_the_graph(make_bundle: MakeBundle) -> None:
    """The tiny graph is checked by hand in tests/tiny_graphs.py; a dynamic one has no count."""
    works = block_work(make_bundle(24, 32).graph)
    assert works is not None and sum(work.flops for work in works.values()) > 0
    assert all(isinstance(work, BlockWork) and work.nbytes >= 0 for work in works.values())
    assert block_work(make_bundle((8, 24, 48), (8, 32, 64)).graph) is None


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3 (sm_90)", "H100 SXM"),
        ("NVIDIA GeForce RTX 4090 (sm_89)", "RTX 4090"),
        ("NVIDIA L40", None),
        ("NVIDIA H200 (sm_90)", "H200 SXM"),
        ("NVIDIA H200 NVL (sm_90)", None),
        ("NVIDIA GH200 480GB (sm_90)", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb (sm_90)", None),
        ("Orin (sm_87)", None),
    ],
)
def test_ceilings_are_those_of_the_device_or_none(device: str, name: str | None) -> None:
    found = find_ceilings(device)
    assert (found.name if found else None) == name


def test_a_known_device_has_a_roof(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle, unknown = make_bundle(24, 32, precision="int8"), make_bundle(24, 32, precision="fp32")
    works = block_work(bundle.graph)
    assert works is not None
    busiest = max(works, key=lambda block: works[block].flops)
    graph = bundle.manifest.graph_sha256
    one = measurement("ours")
    one = replace(one, subject=replace(one.subject, graph_sha256=graph), layers=(Layer("x", "Conv", 2.0, busiest),))
    whole = profile(one)
    path = tmp_path / "profile.json"
    for of, engine, gpu, roofs in (
        (bundle, "onnxruntime", "NVIDIA H200 (sm_90)", 0),
        (unknown, "tensorrt", "NVIDIA H200 (sm_90)", 0),
        (bundle, "tensorrt", "NVIDIA H200 (sm_90)", 1),
        (bundle, "tensorrt", "an unknown GPU", 0),
    ):
        ran = replace(one, subject=replace(one.subject, engine=engine))
        write_profile(path, replace(whole, measurements=(ran,), machine=replace(whole.machine, gpu=gpu)))
        write_report(of.path, tmp_path / "r.html", profiles=[path])
        html = (tmp_path / "r.html").read_text()
        assert html.count('class="roof"') == html.count("Blocks that stay FP16 have 989 TOP/s") == roofs
    page = build_page(read_inputs(bundle.path, profiles=[path]))
    assert "The ceilings of an unknown GPU are not known" in words(page, "blocks")
    row = table(page, "blocks", "Blocks as")[0]
    assert row[:3] == [busiest, "2.000", "100.0"]
    assert float(row[5]) == pytest.approx(works[busiest].flops / 2e6, abs=0.06)


def test_what_cannot_be_read_is_named(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = full_bundle(make_bundle)
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(ProfileError, match=r"bad\.json"):
        read_inputs(bundle.path, profiles=[bad])
    with pytest.raises(ReportError, match=r"bad\.json"):
        read_inputs(bundle.path, ladder=bad)
    with pytest.raises(ReportError, match="no folder"):
        read_inputs(bundle.path, pictures=tmp_path / "absent")
    folder = pictures(tmp_path / "worst")
    (folder / f"{WORST[0]}.png").write_bytes(b"no picture")
    with pytest.raises(ReportError, match="is no picture"):
        build_page(read_inputs(bundle.path, pictures=folder))
    (bundle.path / "gate.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match=r"gate\.json"):
        read_inputs(bundle.path)


def test_the_command_writes_both(make_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = full_bundle(make_bundle)
    out = tmp_path / "new" / "r.html"
    assert main(["report", str(bundle.path), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["size"] == out.stat().st_size and said["verdict"] == "gate passed, simulated"
    assert main(["report", str(bundle.path), "--out", str(tmp_path / "r.md"), "--markdown"]) == 0
    assert (tmp_path / "r.md").read_text().startswith("# ")
    assert main(["report", str(tmp_path / "absent.bundle"), "--out", str(out)]) == 1
    assert audit()["engines"][0]["file"] in out.read_text()
