"""docs/jetson.md is typed as it stands: its blocks, and only them, in order, on the simulated device."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")

import page
from desktop import PACKAGE
from environment import JETPACKS, ROOT
from simulation import TIMEOUT_S, Done, MakeJetson, SimulatedJetson, write_program

from twins_trt.demo.scenes import write_scenes

PAGE = ROOT / "docs" / "jetson.md"
SIZE = (96, 128)
UPGRADED = replace(JETPACKS["10.3.0"], release="7.2", python="3.12", cuda="13.0")


class Desktop:
    """The folder that the page's user types in, with a checkpoint, labelled images, and a way to the Jetson."""

    def __init__(self, folder: Path, jetson: Path) -> None:
        self.folder = folder
        (folder / ".bin").mkdir(parents=True)
        copy = f'for file in "$@"; do case "$file" in jetson:) ;; *) cp -r "$file" {str(jetson)!r} ;; esac; done'
        write_program(folder / ".bin" / "scp", copy)
        write_program(folder / ".bin" / "twins-trt", f'exec {sys.executable!r} -m twins_trt "$@"')
        shutil.copy(PACKAGE / "demo" / "weights.pth", folder / "road.pth")
        retrained(folder / "road.pth", folder / "road-2.pth")
        write_scenes(folder / "road", "train", range(310_000, 310_016), size=SIZE)
        write_scenes(folder / "road", "val", range(410_000, 410_040), size=SIZE)

    def run(self, line: str) -> Done:
        environment = os.environ | {"PATH": f"{self.folder / '.bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)


def retrained(checkpoint: Path, path: Path) -> None:
    """Another checkpoint of the same model: its weights differ a little."""
    import torch

    content = torch.load(checkpoint, weights_only=True)
    bias = next(value for name, value in content["state_dict"].items() if name.endswith("bias"))
    bias += 1e-3
    torch.save(content, path)


@pytest.mark.slow
def test_the_page_is_typed(jetson: MakeJetson, tmp_path: Path) -> None:
    """Every command ends with 0 and prints what the page shows. The desktop's are typed in the project's environment,
    the device's in the bare one."""
    before = jetson("10.3.0", folder=tmp_path / "jetson")
    desktop = Desktop(tmp_path / "desktop", before.folder)
    for photo in sorted((desktop.folder / "road" / "val" / "images").iterdir())[:2]:
        before.copy(photo, "photos")
    machines: dict[str, Desktop | SimulatedJetson] = {
        page.DESKTOP: desktop,
        page.JETSON: before,
        page.UPGRADED: jetson("10.16.1.11", jetpack=UPGRADED, folder=before.folder),
    }
    typed = page.blocks(PAGE.read_text(encoding="utf-8"))
    for block in typed:
        printed = ""
        for line in block.commands:
            machine = machines[block.machine]
            done = machine.run(line) if isinstance(machine, Desktop) else machine.run("bash", "-c", line)
            assert done.code == 0, f"{block.machine}: {line}\n{done.out}\n{done.err}"
            printed += f"{done.out}\n{done.err}\n"
        assert not page.unseen(block.shown, printed), f"{block.commands}\n{printed}"
    shipped = before.folder / "road.bundle"
    assert [each.name for each in (shipped / "engines").iterdir()] == ["tensorrt-10.16.1.11-sm_87.engine"]
    assert len(list((before.folder / "masks").glob("*.png"))) >= 2


def test_the_page_has_every_command_and_every_machine() -> None:
    typed = page.blocks(PAGE.read_text(encoding="utf-8"))
    assert {block.machine for block in typed} == {page.DESKTOP, page.JETSON, page.UPGRADED}
    on_device = [line.split()[1] for block in typed for line in block.commands if block.machine != page.DESKTOP]
    assert {"compile", "gate", "profile", "predict", "inspect", "doctor"} <= set(on_device)
    assert any("--against" in line for block in typed for line in block.commands)
    assert sum(len(block.shown) > 0 for block in typed) >= 5


def test_what_a_page_shows_is_compared_but_for_numbers() -> None:
    shown = ("passed: 3 of 4", "...", "speed   1.92 (1.8 to 2.0) times")
    assert page.unseen(shown, "passed: 8 of 9\nspeed 2.01 (1.9 to 2.1) times\n") == []
    assert page.unseen(shown, "FAILED: 8 of 9\nspeed 2.01 (1.9 to 2.1) times\n") == ["passed: 3 of 4"]


def test_a_block_belongs_to_the_machine_of_its_heading() -> None:
    text = "# T\n\n    scp a\n\n## On the Jetson\n\n    sudo b  # why\n\n```\nshown\n```\n"
    text += "\n## INT8: on the desktop\n\n    scp c\n"
    text += "\n## After an upgrade\n\n    sudo \\\n        d\n    sudo e\n\n## Failures\n\n    sudo f\n"
    assert page.blocks(text) == [
        page.Block(page.DESKTOP, ("scp a",)),
        page.Block(page.JETSON, ("sudo b",), ("shown",)),
        page.Block(page.DESKTOP, ("scp c",)),
        page.Block(page.UPGRADED, ("sudo d", "sudo e")),
        page.Block(page.UPGRADED, ("sudo f",)),
    ]


def test_prose_is_never_typed() -> None:
    with pytest.raises(AssertionError):
        page.blocks("# T\n\n    rm -r things\n")
