"""The GPU of this machine, as the CUDA driver names it."""

from __future__ import annotations

import pytest
from fake_driver import install_driver

from twins_trt.device import Device, current_device, pci_bus_id

ORIN = Device("Orin", "sm_87", integrated=True)


@pytest.mark.parametrize("fails_at", [None, "cuInit", "cuDeviceGetAttribute"])
def test_the_driver_names_the_device(fails_at: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(monkeypatch, ORIN, fails_at=fails_at)
    assert current_device() == (ORIN if fails_at is None else None)
    assert pci_bus_id() == (None if fails_at == "cuInit" else "0000:65:00.0")
    install_driver(monkeypatch, None)
    assert current_device() is None
    assert pci_bus_id() is None
