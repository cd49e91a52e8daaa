from __future__ import annotations

from pathlib import Path

import torch
from checkpoints import held
from commands import MODEL, Twins

from twins_trt.models.checkpoint import read_checkpoint


def test_weights_travel_to_the_official_names_and_back(twins: Twins, checkpoint: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "official.pth", tmp_path / "back.pth"
    ran = twins("convert", checkpoint, there, "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["direction"], ran.json["family"], ran.json["variant"]) == ("to_official", "svt", "s")
    assert ran.json["dropped"] == {}
    ran = twins("convert", there, back)
    assert ran.code == 0 and ran.out.startswith(f"{back}: svt-s, ") and "to_mmseg" in ran.out
    before, after = read_checkpoint(checkpoint), read_checkpoint(back)
    assert held(after.state_dict) == (MODEL, 4)
    assert before.state_dict.keys() == after.state_dict.keys()
    assert all(torch.equal(value, after.state_dict[key]) for key, value in before.state_dict.items())
    assert after.meta.classes == ("sky", "road", "tree", "car")
