"""One step of training, and the state from which the next one continues exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import TrainingError
from twins_trt.models.backbone import DropPath
from twins_trt.models.heads import Classifier
from twins_trt.models.segmentor import Segmentor
from twins_trt.spelling import spelled
from twins_trt.training.data.batches import Batch
from twins_trt.training.options import TrainOptions
from twins_trt.training.step.distributed import World, sync_batch_norms
from twins_trt.training.step.ema import Ema
from twins_trt.training.step.losses import SegmentationLoss
from twins_trt.training.step.schedule import learning_rate, parameter_groups

BETAS = (0.9, 0.999)
_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepLosses:
    """Means over a step's batch. auxiliary: 0 without that head. accuracy: percent of the labelled pixels."""

    loss: float
    decode: float
    auxiliary: float
    accuracy: float


class Trainer:
    """A model under training. model: with its first weights, and the conventions by which pixels are normalized; it is
    moved to the device and changed in place.

    `iteration` counts the steps. With a precision plan BatchNorm keeps its statistics, as the graph does.
    """

    def __init__(self, model: Segmentor, options: TrainOptions, world: World) -> None:
        self.options = options
        self.world = world
        self.iteration = 0
        self.model = model.to(world.device)
        set_regularization(model, drop_path=options.drop_path, dropout=options.dropout)
        if world.size > 1:
            sync_batch_norms(model)
        if options.checkpointing:
            checkpoint_blocks(model)
        self.ema = None if options.ema is None else Ema(model, decay=options.ema)
        self._optimizer = torch.optim.AdamW(
            parameter_groups(
                model,
                weight_decay=options.weight_decay,
                decay=options.decay,
                norms_decay=model.spec.head == "fpn",
            ),
            lr=options.lr,
            betas=BETAS,
        )
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=options.amp == "fp16")
        loss = SegmentationLoss(model, aux_weight=options.aux_weight)
        self._loss: nn.Module = loss
        if world.size > 1:
            self._loss = DistributedDataParallel(loss, broadcast_buffers=False)

    def leave(self) -> None:
        """Lets go of the other processes: no step comes after it."""
        if isinstance(self._loss, DistributedDataParallel):
            self._loss = self._loss.module

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        options = self.options
        return learning_rate(
            self.iteration,
            lr=options.lr,
            iterations=options.iterations,
            warmup=options.warmup,
            power=options.power,
            min_lr=options.min_lr,
        )

    def step(self, batch: Batch) -> StepLosses:
        """One step of the optimizer.

        Raises `TrainingError` where the loss is not finite; no weight has changed then, BatchNorm's statistics have.
        """
        self.model.train()
        if self.options.plan is not None:
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        rate = self.rate
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        # Dropout and drop path depend on seed, iteration and process alone, so that a resumed run draws the same.
        entropy = np.random.SeedSequence((1, self.options.seed, self.iteration, self.world.rank))
        torch.manual_seed(int(entropy.generate_state(1)[0]))
        images, labels = on_device(batch, self.world.device, self.model.conventions.preprocessing)
        with self._autocast():
            losses = self._loss(images, labels)
        means = self._mean(losses)
        if not math.isfinite(means.loss):
            raise TrainingError(
                f"the loss of iteration {self.iteration + 1} is {means.loss}",
                f"train with a smaller {spelled('lr')}, a longer {spelled('warmup')} or {spelled('clip_norm', 1.0)}"
                + (f", or {spelled('amp', 'bf16')}" if self.options.amp == "fp16" else ""),
            )
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(losses["loss"]).backward()
        if self.options.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self.ema is not None:
            self.ema.update(self.model)
        self.iteration += 1
        return means

    @contextmanager
    def weights_to_use(self) -> Iterator[Segmentor]:
        """The model as it is validated and saved: with the running mean of its weights if there is one."""
        with nullcontext() if self.ema is None else self.ema.applied(self.model):
            yield self.model

    def state_dict(self) -> dict[str, Any]:
        """Everything on which the next step depends, as tensors and plain values. Random numbers need no state."""
        return {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.values,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from the result of `state_dict`."""
        self.iteration = state["iteration"]
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load(state["ema"])

    def _autocast(self) -> Any:
        if self.options.amp == "off":
            return nullcontext()
        return torch.autocast(self.world.device.type, dtype=_AMP[self.options.amp])

    def _mean(self, losses: Mapping[str, Tensor]) -> StepLosses:
        names = ("loss", "decode", "auxiliary", "right", "labelled")
        zero = torch.zeros((), device=self.world.device)
        values = torch.stack([losses.get(name, zero).detach().double() for name in names])
        *means, right, labelled = self.world.total(values).tolist()
        loss, decode, auxiliary = (value / self.world.size for value in means)
        return StepLosses(loss, decode, auxiliary, accuracy=100 * right / max(1.0, labelled))


def on_device(batch: Batch, device: torch.device, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Normalized pixels in the network's order of channels, float32 [N, 3, H, W], and labels, int64 [N, H, W].

    Outside of each picture the pixels are 0, as mmseg pads.
    """
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in preprocessing.statistics)
    images = torch.from_numpy(batch.images).to(device).permute(0, 3, 1, 2).float()
    images = (images - mean) / std
    if preprocessing.channels == "bgr":
        images = images.flip(1)
    images = images.contiguous()
    for image, (height, width) in zip(images, batch.sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return images, torch.from_numpy(batch.labels).to(device).long()


def set_regularization(model: Segmentor, *, drop_path: float, dropout: float) -> None:
    """Sets the heads' dropout, and scales the blocks' drop path, which rises linearly with depth, to end at
    `drop_path`."""
    largest = model.spec.drop_path_rate or 1.0  # a rate of 0 leaves every block at 0
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate *= drop_path / largest
        elif isinstance(module, Classifier):
            module.dropout.p = dropout


def checkpoint_blocks(model: Segmentor) -> None:
    """Makes every block of the backbone keep only its input, and compute its forward pass again for the gradient."""
    for stage in model.backbone.layers:
        for block in cast(nn.ModuleList, stage):
            setattr(block, "forward", partial(_checkpointed, block.forward))  # noqa: B010  # mypy: a method


def _checkpointed(forward: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    if not torch.is_grad_enabled():
        return cast(Tensor, forward(x, size))
    return cast(Tensor, checkpoint(forward, x, size, use_reentrant=False))
