from __future__ import annotations

from pathlib import Path

import pytest
from commands import Twins

from twins_trt.models import get_spec, list_models
from twins_trt.models.fetch import cached_path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWINS_TRT_CACHE", str(tmp_path))
    return tmp_path


def test_the_table_has_a_row_for_every_model(twins: Twins) -> None:
    ran = twins("models")
    assert ran.code == 0
    head, *rows = ran.out.split("\n\n")[0].splitlines()
    assert head.split() == ["model", "crop", "mIoU", "ms+flip", "schedule", "weights"]
    assert [row.split()[0] for row in rows] == list_models()
    assert rows[6].split() == ["twins_svt-s_fpn", "512x512", "44.47", "45.42", "80k", "-"]


def test_json_has_every_field_and_says_what_was_fetched(twins: Twins) -> None:
    path = cached_path("twins_svt-b_upernet")
    path.write_bytes(b"weights")
    models = {model["name"]: model for model in twins("models", "--json").json["models"]}
    assert list(models) == list_models()
    spec = get_spec("twins_svt-b_upernet")
    model = models[spec.name]
    assert model["weights_url"] == spec.weights_url and model["weights_sha256_prefix"] == spec.weights_sha256_prefix
    assert tuple(model["depths"]) == spec.depths and model["attentions"] == 24
    assert model["fetched"] == str(path)
    assert [name for name in models if models[name]["fetched"]] == [spec.name]
