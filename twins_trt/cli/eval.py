"""`twins-trt eval`: scores of a bundle, or of a PyTorch model, on a data set."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins_trt.cli.console import Console
from twins_trt.cli.parsing import (
    add_data_options,
    add_mode_options,
    add_running_options,
    add_weights_options,
    check_engine,
    nearest,
    open_data,
    parse_mode,
    parse_test_scale,
    torch_device,
)
from twins_trt.errors import UsageError
from twins_trt.models.zoo import is_model, list_models

if TYPE_CHECKING:
    from twins_trt.data import Dataset, Preprocessing
    from twins_trt.evaluation import Walk
    from twins_trt.evaluation.tiling import Tiles

EXAMPLE = (
    "twins-trt eval x.bundle --data camvid:PATH --split val --json\n"
    "  twins-trt eval twins_svt-s_fpn --checkpoint F.pth --data ade20k:ADEChallengeData2016\n\n"
    "Images run whole, as in mmsegmentation's test pipeline. For ade20k they are first fitted into 2048x512\n"
    "(--test-scale). A bundle of fixed size runs images of that size as they are and resizes others to it; one\n"
    "of dynamic size follows the test scale. Wherever an image is resized, only a bundle with --outputs logits\n"
    "scores as mmsegmentation does, which resizes logits; a mask can only be resized to the nearest pixel. What\n"
    "was done is said under the scores (in the JSON: exact, resized_images, notes). --mode runs both in windows, at\n"
    "several sizes and mirrored, or bundles in tiles."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """BUNDLE|MODEL, --data, --split, how to run, and the options of weights."""
    parser.add_argument("what", metavar="BUNDLE|MODEL", help="a bundle, or a name that twins-trt models lists")
    add_data_options(parser)
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images ahead")
    add_running_options(parser)
    parser.add_argument(
        "--test-scale", metavar="LONGxSHORT", help="fit images into this first, or none; default: 2048x512 for ade20k"
    )
    parser.add_argument("--device", default="auto", metavar="{auto,cpu,cuda}", help="where a PyTorch model runs")
    parser.add_argument("--fit", default="stretch", metavar="{stretch,letterbox}", help="into a bundle of fixed size")
    parser.add_argument("--dry-run", action="store_true", help="open everything and say what would be scored")
    add_mode_options(parser)
    add_weights_options(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Score one bundle or model."""
    from twins_trt.data import ADE20K_TEST, Preprocessing
    from twins_trt.evaluation.tiling import Tiles

    check_engine(arguments.engine)
    is_model = _is_model(arguments.what)
    dataset = open_data(arguments)
    preprocessing: Preprocessing | None = None
    if arguments.test_scale is not None:
        preprocessing = Preprocessing(test_scale=parse_test_scale(arguments.test_scale))
    elif arguments.data.startswith("ade20k:"):
        preprocessing = ADE20K_TEST
    mode = parse_mode(arguments)
    if is_model:
        if isinstance(mode, Tiles) or mode == "tile":
            raise UsageError("a PyTorch model is not run in tiles", "use --mode slide, or build a bundle")
        return _score_model(arguments, console, dataset, preprocessing, mode)
    return _score_bundle(arguments, console, dataset, preprocessing, mode)


def _is_model(what: str) -> bool:
    if is_model(what) and not (Path(what) / "manifest.json").is_file():
        return True
    if Path(what).exists() or what.endswith(".bundle"):
        return False
    near = nearest(what, list_models())
    raise UsageError(
        f"there is no bundle and no model called {what!r}",
        f"use one of: {', '.join(near)}"
        if near
        else "twins-trt models lists the models, twins-trt build makes bundles",
    )


def _score_model(
    arguments: argparse.Namespace, console: Console, dataset: Dataset, preprocessing: Preprocessing | None, mode: str
) -> int:
    from twins_trt.builders.weights import find_weights, load_weights
    from twins_trt.evaluation import evaluate_model
    from twins_trt.runtime.codec import encode

    weights = find_weights(arguments.what, checkpoint=arguments.checkpoint, seeded=arguments.seeded)
    if arguments.dry_run:
        return _show_plan(arguments, console, dataset, runs="PyTorch", weights=weights)
    import torch

    device = torch_device(arguments.device)
    if arguments.threads is not None:
        torch.set_num_threads(max(1, arguments.threads))
    console.progress("load", "seeded" if weights is None else str(weights))
    model, facts = load_weights(
        arguments.what,
        checkpoint=arguments.checkpoint,
        seeded=arguments.seeded,
        num_classes=arguments.num_classes,
        padding=arguments.padding,
    )
    result = evaluate_model(
        model.to(device),
        dataset,
        mode=mode,
        preprocessing=preprocessing,
        walk=_walk(arguments, console),
    )
    notes = ["random weights: the scores mean nothing"] if facts.source.seeded else []
    ran = {"engine": "pytorch", "device": device, "padding": arguments.padding, "source": encode(facts.source)}
    console.result({**result.to_json(), **ran, "exact": True, "notes": notes}, _text(result.table(), notes))
    return 0


def _score_bundle(
    arguments: argparse.Namespace,
    console: Console,
    dataset: Dataset,
    preprocessing: Preprocessing | None,
    mode: str | Tiles,
) -> int:
    from twins_trt.builders.scoring import score_bundle
    from twins_trt.runtime import EngineSettings, open_bundle

    if arguments.checkpoint is not None or arguments.seeded:
        raise UsageError("a bundle has its weights inside", "leave --checkpoint and --seeded out")
    bundle = open_bundle(arguments.what)
    manifest = bundle.manifest
    if arguments.num_classes is not None and arguments.num_classes != manifest.num_classes:
        raise UsageError(
            f"--num-classes is {arguments.num_classes}, {bundle.path} has {manifest.num_classes} classes",
            "leave --num-classes out",
        )
    if arguments.dry_run:
        return _show_plan(arguments, console, dataset, runs=arguments.engine, weights=None)
    score = score_bundle(
        bundle,
        dataset,
        engine=arguments.engine,
        fit=arguments.fit,
        mode=mode,
        preprocessing=None
        if preprocessing is None
        else replace(manifest.preprocessing, test_scale=preprocessing.test_scale),
        settings=EngineSettings(threads=arguments.threads),
        walk=_walk(arguments, console),
    )
    facts = {"model": manifest.model, "precision": manifest.precision, "padding": manifest.padding}
    console.result({**score.to_json(), **facts}, _text(score.result.table(), [*score.notes]))
    return 0


def _show_plan(
    arguments: argparse.Namespace, console: Console, dataset: Dataset, *, runs: str, weights: Path | None
) -> int:
    images = len(dataset)
    plan: dict[str, Any] = {"name": arguments.what, "dataset": dataset.source, "split": dataset.split}
    plan |= {"images": images, "classes": list(dataset.classes), "mode": arguments.mode or "whole", "engine": runs}
    plan["weights"] = None if weights is None else str(weights)
    text = f"{arguments.what} would be scored on {images} images of {dataset.source} ({dataset.split}) with {runs}"
    console.result({"dry_run": True, **plan}, text)
    return 0


def _walk(arguments: argparse.Namespace, console: Console) -> Walk:
    from twins_trt.evaluation import Walk

    def progress(done: int, total: int, miou: float) -> None:
        console.progress("eval", f"{done} of {total} images, mIoU {miou:.2f}", done / total)

    return Walk(workers=arguments.workers, progress=progress)


def _text(table: str, notes: list[str]) -> str:
    return "\n".join([table, *(f"note: {note}" for note in notes)])
