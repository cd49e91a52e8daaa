"""The architecture of a checkpoint, read off the shapes of its tensors: the zoo's row, or one of own widths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from twins_trt.errors import CheckpointError
from twins_trt.models.zoo import ModelSpec, known_specs
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from twins_trt.models.read_conventions import ModelNumbers

STAGES = 4
SR_RATIOS = (8, 4, 2, 1)
HEAD_DIMS = {"svt": 32, "pcpvt": 64}
"""Channels of one head of attention in the published models."""
CUSTOM = "custom"
"""The variant of a backbone that is none of the zoo's."""

Quadruple = tuple[int, int, int, int]


def backbone_spec(weights: Mapping[str, Tensor], path: str | Path) -> ModelSpec | None:
    """The backbone of weights under mmseg's keys, with the head of the zoo's FPN models; None where there is none.

    Raises `CheckpointError` for widths that no Twins backbone has, and names the tensor.
    """
    if "backbone.patch_embeds.0.projection.weight" not in weights:
        return None
    return _Reader(weights, path).backbone()


def read_spec(weights: Mapping[str, Tensor], path: str | Path, *, numbers: ModelNumbers | None = None) -> ModelSpec:
    """The architecture of a whole model's weights under mmseg's keys.

    It has a name of the zoo where its backbone is one of the zoo's, although its head may have own widths, and the
    variant `custom` otherwise. numbers: what the configuration says of numbers that no tensor tells.
    Raises `CheckpointError` for weights without a Twins backbone or one of our heads, and for widths that no such model
    has; it names the tensor.
    """
    reader = _Reader(weights, path)
    spec = reader.backbone()
    if spec is None:
        raise CheckpointError(
            f"{path} holds no Twins backbone", "use a checkpoint of a Twins model: docs/checkpoints.md lists which load"
        )
    return _with_numbers(reader.head(spec), numbers)


def _with_numbers(spec: ModelSpec, numbers: ModelNumbers | None) -> ModelSpec:
    if numbers is None:
        return spec
    stated = {
        name: value
        for name in ("num_heads", "window_size", "drop_path_rate")
        if (value := getattr(numbers, name)) is not None
    }
    if numbers.norm_eps is not None:
        stated["outer_norm_eps"] = numbers.norm_eps
    return replace(spec, **stated)


def check_heads(spec: ModelSpec, path: str | Path) -> None:
    """Raises `CheckpointError` where a number of heads does not divide its stage's channels."""
    for channels, heads in zip(spec.embed_dims, spec.num_heads, strict=True):
        if heads < 1 or channels % heads:
            raise CheckpointError(
                f"{path} has stages of {'/'.join(map(str, spec.embed_dims))} channels, which its "
                f"{'/'.join(map(str, spec.num_heads))} heads do not divide",
                f"correct num_heads: {spelled('conventions', 'num_heads=H1,H2,H3,H4')}",
            )


class _Reader:
    """Reads sizes off tensors. Every refusal names the tensor that is missing or has another shape."""

    def __init__(self, weights: Mapping[str, Tensor], path: str | Path) -> None:
        self.weights = weights
        self.path = path

    def size(self, key: str, axis: int = 0, ndim: int | None = None) -> int:
        """One side of a tensor that must be there."""
        value = self.weights.get(key)
        if value is None:
            raise CheckpointError(f"{self.path} lacks {key}", "use a complete checkpoint")
        if value.ndim <= axis or (ndim is not None and value.ndim != ndim) or not value.numel():
            raise CheckpointError(
                f"{self.path}: {key} has the shape {list(value.shape)}, which no Twins model has",
                "use a Twins model's checkpoint: docs/checkpoints.md lists which load",
            )
        return int(value.shape[axis])

    def backbone(self) -> ModelSpec | None:
        if "backbone.patch_embeds.0.projection.weight" not in self.weights:
            return None
        blocks = self._blocks()
        dims = [self.size(f"backbone.patch_embeds.{i}.projection.weight", 0, 4) for i in range(STAGES)]
        for i in range(STAGES):
            patch = self.size(f"backbone.patch_embeds.{i}.projection.weight", 2, 4)
            if patch != (4 if i == 0 else 2):
                raise self._cannot(f"patches of {patch} pixels in stage {i + 1}")
        has_lsa = [[f"{block}.attn.qkv.weight" in self.weights for block in stage] for stage in blocks]
        family = "svt" if any(any(stage) for stage in has_lsa) else "pcpvt"
        for i, stage in enumerate(has_lsa):
            if stage != [family == "svt" and j % 2 == 0 for j in range(len(stage))]:
                raise self._cannot(f"another order of LSA and GSA than SVT's (stage {i + 1})")
        if family == "pcpvt" and "backbone.norm_list.0.weight" in self.weights:
            raise self._cannot("a PCPVT backbone with a norm after each stage (norm_after_stage)")
        widths, depths = _four(dims), _four([len(stage) for stage in blocks])
        alike = [s for s in known_specs() if (s.family, s.embed_dims, s.depths) == (family, widths, depths)]
        spec = alike[0] if alike else None
        ratios = _four([self._mlp_ratio(stage[0], dims[i]) for i, stage in enumerate(blocks)])
        reductions = _four([self._reduction(stage, default) for stage, default in zip(blocks, SR_RATIOS, strict=True)])
        heads = spec.num_heads if spec else _four([max(1, width // HEAD_DIMS[family]) for width in dims])
        variant = spec.variant if spec and (spec.mlp_ratios, spec.sr_ratios) == (ratios, reductions) else CUSTOM
        return ModelSpec(
            name=f"twins_{family}-{variant}",
            family=family,
            variant=variant,
            head="",
            embed_dims=widths,
            depths=depths,
            num_heads=heads,
            mlp_ratios=ratios,
            drop_path_rate=spec.drop_path_rate if spec else 0.2,
            sr_ratios=reductions,
        )

    def head(self, backbone: ModelSpec) -> ModelSpec:
        """The whole model's row: the zoo's own if nothing differs from it."""
        if "decode_head.scale_heads.0.0.conv.weight" in self.weights:
            widths: dict[str, object] = {
                "fpn_channels": (
                    self.size("neck.lateral_convs.0.conv.weight", 0, 4),
                    self.size("decode_head.scale_heads.0.0.conv.weight", 0, 4),
                )
            }
            head = "fpn"
        elif "decode_head.psp_modules.0.1.conv.weight" in self.weights:
            widths = {"uper_channels": self.size("decode_head.psp_modules.0.1.conv.weight", 0, 4)}
            auxiliary = self.weights.get("auxiliary_head.convs.0.conv.weight")
            if auxiliary is not None and auxiliary.ndim == 4:
                widths["auxiliary_channels"] = int(auxiliary.shape[0])
            head = "upernet"
        elif any(key.startswith("decode_head.") for key in self.weights):
            raise self._cannot("a decode head that is neither FPNHead's nor UPerHead's")
        else:
            raise headless(backbone, self.path)
        name = f"{backbone.name}_{head}"
        published = next((each for each in known_specs() if each.name == name), None)
        base = published or replace(backbone, name=name, head=head)
        return replace(base, **widths)  # type: ignore[arg-type]  # fields of the row

    def _blocks(self) -> list[list[str]]:
        """Prefixes of the blocks of every stage, in order."""
        found: dict[int, set[int]] = {}
        for key in self.weights:
            if match := re.match(r"backbone\.layers\.(\d{1,4})\.(\d{1,4})\.", key):
                found.setdefault(int(match[1]), set()).add(int(match[2]))
        for stage, blocks in found.items():
            if stage >= STAGES:
                raise self._cannot(f"a stage {stage + 1}")
            if blocks != set(range(len(blocks))):
                raise CheckpointError(
                    f"{self.path} lacks blocks of stage {stage + 1}: it has {sorted(blocks)}",
                    "use a complete checkpoint",
                )
        if len(found) < STAGES:
            raise CheckpointError(
                f"{self.path} has {len(found)} stages of blocks, not {STAGES}", "use a complete checkpoint"
            )
        return [[f"backbone.layers.{i}.{j}" for j in range(len(found[i]))] for i in range(STAGES)]

    def _mlp_ratio(self, block: str, channels: int) -> int:
        hidden = self.size(f"{block}.ffn.layers.0.0.weight", 0, 2)
        if hidden % channels:
            raise self._cannot(f"an FFN of {hidden} channels in a stage of {channels}")
        return hidden // channels

    def _reduction(self, blocks: list[str], default: int) -> int:
        for block in blocks:
            if f"{block}.attn.attn.in_proj_weight" in self.weights:  # GSA
                sr = f"{block}.attn.sr.weight"
                return self.size(sr, 2, 4) if sr in self.weights else 1
        return default  # a stage of LSA alone tells none

    def _cannot(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} has {what}, which twins-trt cannot run",
            "use a Twins model as mmsegmentation builds it: docs/checkpoints.md lists which load",
        )


def _four(values: list[int]) -> Quadruple:
    a, b, c, d = values
    return a, b, c, d


def headless(backbone: ModelSpec, path: str | Path) -> CheckpointError:
    """The error for a file that holds a backbone alone, where a whole model is needed."""
    model = f"{backbone.name}_fpn" if backbone.variant != CUSTOM else "MODEL"
    return CheckpointError(
        f"{path} holds the backbone {backbone.name} without a head (weights pre-trained for classification)",
        f"fine-tune from it: twins-trt train {model} --checkpoint {path} --data KIND:PATH --out DIR",
    )
