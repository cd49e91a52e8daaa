"""`twins-trt doctor`: what is installed, what that allows, and what is broken with the command that mends it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from twins_trt.cli.console import Console, table
from twins_trt.errors import MissingDependencyError, UsageError
from twins_trt.verbs.doctor import FLAGS
from twins_trt.version import __version__

if TYPE_CHECKING:
    from twins_trt.diagnosis import Facts, Finding
    from twins_trt.diagnosis.packages import PackageState

EXAMPLE = (
    "twins-trt doctor --for build\n"
    "  twins-trt doctor --for predict --engine tensorrt\n\n"
    "Exit code 4 if the command named after --for (by default predict) lacks something here."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """--for, --engine."""
    FLAGS.add_to(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Diagnose this machine; 4 if the command of --for would not work."""
    from twins_trt.codec import encode
    from twins_trt.diagnosis import commands, diagnose, gather
    from twins_trt.diagnosis.needs import NEEDS
    from twins_trt.runtime.engines import check_kind

    request = FLAGS.read(arguments)
    purpose = request.purpose
    if purpose not in NEEDS:
        raise UsageError(f"nothing special is needed for {purpose!r}", f"use one of: {', '.join(NEEDS)}")
    check_kind(request.engine)
    console.progress("doctor", "importing what is installed")
    facts = gather()
    ready, findings = commands(facts, engine=request.engine), diagnose(facts)
    absent = ready[purpose]
    value: dict[str, Any] = {
        "version": __version__,
        "purpose": purpose,
        "ready": not absent,
        "commands": ready,
        "findings": encode(findings),
        "facts": {**encode(facts), "packages": [_package_json(state) for state in facts.packages]},
    }
    console.result(value, _text(facts, ready, findings, purpose))
    return MissingDependencyError.exit_code if absent else 0


def _text(facts: Facts, ready: dict[str, list[str]], findings: tuple[Finding, ...], purpose: str) -> str:
    rows = [
        ("twins-trt", __version__),
        ("python", _unknown(facts, "python") or _python(facts)),
        ("memory", _unknown(facts, "memory_mib") or f"{facts.memory_mib} MiB"),
        ("GPU", _unknown(facts, "gpu") or _gpu(facts)),
        ("Jetson", _unknown(facts, "jetson") or _jetson(facts)),
    ]
    places = [f"{place.free / 1e9:.1f} GB free in {place.path} ({place.use})" for place in facts.places or ()]
    places = [_unknown(facts, "places") or ""] if facts.places is None else places
    rows += [("disk" if index == 0 else "", place) for index, place in enumerate(places)]
    shown = [
        (f"{name}{' *' if name == purpose else ''}", "ready" if not absent else f"lacks {', '.join(absent)}")
        for name, absent in ready.items()
    ]
    parts = [table(rows), table([_package(state) for state in facts.packages]), table([("twins-trt", ""), *shown])]
    parts += [f"cause: {finding.cause}\n mend: {finding.mend}" for finding in findings]
    return "\n\n".join(parts)


def _package(state: PackageState) -> tuple[str, ...]:
    name, version = state.package.distribution, state.version or "-"
    if state.state == "ok":
        return name, version, "ok", f"builds for {', '.join(state.targets)}" if state.targets else ""
    reason = f"{state.error}; " if state.error else ""
    return name, version, state.state, f"{reason}without it no {state.package.disables}: {state.package.install}"


def _package_json(state: PackageState) -> dict[str, Any]:
    package = state.package
    return {
        "module": package.module,
        "distribution": package.distribution,
        "state": state.state,
        "version": state.version,
        "location": state.location,
        "error": state.error,
        "targets": list(state.targets),
        "disables": package.disables,
        "install": package.install,
    }


def _python(facts: Facts) -> str:
    python = facts.python
    return "" if python is None else f"{python.version}, {python.platform}, {python.cpus} CPUs, {python.executable}"


def _gpu(facts: Facts) -> str:
    served = facts.driver.cuda if facts.driver is not None else None
    if served is None:
        return "none: no CUDA driver (engines can be built with tensorrt_rtx, bundles run on the CPU)"
    if facts.gpu is None:
        return f"none that the driver (CUDA {served}) serves"
    return f"{facts.gpu.name}, {facts.gpu.target}, driver for CUDA {served}"


def _jetson(facts: Facts) -> str:
    jetson = facts.jetson
    if jetson is None:
        return "no"
    jetpack = f"JetPack {jetson.jetpack}" if jetson.jetpack else "JetPack unknown"
    return f"{jetson.model or 'yes'}, {jetpack}, L4T {jetson.l4t or 'unknown'}"


def _unknown(facts: Facts, name: str) -> str | None:
    """The reason why `name` is unknown; None if it is known."""
    return f"unknown ({facts.unknown[name]})" if name in facts.unknown else None
