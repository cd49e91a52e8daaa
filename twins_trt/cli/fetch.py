"""`twins-trt fetch`: published weights."""

from __future__ import annotations

import argparse

from twins_trt.cli.console import Console, megabytes
from twins_trt.models.fetch import cached_path, default_cache_dir, fetch
from twins_trt.models.zoo import get_spec

EXAMPLE = "twins-trt fetch twins_svt-s_fpn"


def configure(parser: argparse.ArgumentParser) -> None:
    """MODEL, --cache-dir, --url, --dry-run."""
    parser.add_argument("model", metavar="MODEL", help="a name that twins-trt models lists")
    parser.add_argument(
        "--cache-dir", metavar="DIR", help=f"where to keep it; default: $TWINS_TRT_CACHE or {default_cache_dir()}"
    )
    parser.add_argument("--url", metavar="URL", help="a mirror's address of the same file")
    parser.add_argument("--dry-run", action="store_true", help="say what would be downloaded, and to where")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Download, or say what would be downloaded."""
    spec = get_spec(arguments.model)
    path = cached_path(spec.name, cache_dir=arguments.cache_dir)
    url = arguments.url or spec.weights_url
    if arguments.dry_run:
        there = path.is_file()
        plan = {"model": spec.name, "url": url, "path": str(path), "present": there}
        plan["sha256_prefix"] = spec.weights_sha256_prefix
        done = "is there already; its sha256 would be checked" if there else f"would be downloaded from {url}"
        console.result({"dry_run": True, **plan}, f"{path} {done}")
        return 0

    def progress(done: int, total: int | None) -> None:
        console.progress(
            f"fetch {spec.name}",
            megabytes(done) + (f" of {megabytes(total)}" if total else ""),
            done / total if total else None,
        )

    path = fetch(spec.name, cache_dir=arguments.cache_dir, progress=progress, url=arguments.url)
    size = path.stat().st_size
    console.result(
        {"model": spec.name, "path": str(path), "url": url, "size": size}, f"{path} ({megabytes(size)}, sha256 checked)"
    )
    return 0
