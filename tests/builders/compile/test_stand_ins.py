"""What was audited in place of a device's engine leaves the bundle when that engine is there."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from compiling import Install, ToCompile

from twins_trt.builders.compile import compile_bundle
from twins_trt.runtime import open_bundle
from twins_trt.runtime.bundle import amend_bundle
from twins_trt.runtime.manifest import AwaitedEngine
from twins_trt.verbs.compile import CompileRequest


@pytest.mark.parametrize(
    ("noted", "left"),
    [({"sm_87": "no compiler"}, None), ({"sm_87": "no compiler", "sm_110": "none"}, {"sm_110": "none"})],
)
def test_only_what_stood_for_other_targets_stays(
    install: Install, to_compile: ToCompile, noted: dict[str, str], left: dict[str, str] | None
) -> None:
    install("10.3.0")
    awaits = (AwaitedEngine("sm_87", "jetson-orin", "10.3"), AwaitedEngine("sm_90", "h100"))
    bundle = to_compile()
    nearest: list[dict[str, Any]] = [
        {"file": None, "targets": [target], "stands_for": stands_for, "audit": {}}
        for target, stands_for in (("sm_86", ["sm_87"]), ("sm_89", ["sm_90"]))
    ]
    content = {"engines": nearest, "not_audited": noted}
    files = {"audit.json": json.dumps(content).encode()}
    amend_bundle(bundle, files, change=lambda manifest: replace(manifest, awaits=awaits))
    compile_bundle(CompileRequest(bundle=str(bundle.path)))
    compiled = open_bundle(bundle.path)
    assert compiled.manifest.awaits == awaits[1:]
    audits = compiled.read_json("audit.json")
    assert [each["file"] for each in audits["engines"]] == [None, compiled.manifest.engines[0].file]
    assert audits["engines"][0]["stands_for"] == ["sm_90"]
    assert audits.get("not_audited") == left
