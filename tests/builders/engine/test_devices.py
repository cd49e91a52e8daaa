"""The table of devices, against the bindings of each TensorRT and the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_tensorrt import fake_module, versions

from twins_trt.builders.engine.devices import (
    DEVICES,
    FIRST_INT8_OPSET,
    JETPACKS,
    KNOWN_TARGETS,
    RTX_TARGETS,
    abilities,
    find_device,
    has_fp8,
    nearest_target,
    nearest_title,
    read_target,
    read_targets,
)
from twins_trt.builders.engine.versions import Compiler, opset_ceiling, typing_of
from twins_trt.builders.plan.levels import FIRST_OPSET
from twins_trt.errors import UsageError
from twins_trt.verbs.build import FLAGS

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("version", [name for name in versions() if not name.startswith("rtx-")])
def test_a_version_that_is_not_installed_is_described_as_its_bindings_are(version: str) -> None:
    compiler = Compiler.of(fake_module(version), "tensorrt")
    assert (typing_of(version), opset_ceiling(version)) == (compiler.typing, compiler.opset)
    assert compiler.opset is not None


def test_the_targets_of_tensorrt_rtx_are_those_of_its_bindings() -> None:
    (version,) = (name for name in versions() if name.startswith("rtx-"))
    assert Compiler.of(fake_module(version), "tensorrt_rtx").targets == RTX_TARGETS


def test_int8_needs_the_opset_that_the_plan_says() -> None:
    assert FIRST_INT8_OPSET == FIRST_OPSET


def test_every_device_has_one_name_and_a_compute_capability_on_record() -> None:
    names = [device.name for device in DEVICES]
    assert len(set(names)) == len(names)
    assert {device.target for device in DEVICES} <= set(KNOWN_TARGETS) and set(RTX_TARGETS) <= set(KNOWN_TARGETS)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
    assert {"jetson-orin", "jetson-orin-nano", "jetson-thor", "rtx-3090", "rtx-4090", "rtx-5090"} <= set(names)
    assert {"l4", "a10", "a100", "h100", "h200", "t4", "rtx-a2000"} <= set(names)


def test_jetpacks_have_the_tensorrt_that_the_documentation_says() -> None:
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    table = [cells for cells in rows if cells and re.match(r"\d+\.\d", cells[0])]
    documented = {version: cells[4] for cells in table for version in re.findall(r"\d[\d.]*", cells[0])}
    assert len(documented) >= 7
    found = {each.version: each.tensorrt for device in DEVICES for each in device.jetpacks}
    assert set(documented) <= set(found) == set(JETPACKS)
    assert {version: found[version] for version in documented} == documented
    for version in set(found) - set(documented):  # a point release of one that is documented
        assert found[version] == documented[".".join(version.split(".")[:2])]


@pytest.mark.parametrize(
    ("text", "jetpack", "expected"),
    [
        ("jetson-orin", None, ("jetson-orin", "sm_87", "jetson-orin", "10.3", 20)),
        ("jetson-orin", "6.0", ("jetson-orin", "sm_87", "jetson-orin", "8.6", 17)),
        (" Jetson_Thor ", None, ("jetson-thor", "sm_110", "jetson-thor", "10.13", 24)),
        ("sm_87", None, ("sm_87", "sm_87", "", "10.3", 20)),
        ("SM110", "7.2.2", ("sm_110", "sm_110", "", "11.4", 25)),
        ("RTX-4090", None, ("rtx-4090", "sm_89", "rtx-4090", "", None)),
        ("86", None, ("sm_86", "sm_86", "", "", None)),
    ],
)
def test_a_target_is_a_name_or_a_compute_capability(
    text: str, jetpack: str | None, expected: tuple[str, str, str, str, int | None]
) -> None:
    target = read_target(text, jetpack)
    assert (target.text, target.target, target.name, target.tensorrt, target.opset) == expected


def test_names_and_numbers_may_be_mixed_and_count_once() -> None:
    targets = read_targets(("86", "sm_86", "jetson-orin", "sm_87", "rtx-3090"))
    assert [each.text for each in targets] == ["sm_86", "jetson-orin", "sm_87", "rtx-3090"]


@pytest.mark.parametrize(
    ("name", "near"),
    [("orin", "jetson-orin"), ("rtx4090", "rtx-4090"), ("5090", "rtx-5090"), ("thor", "jetson-thor"), ("H10", "h100")],
)
def test_a_wrong_name_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' is not a GPU target") as raised:
        find_device(name)
    assert raised.value.fix is not None and raised.value.fix.startswith("did you mean ")
    assert near in raised.value.fix.partition("?")[0].removeprefix("did you mean ").split(" or ")


@pytest.mark.parametrize(
    ("texts", "jetpack", "cause", "fix"),
    [
        (("jetson-orin",), "5.1", "there is no JetPack 5.1 on record", "6.2.1, 7.0, 7.1, 7.2, 7.2.2; for another"),
        (("jetson-thor",), "6.1", "jetson-thor has no JetPack 6.1", "has JetPack 7.0, 7.1, 7.2"),
        (("sm_87",), "7.0", "jetson-orin has no JetPack 7.0", "has JetPack 6.0, 6.1"),
        (("jetson-orin", "jetson-thor"), "6.1", "jetson-thor has no JetPack 6.1", "7.2"),
        (("sm_86", "rtx-4090"), "6.1", "jetpack applies only to a Jetson", 'targets="jetson-orin"'),
        ((), "6.1", "jetpack applies only to a Jetson", 'targets="jetson-orin"'),
    ],
)
def test_a_jetpack_that_no_target_has_is_refused(texts: tuple[str, ...], jetpack: str, cause: str, fix: str) -> None:
    with pytest.raises(UsageError, match=re.escape(cause)) as raised:
        read_targets(texts, jetpack)
    assert raised.value.fix is not None and fix in raised.value.fix


def test_one_jetpack_may_serve_two_devices() -> None:
    targets = read_targets(("jetson-orin", "jetson-thor", "sm_86"), "7.2")
    assert [each.tensorrt for each in targets] == ["10.16", "10.16", ""]


@pytest.mark.parametrize(
    ("target", "available", "nearest"),
    [
        ("sm_87", RTX_TARGETS, "sm_86"),  # both are Ampere
        ("sm_87", ("sm_80", "sm_89"), "sm_80"),  # the generation counts before the number
        ("sm_110", RTX_TARGETS, "sm_120"),  # both are Blackwell
        ("sm_100", RTX_TARGETS, "sm_120"),  # although sm_89 is the nearer number
        ("sm_90", RTX_TARGETS, "sm_89"),  # no Hopper: the nearest number
        ("sm_110", ("sm_75", "sm_89"), "sm_89"),
        ("sm_86", RTX_TARGETS, "sm_86"),
        ("sm_87", (), None),
    ],
)
def test_the_nearest_architecture(target: str, available: tuple[str, ...], nearest: str | None) -> None:
    assert nearest_target(target, available) == nearest


def test_the_title_of_an_audit_says_whether_it_is_the_nearest() -> None:
    assert nearest_title("sm_86", ["sm_87"]) == "sm_86, the nearest architecture, in place of sm_87"
    assert nearest_title("sm_86", ["sm_86"]) == "sm_86, the same architecture, in place of sm_86"


def test_what_a_graph_for_a_device_may_hold() -> None:
    orin = {each.jetpack: each for each in abilities(find_device("jetson-orin"))}
    assert (orin["6.0"].opset, orin["6.0"].typing, orin["6.0"].int8, orin["6.0"].fp8) == (17, "none", False, False)
    assert (orin["6.1"].opset, orin["6.1"].typing, orin["6.1"].int8, orin["6.1"].fp8) == (20, "flag", True, False)
    assert (orin["7.2.2"].opset, orin["7.2.2"].typing) == (25, "always")
    assert all(each.int8 and each.fp8 for each in abilities(find_device("jetson-thor")))
    (ampere,), (ada,), (hopper,) = (abilities(find_device(name)) for name in ("rtx-3090", "rtx-4090", "h100"))
    assert (ampere.typing, ampere.int8, ampere.fp8, ampere.opset) == ("always", True, False, None)
    assert (ada.typing, ada.fp8) == ("always", True)
    assert (hopper.typing, hopper.fp8) == ("", True)
    assert [has_fp8(target) for target in ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90")] == [False] * 3 + [True] * 2


def test_help_says_the_jetpacks_that_are_assumed() -> None:
    flag = FLAGS.of("jetpack")
    assert flag is not None
    for device in DEVICES:
        if device.is_jetson:
            family = device.name.split("-")[1].capitalize()
            assert f"{device.default} or later for {family}" in flag.help
            assert device.jetpack(None).version == device.default
