"""`twins-trt fetch`: published weights."""

from __future__ import annotations

import argparse

from twins_trt.cli.console import Console, megabytes
from twins_trt.models.fetch import cached_path, fetch
from twins_trt.models.zoo import get_spec
from twins_trt.verbs.fetch import FLAGS

EXAMPLE = "twins-trt fetch twins_svt-s_fpn"


def configure(parser: argparse.ArgumentParser) -> None:
    """MODEL, --cache-dir, --url, --dry-run."""
    FLAGS.add_to(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be downloaded, and to where")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Download, or say what would be downloaded."""
    request = FLAGS.read(arguments)
    spec = get_spec(request.model)
    path = cached_path(spec.name, cache_dir=request.cache_dir)
    url = request.url or spec.weights_url
    if arguments.dry_run:
        present = path.is_file()
        answer = {"dry_run": True, "model": spec.name, "url": url, "path": str(path), "present": present}
        answer["sha256_prefix"] = spec.weights_sha256_prefix
        done = "is there already; its sha256 would be checked" if present else f"would be downloaded from {url}"
        console.result(answer, f"{path} {done}")
        return 0

    def progress(_: str, detail: str, share: float | None) -> None:
        console.progress(f"fetch {spec.name}", detail, share)

    path = fetch(spec.name, cache_dir=request.cache_dir, progress=progress, url=request.url)
    size = path.stat().st_size
    console.result(
        {"model": spec.name, "path": str(path), "url": url, "size": size}, f"{path} ({megabytes(size)}, sha256 checked)"
    )
    return 0
