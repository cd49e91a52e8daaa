"""docs/jetson.md as it is typed: its command blocks in order, the machine that each belongs to, and what it prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

PROGRAMS = ("twins-trt", "scp", "sudo")
DESKTOP, JETSON, UPGRADED = "desktop", "jetson", "upgraded"


@dataclass(frozen=True)
class Block:
    """Command lines, and the lines that the page shows below them. machine: DESKTOP, JETSON or UPGRADED."""

    machine: str
    commands: tuple[str, ...]
    shown: tuple[str, ...] = ()


def blocks(text: str) -> list[Block]:
    """The blocks of a page. Commands are indented, what they print is fenced.

    A heading decides on which machine the blocks below it are typed: with "Jetson" on the Jetson, with "desktop" on the
    desktop, with "upgrade" on the Jetson after an upgrade, where it stays. The first block is the desktop's.
    """
    found: list[Block] = []
    machine, after = DESKTOP, JETSON
    for part in _parts(text):
        if part.startswith("#"):
            after = UPGRADED if "upgrade" in part else after
            machine = DESKTOP if "desktop" in part else after if re.search("Jetson|upgrade", part) else machine
        elif part.startswith("```"):
            lines = part.splitlines()[1:-1]
            found[-1] = Block(found[-1].machine, found[-1].commands, tuple(line.rstrip() for line in lines))
        else:
            lines = re.sub(r"\\\n *", "", part).splitlines()
            commands = tuple(line.split("  #")[0].strip() for line in lines)
            assert all(command.split()[0] in PROGRAMS for command in commands), part
            found.append(Block(machine, commands))
    return found


def _parts(text: str) -> Iterator[str]:
    """Headings below the title, fenced and indented blocks, in order."""
    for match in re.finditer(r"^##+ .*$|^```\n(?:.*\n)*?```$|(?:^    .*\n)+", text, re.MULTILINE):
        yield match[0].rstrip("\n")


def masked(line: str) -> str:
    """The line without what another machine or run may change: numbers, and blanks beside them."""
    return re.sub(r"[-+−]?[\d.:]*\d", "N", re.sub(r" +", " ", line)).strip()


def unseen(shown: tuple[str, ...], printed: str) -> list[str]:
    """The lines that the page shows and the commands did not print. "..." stands for lines, or for the end of one, that
    are left out."""
    lines = [masked(line) for line in printed.splitlines()]

    def printed_so(line: str) -> bool:
        wanted = masked(line.removesuffix("..."))
        return wanted in lines or (line.endswith("...") and any(each.startswith(wanted) for each in lines))

    return [line for line in shown if line.strip() not in ("", "...") and not printed_so(line)]
