"""Code in a process of its own that is killed before it waits for the disk, each time at a later moment."""

from __future__ import annotations

import signal
import subprocess
import sys

KILL = """
import os, sys
fsync, left = os.fsync, int(sys.argv.pop(1))
def stop(descriptor):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
    fsync(descriptor)
os.fsync = stop
"""


def killed(code: str, when: int, *words: object) -> bool:
    """Whether `code`, which gets `words` as its sys.argv[1:], was killed at its fsync of this number, from 1 on.

    Raises AssertionError if it ended with an error.
    """
    command = [sys.executable, "-c", KILL + code, str(when), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0
