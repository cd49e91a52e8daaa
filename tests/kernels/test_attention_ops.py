"""The operators `twins_trt::lsa` and `twins_trt::gsa`: gradients, autocast, torch.compile, export, checkpointing."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from twins_trt.kernels.gsa import gsa, gsa_reference, gsa_sdpa
from twins_trt.kernels.gsa.op import gsa_backward_op, gsa_op
from twins_trt.kernels.lsa import lsa, lsa_reference, lsa_sdpa
from twins_trt.kernels.lsa.op import lsa_backward_op, lsa_op
from twins_trt.kernels.lsa.reference import PADDINGS

MAPS = {"whole windows": (2, 7, 14), "one axis padded": (1, 9, 7), "both padded": (2, 5, 8), "1x1": (1, 1, 1)}


def lsa_inputs(name: str, dtype: torch.dtype = torch.float64, *, grad: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(*MAPS[name], 96, generator=generator, dtype=torch.float64).to(dtype)
    bias = torch.randn(96, generator=generator, dtype=torch.float64).to(dtype)
    return qkv.requires_grad_(grad), bias.requires_grad_(grad)


def gsa_inputs(dtype: torch.dtype = torch.float64, *, grad: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 23, 64, generator=generator, dtype=torch.float64).to(dtype)
    kv = torch.randn(2, 9, 128, generator=generator, dtype=torch.float64).to(dtype)
    return q.requires_grad_(grad), kv.requires_grad_(grad)


def error(x: Tensor, exact: Tensor) -> float:
    x, exact = x.detach().double(), exact.detach().double()
    return float((x - exact).norm() / exact.norm())


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", MAPS)
def test_lsa_operator_is_registered_in_full(name: str, padding: str) -> None:
    qkv, bias = lsa_inputs(name)
    assert set(opcheck(lsa_op, (qkv, bias, 2, 7, padding)).values()) == {"SUCCESS"}
    assert torch.autograd.gradcheck(lambda q, b: lsa_op(q, b, 2, 7, padding), (qkv, bias), fast_mode=True)
    expected = lsa_reference(qkv, bias, num_heads=2, padding=padding)
    assert torch.equal(lsa_op(qkv, bias, 2, 7, padding), expected)


def test_gsa_operator_is_registered_in_full() -> None:
    q, kv = gsa_inputs()
    assert set(opcheck(gsa_op, (q, kv, 2)).values()) == {"SUCCESS"}
    assert torch.autograd.gradcheck(lambda q, kv: gsa_op(q, kv, 2)[0], (q, kv), fast_mode=True)
    assert error(gsa_op(q, kv, 2)[0], gsa_reference(q, kv, num_heads=2)) <= 1e-14
    assert not gsa_op(q, kv, 2)[1].requires_grad


def test_gradient_operators_have_shapes_for_the_compiler() -> None:
    qkv, bias = lsa_inputs("one axis padded", grad=False)
    grad = torch.randn(1, 9, 7, 32, dtype=torch.float64)
    assert set(opcheck(lsa_backward_op, (grad, qkv, bias, 2, 7, "parity")).values()) == {"SUCCESS"}
    q, kv = gsa_inputs(grad=False)
    assert set(opcheck(gsa_backward_op, (q, q, kv, *gsa_op(q, kv, 2), 2)).values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_tensors_on_a_cpu_err_at_most_as_much_as_the_reference(dtype: torch.dtype) -> None:
    """bf16 has no other test without a GPU: Triton's interpreter gets it wrong."""
    qkv, bias = lsa_inputs("one axis padded", dtype)
    q, kv = gsa_inputs(dtype)
    for op, plain, inputs in (
        (lambda *x: lsa_op(*x, 2, 7, "parity"), lambda *x: lsa_reference(*x, num_heads=2), (qkv, bias)),
        (lambda *x: gsa_op(*x, 2)[0], lambda *x: gsa_reference(*x, num_heads=2), (q, kv)),
    ):
        exact = plain(*(x.double() for x in inputs))
        grad = torch.ones_like(exact).cumsum(-1) / exact.shape[-1]
        exact_grads = torch.autograd.grad(exact, inputs, grad)
        out, theirs = op(*inputs), plain(*inputs)
        assert out.dtype == dtype
        assert error(out, exact) <= error(theirs, exact)
        grads = torch.autograd.grad(out, inputs, grad.to(dtype))
        their_grads = torch.autograd.grad(theirs, inputs, grad.to(dtype))
        for x, y, value in zip(grads, their_grads, exact_grads, strict=True):
            assert error(x, value) <= 1.2 * error(y, value)  # the exact gradient was rounded once more on its way


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", MAPS)
def test_sdpa_form_equals_the_reference(name: str, padding: str) -> None:
    qkv, bias = lsa_inputs(name)
    out, expected = (f(qkv, bias, num_heads=2, padding=padding) for f in (lsa_sdpa, lsa_reference))
    assert error(out, expected) <= 1e-13
    grad = torch.randn_like(out)
    grads = (torch.autograd.grad(x, (qkv, bias), grad, materialize_grads=True) for x in (out, expected))
    for x, y in zip(*grads, strict=True):
        assert (x - y).abs().max() <= 1e-12


def test_gsa_sdpa_form_equals_the_reference() -> None:
    q, kv = gsa_inputs()
    assert error(gsa_sdpa(q, kv, num_heads=2), gsa_reference(q, kv, num_heads=2)) <= 1e-13


def test_autocast_decides_the_dtype() -> None:
    qkv, bias = lsa_inputs("one axis padded", torch.float32)
    q, kv = gsa_inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        window, (globally, lse) = lsa_op(qkv, bias, 2, 7, "parity"), gsa_op(q, kv, 2)
        wide = gsa_op(q.double(), kv.double(), 2)[0]
    assert window.dtype == globally.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    assert wide.dtype == torch.float64
    (window.float().sum() + globally.float().sum()).backward()
    assert {x.grad.dtype for x in (qkv, bias, q, kv) if x.grad is not None} == {torch.float32}
    assert all(x.grad is not None for x in (qkv, bias, q, kv))


def test_autocast_reaches_the_public_functions() -> None:
    qkv, bias = lsa_inputs("one axis padded", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear = nn.functional.linear(qkv, torch.eye(96))  # as in the model: 16-bit map, fp32 bias
        out = lsa(linear, bias, num_heads=2)
    assert linear.dtype == out.dtype == torch.bfloat16
    assert error(out, lsa_reference(qkv, bias, num_heads=2)) <= 0.02


def both(qkv: Tensor, bias: Tensor, kv: Tensor) -> Tensor:
    """A window attention, then a global one."""
    window = lsa_op(qkv, bias, 2, 7, "parity")
    return gsa_op(window.flatten(1, 2), kv, 2)[0]


def test_compiles_into_one_graph_with_gradients_at_any_size() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(both, fullgraph=True, backend=backend, dynamic=True)
    for height, width in ((9, 7), (14, 8), (7, 7), (5, 10)):  # padded on one axis, the other, none, both
        inputs = [
            torch.randn(1, height, width, 96, requires_grad=True),
            torch.randn(96, requires_grad=True),
            torch.randn(1, 6, 64, requires_grad=True),
        ]
        out, expected = compiled(*inputs), both(*inputs)
        assert torch.equal(out, expected)
        grad = torch.randn_like(out)
        for x, y in zip(
            torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
        ):
            assert torch.equal(x, y)
    assert len(graphs) == 1  # a size is no reason to compile again


def test_checkpointing_gives_the_same_gradients() -> None:
    (qkv, bias), (_, kv) = lsa_inputs("one axis padded"), gsa_inputs()
    kv = kv[:1, :, :64].detach().requires_grad_()
    grads = torch.autograd.grad(both(qkv, bias, kv).sum(), (qkv, bias, kv))
    again = torch.autograd.grad(checkpoint(both, qkv, bias, kv, use_reentrant=False).sum(), (qkv, bias, kv))
    assert all(torch.equal(x, y) for x, y in zip(grads, again, strict=True))


class Attentions(nn.Module):
    """Both attentions with the kernels asked for by name."""

    def forward(self, qkv: Tensor, bias: Tensor, kv: Tensor) -> Tensor:
        window = lsa(qkv, bias, num_heads=2, backend="triton")
        return gsa(window.flatten(1, 2), kv, num_heads=2, backend="triton")


def test_exported_programs_hold_plain_operators() -> None:
    inputs = (torch.randn(1, 9, 7, 192), torch.randn(192), torch.randn(1, 6, 128))
    program = torch.export.export(Attentions(), inputs)
    namespaces = {str(node.target).partition(".")[0] for node in program.graph.nodes if node.op == "call_function"}
    assert namespaces <= {"aten", "<built-in function getitem>"}
    expected = gsa_reference(lsa_reference(*inputs[:2], num_heads=2).flatten(1, 2), inputs[2], num_heads=2)
    assert error(program.module()(*inputs), expected) <= 1e-6


def test_onnx_graphs_hold_plain_operators(tmp_path: Any) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = tmp_path / "attentions.onnx"
    inputs = (torch.randn(1, 9, 7, 192), torch.randn(192), torch.randn(1, 6, 128))
    torch.onnx.export(Attentions().eval(), inputs, path, dynamo=True, verbose=False)
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert [node.op_type for node in model.graph.node].count("Softmax") == 2


def compiled_in_the_interpreter() -> list[Tensor]:
    """Runs where kernels are interpreted: results and gradients of the public functions, compiled and not."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*size, generator=generator) for size in ((1, 9, 7, 192), (192,), (1, 6, 128))]
    inputs = [x.requires_grad_() for x in inputs]
    model = Attentions()
    out = []
    for function in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        y = function(*inputs)
        out += [y.detach(), *torch.autograd.grad(y, inputs, torch.ones_like(y).cumsum(-1))]
    return [*out, *(x.detach() for x in inputs)]


def test_public_functions_reach_the_kernels_compiled_or_not(interpreted: Callable[..., Any]) -> None:
    results = interpreted("test_attention_ops:compiled_in_the_interpreter")
    eager, compiled, inputs = results[:4], results[4:8], results[8:]
    assert all(torch.equal(x, y) for x, y in zip(eager, compiled, strict=True))
    exact_inputs = [x.double().requires_grad_() for x in inputs]
    window = lsa_reference(*exact_inputs[:2], num_heads=2)
    y = gsa_reference(window.flatten(1, 2), exact_inputs[2], num_heads=2)
    exact = [y, *torch.autograd.grad(y, exact_inputs, torch.ones_like(y).cumsum(-1))]
    for ours, value in zip(eager, exact, strict=True):
        assert error(ours, value) <= 1e-5


def operators_of_a_compiled_graph() -> list[str]:
    """Runs where kernels are interpreted. Whether torch exports must be asked, not traced: torch.compile of torch 2.11
    takes `is_exporting` for true. Here it cannot be traced."""
    import torch._dynamo  # which knows the true `is_exporting` from here on

    torch.compiler.is_exporting = lambda: os.stat(os.curdir) is None
    operators: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compile(Attentions(), fullgraph=True, backend=backend)(
        torch.randn(1, 9, 7, 192), torch.randn(192), torch.randn(1, 6, 128)
    )
    return operators


def test_a_compiled_graph_holds_the_operators_of_the_kernels(interpreted: Callable[..., Any]) -> None:
    operators = interpreted("test_attention_ops:operators_of_a_compiled_graph")
    assert {"twins_trt.lsa.default", "twins_trt.gsa.default"} <= set(operators)
