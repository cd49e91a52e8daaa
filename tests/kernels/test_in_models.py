"""A whole model by each form of its attentions: logits and gradients, compiled, checkpointed, exported.

The kernels run in Triton's interpreter. The models are small: every kind of block, in a few channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from twins_trt.errors import EngineError, UsageError
from twins_trt.models import build_model, get_spec
from twins_trt.models.backbone import GSA, LSA
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor

# Maps of 12×14, 6×7, 3×4 and 2×2: windows whole on one axis, padded on the other, on both.
SIZE = (46, 56)
CHANNELS = {"svt": (32, 32, 64, 64), "pcpvt": (64, 64, 64, 64)}
HEADS = {"svt": (1, 1, 2, 2), "pcpvt": (1, 1, 1, 1)}


def small_model(family: str, attention: str, *, training: bool = False) -> Segmentor:
    """LSA in every stage and GSA in the first and last (SVT), GSA everywhere (PCPVT); drop path up to 0.3."""
    spec = replace(
        get_spec(f"twins_{family}-s_fpn"),
        embed_dims=CHANNELS[family],
        num_heads=HEADS[family],
        depths=(2, 1, 1, 2),
        mlp_ratios=(2, 2, 2, 2),
        drop_path_rate=0.3,
    )
    model = Segmentor(spec, 5, attention=attention)
    seed_weights(model)
    return model.train(training)


def pictures(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def gradients(model: Segmentor, x: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    """Logits and the gradient of every parameter, of a loss that sees each logit differently."""
    torch.manual_seed(2)  # drop path and dropout
    logits = (model if forward is None else forward)(x)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)).to(logits.dtype)
    (logits * weights).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    model.zero_grad()
    return {"logits": logits.detach(), **found}


def relative_error(x: Tensor, exact: Tensor) -> float:
    return float((x.detach().double() - exact.detach()).norm() / exact.detach().norm())


def run_interpreted(family: str) -> dict[str, dict[str, Tensor]]:
    """Where kernels are interpreted: the Triton form, as it is, checkpointed, and (SVT) compiled into one graph."""
    model, x = small_model(family, "triton", training=True), pictures()
    found = {
        "eager": gradients(model, x),
        "checkpointed": gradients(model, x, lambda x: checkpoint(model, x, use_reentrant=False)),
    }
    if family == "svt":  # it has both attentions, and compiling takes seconds
        found["compiled"] = gradients(model, x, torch.compile(model, fullgraph=True, backend="aot_eager"))
    return found


@pytest.fixture(params=["svt", "pcpvt"])
def forms(request: pytest.FixtureRequest, interpreted: Callable[..., Any]) -> dict[str, dict[str, Tensor]]:
    """By form: logits and gradients, those of the kernels from the interpreter."""
    family, x = request.param, pictures()
    return {
        **interpreted("test_in_models:run_interpreted", family),
        "reference": gradients(small_model(family, "reference", training=True), x),
        "sdpa": gradients(small_model(family, "sdpa", training=True), x),
        "exact": gradients(small_model(family, "reference", training=True).double(), x.double()),
    }


@pytest.mark.slow
def test_every_parameter_has_the_gradient_of_the_reference(forms: dict[str, dict[str, Tensor]]) -> None:
    """In training mode: drop path, twice in GSA and FFN branches, draws the same numbers in every form."""
    exact, reference = forms.pop("exact"), forms.pop("reference")
    assert {"eager", "checkpointed", "sdpa"} <= set(forms)
    for form, ours in forms.items():
        assert set(ours) == set(exact)
        for name, value in exact.items():
            limit = max(1e-5, 2 * relative_error(reference[name], value))
            assert relative_error(ours[name], value) <= limit, (form, name)


def test_an_exported_model_holds_plain_operators() -> None:
    model, x = small_model("svt", "triton"), pictures(1)
    program = torch.export.export(model, (x,))
    namespaces = {str(node.target).partition(".")[0] for node in program.graph.nodes if node.op == "call_function"}
    assert "twins_trt" not in namespaces and "aten" in namespaces
    expected = small_model("svt", "reference")(x)
    assert relative_error(program.module()(x), expected.double()) <= 1e-6


def test_a_form_is_asked_for_by_name() -> None:
    model = build_model("twins_svt-s_fpn", 2, attention="sdpa")
    assert {m.attention for m in model.modules() if isinstance(m, (LSA, GSA))} == {"sdpa"}
    with pytest.raises(UsageError, match="attention must be one of auto, triton, sdpa, reference, not 'flash'"):
        build_model("twins_svt-s_fpn", attention="flash")
    with torch.no_grad(), pytest.raises(EngineError, match="do not run on a cpu tensor"):
        small_model("svt", "triton")(pictures(1))
