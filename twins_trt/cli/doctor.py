"""`twins-trt doctor`: what is installed, what that allows, and what is missing."""

from __future__ import annotations

import argparse
from typing import Any

from twins_trt.cli.console import Console, table
from twins_trt.cli.environment import NEEDS, look
from twins_trt.errors import MissingDependencyError, UsageError
from twins_trt.version import __version__

EXAMPLE = (
    "twins-trt doctor --for build\n\n"
    "Exit code 4 if the command named after --for (by default predict) lacks something here."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """--for."""
    parser.add_argument(
        "--for",
        dest="purpose",
        default="predict",
        metavar=f"{{{','.join(NEEDS)}}}",
        help="the command that has to work here; default: predict",
    )


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Look, and say what was found; 4 if what was asked for would not work."""
    if arguments.purpose not in NEEDS:
        raise UsageError(f"nothing special is needed for {arguments.purpose!r}", f"use one of: {', '.join(NEEDS)}")
    console.progress("doctor", "importing what is installed")
    environment = look()
    absent = environment["commands"][arguments.purpose]
    value = {"version": __version__, "purpose": arguments.purpose, "ready": not absent, **environment}
    console.result(value, _text(environment, arguments.purpose))
    return MissingDependencyError.exit_code if absent else 0


def _text(environment: dict[str, Any], purpose: str) -> str:
    python, gpu, jetson = environment["python"], environment["gpu"], environment["jetson"]
    rows = [
        ("twins-trt", __version__),
        ("python", _known(python) or "{version}, {platform}, {cpus} CPUs, {executable}".format(**python)),
        ("memory", f"{environment['memory_mib']} MiB"),
        ("GPU", _known(gpu) or _gpu(gpu)),
        ("Jetson", _known(jetson) or _jetson(jetson)),
    ]
    disk = environment["disk"]
    places = [_known(disk) or ""]
    if isinstance(disk, list):
        places = [f"{place['free'] / 1e9:.1f} GB free in {place['path']} ({place['use']})" for place in disk]
    rows += [("disk" if index == 0 else "", place) for index, place in enumerate(places)]
    parts = [table(rows), table([_package(package) for package in environment["packages"]])]
    commands = [
        (f"{name}{' *' if name == purpose else ''}", "ready" if not absent else f"lacks {', '.join(absent)}")
        for name, absent in environment["commands"].items()
    ]
    parts.append(table([("twins-trt", ""), *commands]))
    advice = environment["advice"]
    parts += [f"advice: {line}" for line in advice] if isinstance(advice, list) else []
    return "\n\n".join(parts)


def _package(package: dict[str, Any]) -> tuple[str, ...]:
    name, version = package["distribution"], package["version"] or "-"
    if package["state"] == "ok":
        targets = f"builds for {', '.join(package['targets'])}" if package.get("targets") else ""
        return name, version, "ok", targets
    reason = f"{package['error']}; " if package.get("error") else ""
    return name, version, package["state"], f"{reason}without it no {package['disables']}: {package['install']}"


def _gpu(gpu: dict[str, Any]) -> str:
    if gpu["driver"] is None:
        return "none: no CUDA driver (engines can be built with tensorrt_rtx, bundles run on the CPU)"
    if gpu["name"] is None:
        return f"none that the driver (CUDA {gpu['driver']}) serves"
    return f"{gpu['name']}, {gpu['target']}, driver for CUDA {gpu['driver']}"


def _jetson(jetson: dict[str, Any] | None) -> str:
    if jetson is None:
        return "no"
    jetpack = f"JetPack {jetson['jetpack']}" if jetson["jetpack"] else "JetPack unknown"
    return f"{jetson['model'] or 'yes'}, {jetpack}, L4T {jetson['l4t'] or 'unknown'}"


def _known(found: Any) -> str | None:
    """The reason why a check could not tell, if it could not."""
    return f"unknown ({found['unknown']})" if isinstance(found, dict) and "unknown" in found else None
