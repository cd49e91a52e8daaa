"""The forms of whole models that are compared: they do equal work, and each runs as its name says."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import models, traces
from benchmarks.gpu.jobs import Job
from benchmarks.gpu.networks import FORMS, Form, graphs_skipped, network_of
from benchmarks.gpu.timing import Pace, Times
from benchmarks.gpu.workload import Workload, smoke

MODEL = "twins_svt-demo_fpn"
BATCH = 2
AUTOTUNED = [name for name in FORMS if name.endswith("autotuned")]
TIMES = Times(0.5, 0.5, 0.5, 0.5, 20, "events")


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> None:
    torch.compiler.reset()


def job_of(form: str, workload: Workload) -> Job:
    (job,) = [job for job in models.jobs(workload) if job.form == form and job.model == MODEL]
    return job


@pytest.mark.parametrize("form", models.FORMS)
def test_every_form_gives_the_plain_models_mask(form: str) -> None:
    row = job_of(form, smoke()).measure()
    # a rounding of bfloat16 decides between classes that are nearly equal: weights are random
    assert row["same_pixels"] >= (0.95 if form.endswith("amp") else 0.9999)
    assert row["images_per_second"] == pytest.approx(1e3 * BATCH / row["ms"], rel=1e-3)
    assert row["first_s"] > 0


def test_a_form_that_does_other_work_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = models.plain_mask_of(MODEL, BATCH, smoke())
    assert len(expected.unique()) > 10  # the picture has many classes, so that equal pixels say something
    right = torch.arange(expected.numel()).reshape(expected.shape) % 4 > 0
    wrong = torch.where(right, expected, expected + 1)
    monkeypatch.setattr(models, "network_of", lambda *_: lambda image: wrong)
    assert job_of("ours autotuned", smoke()).measure()["same_pixels"] == 0.75


@pytest.mark.parametrize("form", FORMS)
def test_the_mask_is_of_what_was_timed(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call compiles: torch records its graph later, and a capture later still."""
    expected = models.plain_mask_of(MODEL, BATCH, smoke())
    calls: list[int] = []

    def network(image: Tensor) -> Tensor:
        calls.append(1)
        return expected if len(calls) == 1 else expected + 1

    monkeypatch.setattr(models, "network_of", lambda *_: network)
    assert job_of(form, smoke()).measure()["same_pixels"] == 0


def test_the_strongest_competitor_is_there_with_plain_attention_and_with_ours() -> None:
    assert {FORMS[name].attention for name in AUTOTUNED} == {"reference", "sdpa", "kernels"}
    for name in AUTOTUNED:
        assert FORMS[name] == Form(FORMS[name].attention, "half", compiled="all", graph="torch", tuned=True)


@pytest.mark.parametrize("form", AUTOTUNED)
def test_an_autotuned_form_is_one_graph_with_its_weights_frozen(form: str) -> None:
    inputs: list[list[str]] = []

    def compiler(module: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        inputs.append([str(node.target) for node in module.graph.nodes if node.op == "placeholder"])
        return module.forward

    workload = replace(smoke(), compiler=compiler)  # type: ignore[arg-type]
    network = network_of(MODEL, FORMS[form], workload)
    image = models.picture(BATCH, workload)
    masks = [network(image), network(255 - image), network(image)]
    assert len(inputs) == 1 and len(inputs[0]) == 1  # the image alone: neither weights nor statistics
    # and the image is not frozen: another one gets its own mask
    plain = network_of(MODEL, FORMS["eager fp32"], workload)
    for mask, shown in zip(masks, (image, 255 - image, image), strict=True):
        assert (mask == plain(shown)).double().mean() >= 0.9999
    assert (masks[0] != masks[1]).any()


@pytest.mark.parametrize("form", [name for name in FORMS if FORMS[name].compiled == "all"])
def test_inductor_gets_the_whole_function_and_every_call_begins_a_step(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config, select_algorithm

    said: list[str] = []
    asked: list[dict[str, Any]] = []

    def compile_(network: Callable[[Tensor], Tensor], **options: Any) -> Callable[[Tensor], Tensor]:
        asked.append(options)

        def run(image: Tensor) -> Tensor:
            frozen = config.freezing and not torch.is_grad_enabled()
            said.append(f"frozen={frozen} table={select_algorithm.PRINT_AUTOTUNE}")
            assert not torch.is_inference_mode_enabled()
            return network(image)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: said.append("step"))
    workload = replace(smoke(), compiler="inductor")
    network = network_of(MODEL, FORMS[form], workload)
    for _ in range(3):
        network(models.picture(BATCH, workload))
    tuned = form in AUTOTUNED
    mode = "max-autotune" if tuned else "reduce-overhead"  # both have CUDA graphs
    assert asked == [{"fullgraph": True, "dynamic": False, "backend": "inductor", "mode": mode}]
    # only the first call compiles; then freezing is as it was
    later = ["step", "frozen=False table=True"]
    assert said == ["step", f"frozen={tuned} table=False", *later, *later]
    assert not config.freezing and select_algorithm.PRINT_AUTOTUNE


def test_what_has_graphs_of_torchs_own_is_never_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captures do not nest, and a failed one ends the process."""
    captured: dict[str, bool] = {}

    for form in FORMS:

        def time_call(call: Callable[[], object], pace: Pace, *, graph: bool, form: str = form) -> Times:
            captured[form] = graph
            assert torch.backends.cudnn.benchmark  # cuDNN may try its algorithms, in every form alike
            return TIMES

        monkeypatch.setattr(models, "time_call", time_call)
        monkeypatch.setattr(models, "network_of", lambda *_: lambda image: image[..., 0])
        job_of(form, smoke()).measure()
    assert [form for form, graph in captured.items() if graph] == ["ours", "ours compiled"]
    assert not torch.backends.cudnn.benchmark


def test_a_row_says_whether_torch_made_its_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setattr(models, "time_call", lambda *_, graph: TIMES)
    monkeypatch.setattr(models, "network_of", lambda *_: lambda image: image[..., 0])
    assert job_of("sdpa autotuned", smoke()).measure()["timed"] == "torch graph"
    assert job_of("eager amp", smoke()).measure()["timed"] == "events"

    def skipping(image: Tensor) -> Tensor:
        counters["inductor"]["cudagraph_skips"] += 1  # as torch counts what it runs without a graph
        return image[..., 0]

    monkeypatch.setattr(models, "network_of", lambda *_: skipping)
    before = graphs_skipped()
    try:
        assert job_of("sdpa autotuned", smoke()).measure()["timed"] == "events"
    finally:
        counters["inductor"]["cudagraph_skips"] = before


def test_only_our_forms_rest_on_the_checks_of_our_kernels() -> None:
    resting = {job.form for job in models.jobs(smoke()) if job.rests_on}
    assert resting == {form for form in models.FORMS if form.startswith("ours")}
    assert set(models.AROUND) <= set(job_of("ours autotuned", smoke()).rests_on)


def test_what_the_torch_engine_runs_rests_on_its_tests() -> None:
    engines = [job_of(models.HOST, smoke()), *traces.jobs(smoke())]
    assert all("torch engine" in job.rests_on for job in engines)
    assert "torch engine" not in job_of("ours", smoke()).rests_on


class KernelWorkload(Workload):
    """On a CPU with our kernels all the same, by Triton's interpreter."""

    kernels = "triton"


def ours_by_the_interpreter() -> tuple[list[str], list[str], float]:
    """Operators of ours in what torch.compile gets of `ours autotuned`, its inputs, and the share of right pixels."""
    graphs: list[torch.fx.GraphModule] = []

    def compiler(module: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        graphs.append(module)
        return module.forward

    plain = smoke()
    workload = KernelWorkload(**{**vars(plain), "compiler": compiler})
    mask = network_of(MODEL, FORMS["ours autotuned"], workload)(models.picture(1, workload))
    (graph,) = graphs
    operators = [str(node.target) for node in graph.graph.nodes if "twins_trt" in str(node.target)]
    inputs = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]
    same = (mask == models.plain_mask_of(MODEL, 1, plain)).double().mean()
    return operators, inputs, float(same)


@pytest.mark.slow
def test_our_kernels_are_inside_the_autotuned_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # of a process of its own: it is read when kernels are decorated
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        operators, inputs, same = pool.submit(ours_by_the_interpreter).result()
    spec = smoke().spec(MODEL)
    attentions = ["lsa" if spec.has_lsa(block) else "gsa" for depth in spec.depths for block in range(depth)]
    expected = ["resize_normalize", *attentions, "resize_argmax"]
    assert operators == [f"twins_trt.{name}.default" for name in expected]
    assert len(inputs) == 1 and same >= 0.9999
