"""What is measured: at full size on a GPU, or in miniature, as a rehearsal on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from benchmarks.gpu.timing import Pace
from twins_trt.models.zoo import ModelSpec, get_spec, list_models

STAGES_OF = ("twins_svt-s_fpn", "twins_svt-b_fpn", "twins_svt-l_fpn", "twins_pcpvt-s_fpn")
MODELS = (*STAGES_OF, *(name for name in list_models() if name not in STAGES_OF))


@dataclass(frozen=True)
class Workload:
    """What is measured, where and for how long.

    size: (height, width) of the images, pixels. batches, train_batch: images at once. seconds, min_calls: how long and
    how often a call is repeated for one figure. dtype: of attentions and of our models. models: names of the zoo, which
    are measured whole. core_models: those whose attentions are measured at `stages`. compiler: torch.compile's backend.
    smoke: a rehearsal, whose models have few blocks.
    """

    device: torch.device
    size: tuple[int, int]
    batches: tuple[int, ...]
    train_batch: int
    seconds: float
    min_calls: int
    dtype: torch.dtype
    models: tuple[str, ...]
    core_models: tuple[str, ...]
    stages: tuple[int, ...]
    compiler: str
    smoke: bool

    @property
    def kernels(self) -> str:
        """The backend that is `ours`: a CPU has no Triton."""
        return "triton" if self.device.type == "cuda" else "reference"

    def pace(self, times: int = 1) -> Pace:
        """How long and how often one figure's call is repeated; `times` as long as most."""
        return Pace(self.device, times * self.seconds, self.min_calls)

    def spec(self, model: str) -> ModelSpec:
        """The zoo's row; in miniature with the fewest blocks that have both attentions."""
        spec = get_spec(model)
        return replace(spec, depths=(1, 1, 1, 2)) if self.smoke else spec


def full() -> Workload:
    """On a GPU."""
    return Workload(
        device=torch.device("cuda"),
        size=(512, 512),
        batches=(1, 16),
        train_batch=16,
        seconds=0.5,
        min_calls=20,
        dtype=torch.float16,
        models=MODELS,
        core_models=STAGES_OF,
        stages=(0, 1, 2, 3),
        compiler="inductor",
        smoke=False,
    )


def smoke(models: tuple[str, ...] | None = None, batches: tuple[int, ...] | None = None) -> Workload:
    """The same code on a CPU: its figures mean nothing and are not kept.

    models, batches: to rehearse a command that names them; its rows are then those of a GPU, by name.
    """
    names = ("twins_svt-demo_fpn",) if models is None else models
    named = models is not None or batches is not None
    return Workload(
        device=torch.device("cpu"),
        size=(32, 64) if models is None else (32, 32),
        batches=batches or (full().batches if named else (2,)),
        train_batch=full().train_batch if named else 2,
        seconds=0.0,
        min_calls=1,
        dtype=torch.float32,
        models=names,
        core_models=names if models is None else tuple(name for name in STAGES_OF if name in names),
        stages=(0,) if models is None else (0, 1, 2, 3),
        compiler="eager",
        smoke=True,
    )


@dataclass(frozen=True)
class Core:
    """One attention as a stage of a model runs it: `lsa` on a map, or `gsa` of height·width queries on `keys` keys."""

    attention: str
    model: str
    stage: int
    batch: int
    height: int
    width: int
    keys: int
    heads: int
    head_dim: int

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim

    @property
    def name(self) -> str:
        return f"{self.attention} {self.model} stage {self.stage} batch {self.batch}"

    def bytes(self, direction: str, itemsize: int) -> int:
        """Traffic at the minimum: every operand read once, every result written once. Log-sum-exp is fp32."""
        positions, c = self.batch * self.height * self.width, self.channels
        if self.attention == "lsa":  # qkv in, out; backward: qkv and grad in, dqkv out
            return positions * c * itemsize * (4 if direction == "forward" else 7)
        kv, lse = self.batch * self.keys * 2 * c * itemsize, positions * self.heads * 4
        if direction == "forward":
            return positions * c * itemsize * 2 + kv + lse
        return positions * c * itemsize * 4 + 2 * kv + lse  # q, out and grad in, dq out

    def flops(self, direction: str) -> int:
        """Operations of the matrix products: two forward, five backward. Padded tokens of a window do not count."""
        per_query = 49 if self.attention == "lsa" else self.keys
        products = 2 if direction == "forward" else 5
        return products * 2 * self.batch * self.height * self.width * per_query * self.channels

    @property
    def exponentials(self) -> int:
        """Exponentials of the softmax, forward."""
        per_query = 49 if self.attention == "lsa" else self.keys
        return self.batch * self.height * self.width * per_query * self.heads


def cores(workload: Workload) -> list[Core]:
    """The attentions of every stage of every model at every batch; equal ones once, named after the first model."""
    return _distinct(workload, workload.core_models, workload.batches)


def all_cores(workload: Workload) -> list[Core]:
    """These, and what only whole models and training steps run."""
    names = dict.fromkeys((*workload.core_models, *workload.models))
    return _distinct(workload, tuple(names), tuple(dict.fromkeys((*workload.batches, workload.train_batch))))


def cores_of(model: str, batch: int, workload: Workload) -> list[Core]:
    """The attentions of one model at a batch, as `all_cores` names them."""
    named = {_shape(core): core for core in all_cores(workload)}
    return [named[_shape(core)] for core in _distinct(workload, (model,), (batch,))]


def model_rests_on(
    model: str, batch: int, workload: Workload, *, training: bool = False, compiled: bool = False
) -> tuple[str, ...]:
    """What must be right where our attentions run in a model: their tests, and their cores at this size."""
    directions = ("forward", "backward") if training else ("forward",)
    tests = [
        *(("lsa bfloat16", "gsa bfloat16") if training else ()),
        *(("lsa compiled", "gsa compiled") if compiled else ()),
    ]
    cores = (f"{core.name} {direction}" for core in cores_of(model, batch, workload) for direction in directions)
    return ("lsa", "gsa", *tests, *cores)


def _distinct(workload: Workload, models: tuple[str, ...], batches: tuple[int, ...]) -> list[Core]:
    distinct: dict[tuple[object, ...], Core] = {}
    for model in models:
        spec = workload.spec(model)
        for batch in batches:
            for stage in workload.stages:
                height, width = (-(-side // (4 << stage)) for side in workload.size)
                sr = spec.sr_ratios[stage]
                heads = spec.num_heads[stage]
                head_dim = spec.embed_dims[stage] // heads
                for attention in ("lsa", "gsa") if spec.family == "svt" else ("gsa",):
                    keys = (height // sr) * (width // sr) if attention == "gsa" else 0
                    core = Core(attention, model, stage + 1, batch, height, width, keys, heads, head_dim)
                    distinct.setdefault(_shape(core), core)
    return list(distinct.values())


def _shape(core: Core) -> tuple[object, ...]:
    return (core.attention, core.batch, core.height, core.width, core.keys, core.heads, core.head_dim)
