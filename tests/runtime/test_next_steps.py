"""The commands to type next: each is a line that a shell takes apart as it was meant."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from twins_trt.cli import command_module
from twins_trt.cli.parsing import new_parser
from twins_trt.runtime.next_steps import after_build, after_compile


def words(command: str) -> list[str]:
    return shlex.split(command)


def test_a_bundle_without_a_device_is_measured_here() -> None:
    steps = after_build(Path("x.bundle"), awaits=False)
    assert steps.here == ("twins-trt profile x.bundle --save",) and steps.device == () and steps.copy == ""
    assert steps.text().splitlines() == [
        "next:",
        "  twins-trt profile x.bundle --save",
        "  twins-trt predict x.bundle PICTURES --out masks",
    ]


@pytest.mark.parametrize("name", ["road.bundle", "my road's.bundle", "$(road)"])
def test_paths_survive_the_shell(name: str) -> None:
    steps = after_build(Path("some where") / name, awaits=True, pack=Path("a b.pack"))
    stem = name.removesuffix(".bundle")
    archive = f"some where/{stem}.tar"
    export = ["export-to", "device", f"some where/{name}", "--pack", "a b.pack", "--out", archive]
    assert words(steps.here[0]) == ["twins-trt", *export]
    assert words(steps.copy) == ["scp", archive, "USER@DEVICE:"]
    there = f"{stem}.bundle"
    assert [words(each) for each in steps.device] == [
        ["twins-trt", "compile", f"{stem}.tar"],
        ["twins-trt", "gate", there, "--pack", f"{there}/gate.pack"],
        ["twins-trt", "profile", there, "--save"],
    ]
    text = steps.text().splitlines()
    assert text[0] == "next, here:" and text[3] == "then, on the device:" and len(text) == 8


def test_without_a_pack_nothing_is_judged_on_the_device() -> None:
    steps = after_build(Path("x.bundle"), awaits=True)
    assert not any("pack" in each or "gate" in each for each in (*steps.here, *steps.device))
    assert after_compile("x.bundle", pack=False) == ("twins-trt profile x.bundle --save",)


def test_every_command_exists_and_takes_its_words() -> None:
    steps = after_build(Path("x.bundle"), awaits=True, pack=Path("x.pack"))
    for command in (*steps.here, *steps.device, steps.predict):
        program, name, *rest = words(command)
        parser = new_parser(f"twins-trt {name}", summary="", example="")
        command_module(name).configure(parser)
        assert program == "twins-trt" and parser.parse_known_args(rest)[1] == []
