"""Two processes on a CPU (gloo) against one with the same global batch: the same losses and the same weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from toy import Options, log_rows, weights

from twins_trt.training import TrainRequest, train

PROCESS = """
import gc, json, sys
from pathlib import Path
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
destroy = dist.destroy_process_group
def destroy_what_nothing_uses():
    assert not any(isinstance(each, DistributedDataParallel) for each in gc.get_objects())
    destroy()
dist.destroy_process_group = destroy_what_nothing_uses
sys.path.insert(0, sys.argv[1])
import toy
toy.register()
from twins_trt.training import TrainRequest, train
train(TrainRequest.from_json(json.loads(Path(sys.argv[2]).read_text())))
"""


def train_in_two_processes(request: TrainRequest, folder: Path) -> None:
    (folder / "request.json").write_text(json.dumps(request.to_json()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = str(Path(__file__).parent)
    running = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PROCESS, here, str(folder / "request.json")]
        running.append(subprocess.Popen(command, env={**os.environ, **place}, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said


def test_two_processes_train_as_one(options: Options, tmp_path: Path) -> None:
    """Without what is random in a step, which each process draws for itself. BatchNorm's sums, and the gradients',
    come in another order, so that digits are left over."""
    common = {"iterations": 3, "dropout": 0.0, "drop_path": 0.0, "device": "cpu", "validate_every": 3}
    one = options(out=str(tmp_path / "one"), **common)
    two = options(out=str(tmp_path / "two"), **common)
    train(one)
    train_in_two_processes(two, tmp_path)
    alone, together = log_rows(one.out), log_rows(two.out)
    assert [row[0] for row in together[1:]] == ["1", "2", "3"]
    for row, other in zip(alone[1:], together[1:], strict=True):
        assert [float(value) for value in other] == pytest.approx([float(value) for value in row], rel=1e-4)
    ours, theirs = weights(Path(one.out) / "last.pth"), weights(Path(two.out) / "last.pth")
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        # AdamW's first steps have the size of the rate whatever the gradient's: where that is next to 0, rounding
        # decides on its sign. So weights are compared as a whole.
        difference = (value.double() - theirs[key].double()).norm()
        assert difference <= 1e-3 * value.double().norm() + 1e-4, key
    assert json.loads((Path(two.out) / "options.json").read_text())["batch"] == 2
