"""Whether files run on Python 3.10, which JetPack 6 has: vermin knows what of the language and of the standard library
came later."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def newer_than_310(files: Sequence[Path]) -> list[str]:
    """What in the files needs a later Python, one line each, as in `'tomllib' module requires !2, 3.11`.

    Raises AssertionError if vermin cannot decide about a file.
    """
    # "file": a function of Python 2; a variable of that name would leave the whole file unchecked.
    command = [sys.executable, "-c", "from vermin import main; main()", "--target=3.10-", "--no-tips", "--violations"]
    done = subprocess.run(
        [*command, "--exclude", "file", *map(str, files)], capture_output=True, text=True, check=False
    )
    found = re.findall(r"^ +(.+ requires .*)$", done.stdout, re.MULTILINE)
    assert "Minimum required versions" in done.stdout and "incompatible versions" not in done.stdout, done.stdout
    assert found or done.returncode == 0, done.stdout + done.stderr
    return found
