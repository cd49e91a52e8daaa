"""Precision plans: levels of blocks, names, JSON round trips, and the FLOPs of reverted blocks."""

from __future__ import annotations

import json

import onnx_graphsurgeon as gs
import pytest

from twins_trt.builders.export import DynamicDim, ExportOptions
from twins_trt.builders.export.export import build_graph
from twins_trt.builders.plan.precision_plan import LEVELS, PrecisionPlan, uniform_plan
from twins_trt.builders.plan.sites import Site, find_sites
from twins_trt.errors import UsageError
from twins_trt.models import build_model
from twins_trt.models.seeded import seed_weights

SVT, PCPVT, UPERNET = "twins_svt-s_fpn", "twins_pcpvt-s_fpn", "twins_svt-s_upernet"


def fp32_graph(name: str, size: int | DynamicDim = 512) -> gs.Graph:
    model = build_model(name, 19)
    seed_weights(model)
    return build_graph(model, ExportOptions(size, size, opset=20))[0]


@pytest.fixture(scope="module")
def sites() -> dict[str, tuple[Site, ...]]:
    return {name: find_sites(fp32_graph(name)) for name in (SVT, PCPVT, UPERNET)}


def flops(sites: tuple[Site, ...], name: str) -> float:
    (site,) = [site for site in sites if site.node == name]
    return site.flops


def test_flops_are_those_counted_by_hand(sites: dict[str, tuple[Site, ...]]) -> None:
    svt = sites[SVT]
    assert flops(svt, "stages.0.patch_embed/projection") == 2 * 128 * 128 * 64 * 3 * 16
    assert flops(svt, "stages.0.blocks.0.attn/qkv") == 2 * 128 * 128 * 64 * 192  # on the unpadded rows
    assert flops(svt, "stages.0.blocks.0.attn/proj") == 2 * 133 * 133 * 64 * 64  # on the padded windows
    assert flops(svt, "stages.0.blocks.0.attn/attention") == 4 * 361 * 2 * 49 * 49 * 32
    assert flops(svt, "stages.2.blocks.1.attn/attention") == 4 * 8 * 1024 * 256 * 32
    assert flops(svt, "stages.3.blocks.1.attn/q") == 2 * 256 * 512 * 512
    assert flops(svt, "stages.1.pos/proj") == 2 * 64 * 64 * 128 * 9
    assert flops(svt, "stages.0.blocks.1.attn/sr") == 2 * 16 * 16 * 64 * 64 * 64
    assert flops(svt, "neck/conv.0") == 2 * 128 * 128 * 256 * 256 * 9
    assert flops(sites[PCPVT], "stages.0.blocks.0.ffn/fc1") == 2 * 128 * 128 * 64 * 512
    assert flops(sites[UPERNET], "head/fuse") == 2 * 128 * 128 * 2048 * 512 * 9


def test_every_weight_of_the_backbone_is_a_site_and_no_fixed_matrix_is(sites: dict[str, tuple[Site, ...]]) -> None:
    for name, count in ((SVT, 18 * 5 - 9), (PCPVT, 16 * 5)):  # qkv of an LSA is one product, q and kv of a GSA two
        assert sum(site.kind == "linear" for site in sites[name]) == count
    upernet = {site.node.removeprefix("head/") for site in sites[UPERNET] if site.node.startswith("head/")}
    convs = {f"lateral.{i}" for i in range(3)} | {f"conv.{i}" for i in range(3)}
    assert upernet == convs | {"psp/scales", "bottleneck", "fuse", "classifier"}


def test_a_site_reads_what_layout_operations_only_move(sites: dict[str, tuple[Site, ...]]) -> None:
    source = {site.node: site.source for site in sites[SVT]}
    norm = "stages.2.blocks.1.attn/norm1"
    assert source["stages.2.blocks.1.attn/q"] == source["stages.2.blocks.1.attn/sr"] == norm
    assert source["stages.2.blocks.0.attn/proj"] == "stages.2.blocks.0.attn/context"
    assert source["stages.3.patch_embed/projection"] == source["neck/lateral.2"] == "stages.2.norm/norm"


def test_levels_run_what_they_name(sites: dict[str, tuple[Site, ...]]) -> None:
    for name, all_sites in sites.items():
        kinds = {}
        for level in LEVELS:
            kinds[level] = [site.kind for site in uniform_plan(all_sites, level, model=name).int8_sites(all_sites)]
        assert kinds["fp16"] == []
        assert set(kinds["int8-linear"]) == {"linear"}
        assert set(kinds["int8-linear+conv"]) == {"linear", "conv"}
        assert kinds["int8-attention"].count("attention") == sum(site.kind == "attention" for site in all_sites)
        spared = {"head/classifier", *(site.node for site in all_sites if site.positional)}
        full = uniform_plan(all_sites, "int8-attention", model=name).int8_sites(all_sites)
        assert {site.node for site in all_sites} - {site.node for site in full} == spared


def test_long_attentions_stay_fp16() -> None:
    graph = fp32_graph(SVT, 768)  # 24×24 keys behind every sub-sampling, 49 in a window
    full = uniform_plan(graph, "int8-attention").int8_sites(graph)
    assert {site.keys for site in full if site.kind == "attention"} == {49}


def test_the_longest_name_decides(sites: dict[str, tuple[Site, ...]]) -> None:
    plan = uniform_plan(sites[SVT], "int8-linear+conv", model=SVT)
    block = "stages.2.blocks.3.attn"
    finer = plan.with_level(block, "fp16").with_level(f"{block}/q", "int8-linear")
    nodes = {site.node for site in finer.int8_sites(sites[SVT]) if site.node.startswith(block)}
    assert nodes == {f"{block}/q"}
    assert plan.blocks[block] == "int8-linear+conv"  # the first plan is as it was
    assert finer.level_of("neck/conv.0") == "int8-linear+conv"


def test_reverted_flops_compare_with_the_uniform_plan(sites: dict[str, tuple[Site, ...]]) -> None:
    plan = uniform_plan(sites[SVT], "int8-linear+conv", model=SVT)
    assert plan.reverted_flops(sites[SVT]) == 0
    total = plan.level_flops(sites[SVT])
    expected = sum(s.flops for s in sites[SVT] if s.kind != "attention" and not s.positional and not s.classifier)
    assert total == expected
    reverted = plan.with_level("neck/conv.0", "fp16").with_level("stages.0.blocks.1.ffn", "fp16")
    lost = 2 * 128 * 128 * 256 * 256 * 9 + 2 * 2 * 128 * 128 * 64 * 256
    assert reverted.reverted_flops(sites[SVT]) == lost
    assert reverted.level_flops(sites[SVT]) == total
    # A level that adds attention is no reversal, and neither is the classifier in INT8.
    assert plan.with_level("stages.0.blocks.1.attn", "int8-attention").reverted_flops(sites[SVT]) == 0


def test_json_round_trip_reads_as_one_line_a_block(sites: dict[str, tuple[Site, ...]]) -> None:
    plan = uniform_plan(sites[SVT], "int8-linear", model=SVT, smooth=0.5).with_level("head/scale.0.0", "fp16")
    text = plan.to_json()
    assert PrecisionPlan.from_json(text) == plan
    assert '    "stages.2.blocks.4.ffn": "int8-linear",\n' in text
    edited = text.replace('"stages.2.blocks.4.ffn": "int8-linear"', '"stages.2.blocks.4.ffn": "fp16"')
    assert PrecisionPlan.from_json(edited) == plan.with_level("stages.2.blocks.4.ffn", "fp16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "int8-liner"}, "unknown precision level 'int8-liner'.*\n.*int8-linear"),
        ({"blocks": {"neck": "fp8"}}, "unknown precision level 'fp8'"),
        ({"smooth": 1.5}, "strength of 1.5"),
        ({"blocks": ["neck"]}, "blocks is \\['neck'\\]"),
        ({"precision": "int8"}, "field 'precision'"),
    ],
)
def test_an_edited_plan_that_is_wrong_is_refused(change: dict, message: str) -> None:
    text = json.dumps({"model": SVT, "level": "fp16", "blocks": {"neck": "fp16"}, **change})
    with pytest.raises(UsageError, match=message):
        PrecisionPlan.from_json(text)
    with pytest.raises(UsageError, match="precision plan"):
        PrecisionPlan.from_json(text[:-1])


def test_unknown_names_name_the_nearest(sites: dict[str, tuple[Site, ...]]) -> None:
    plan = uniform_plan(sites[SVT], "int8-linear", model=SVT)
    with pytest.raises(UsageError, match=r"no block 'stages.2.block.4.ffn'\n.*stages.2.blocks.4.ffn"):
        plan.with_level("stages.2.block.4.ffn", "fp16")
    with pytest.raises(UsageError, match=r"no block 'neck/conv.9'\n.*neck/conv"):
        plan.with_level("neck/conv.9", "fp16").int8_sites(sites[SVT])
    with pytest.raises(UsageError, match="no block"):  # of another model
        plan.int8_sites(sites[UPERNET])
    without = PrecisionPlan(SVT, "fp16", {name: level for name, level in plan.blocks.items() if name != "neck"})
    with pytest.raises(UsageError, match="says nothing about neck/lateral"):
        without.int8_sites(sites[SVT])


def test_a_graph_of_dynamic_size_has_the_same_sites_and_no_flops(sites: dict[str, tuple[Site, ...]]) -> None:
    dynamic = find_sites(fp32_graph(SVT, DynamicDim(256, 512, 1024)))
    assert {(site.node, site.kind, site.axis) for site in dynamic} == {(s.node, s.kind, s.axis) for s in sites[SVT]}
    plan = uniform_plan(dynamic, "int8-attention", model=SVT)
    windowed = {site.node for site in plan.int8_sites(dynamic) if site.kind == "attention"}
    assert windowed == {s.node for s in sites[SVT] if s.kind == "attention" and s.keys == 49}  # the others' may be long
    with pytest.raises(UsageError, match="dynamic size"):
        plan.reverted_flops(dynamic)


def test_a_dynamic_batch_counts_as_one(sites: dict[str, tuple[Site, ...]]) -> None:
    model = build_model(SVT, 19)
    seed_weights(model)
    graph = build_graph(model, ExportOptions(512, 512, batch=DynamicDim(1, 2, 4), opset=20))[0]
    assert {s.node: (s.flops, s.keys) for s in find_sites(graph)} == {s.node: (s.flops, s.keys) for s in sites[SVT]}
