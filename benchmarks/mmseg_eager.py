"""mmsegmentation's own model in PyTorch, for another process to time: it runs once for every line on stdin.

It writes `ready` when it is loaded, and `done` after each run. Like mmseg_export.py it runs in a virtual environment
that has mmsegmentation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from mmseg_export import Logits, build_mmseg


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", help="for example twins_svt-s_fpn")
    parser.add_argument("image", type=Path, help=".npy file, float32 [1, 3, H, W], normalized")
    parser.add_argument("--num-classes", type=int, default=150)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = Logits(build_mmseg(arguments.model, arguments.num_classes))
    image = torch.from_numpy(np.load(arguments.image))
    answers = sys.stdout
    sys.stdout = sys.stderr  # mmsegmentation prints
    with torch.inference_mode():
        print("ready", file=answers, flush=True)
        for _ in sys.stdin:
            model(image)
            print("done", file=answers, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
