"""Configurations as text: what is understood, what is named as not understood, and that no text does harm."""

from __future__ import annotations

import time

import pytest

from twins_trt.models.config_text import DEEPEST, LONGEST, MOST_VALUES, check_config, parse_config

PRETTY = """crop_size = (
    512,
    512,
)
data_preprocessor = dict(
    bgr_to_rgb=True,
    mean=[
        123.675,
        116.28,
        103.53,
    ],
    type='SegDataPreProcessor')
model = dict(
    pretrained=None,
    decode_head=dict(loss_decode=[dict(loss_weight=-1.0, type='A'), {'class': 3, 7: None}], num_classes=150))
work_dir = './work_dirs/x'
"""

OLD = """/repo/mmseg/configs/_base_/models/fpn.py
# model settings
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='ResNet', depth=50, norm_cfg=norm_cfg),
    decode_head=dict(num_classes=19, norm_cfg=norm_cfg))

/repo/mmseg/configs/twins/mine.py
_base_ = [
    '../_base_/models/fpn.py', '../_base_/datasets/ade20k.py'
]
model = dict(
    backbone=dict(_delete_=True, type='SVT', depths=[2, 2, 10, 4]),
    decode_head=dict(num_classes=150, norm_cfg={{_base_.norm_cfg}}))
"""


def test_pretty_text_gives_its_values() -> None:
    parsed = parse_config(PRETTY)
    assert parsed.values == {
        "crop_size": [512, 512],
        "data_preprocessor": {"bgr_to_rgb": True, "mean": [123.675, 116.28, 103.53], "type": "SegDataPreProcessor"},
        "model": {
            "pretrained": None,
            "decode_head": {
                "loss_decode": [{"loss_weight": -1.0, "type": "A"}, {"class": 3, "7": None}],
                "num_classes": 150,
            },
        },
        "work_dir": "./work_dirs/x",
    }
    assert (parsed.missing_bases, parsed.unread) == ((), ())


def test_files_behind_their_paths_are_merged_and_a_missing_one_is_named() -> None:
    parsed = parse_config(OLD)
    norm = {"type": "SyncBN", "requires_grad": True}
    assert parsed.values["model"] == {
        "type": "EncoderDecoder",
        "backbone": {"type": "SVT", "depths": [2, 2, 10, 4]},
        "decode_head": {"num_classes": 150, "norm_cfg": norm},
    }
    assert parsed.missing_bases == ("../_base_/datasets/ade20k.py",)
    assert parsed.unread == ()


def test_the_name_of_a_file_is_a_file_that_is_not_there() -> None:
    parsed = parse_config("twins_svt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py\n")
    assert parsed.missing_bases == ("twins_svt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py",)
    assert (parsed.values, parsed.unread) == ({}, ())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n = 3\na = n * 2 + 1 - 0.5", 6.5),
        ("a = [1, 2] + [3]", [1, 2, 3]),
        ("a = [0.5] * 3", [0.5, 0.5, 0.5]),
        ("a = 'data/' + 'ade'", "data/ade"),
        ("a = 'data/' 'ade'", "data/ade"),
        ("b = dict(c=[1, dict(d=5)])\na = b.c[1]['d']", 5),
        ("b = dict(c=1)\na = dict(**b, e=2)", {"c": 1, "e": 2}),
        ("b = dict(c=1)\na = {**b, 'c': 3}", {"c": 3}),
        ("a = tuple([1, 2])", [1, 2]),
        ("a = -2", -2),
        ("a = 1\na = 2", 2),
        ("a = r'\\d'", "\\d"),
        ("a = '\\d'", "\\d"),
    ],
)
def test_expressions_of_literals(text: str, value: object) -> None:
    parsed = parse_config(text)
    assert parsed.values["a"] == value and type(parsed.values["a"]) is type(value)
    assert parsed.unread == ()


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("a = open('x')", ("a",)),
        ("a = dict(b=dict(c=print(1), d=2))", ("a.b.c",)),
        ("a = [dict(b=f())]", ("a.0.b",)),
        ("a = unknown", ("a",)),
        ("a = _base_.unknown", ("a",)),
        ("import os", ("line 1",)),
        ("\nfor i in [1]:\n    a = i", ("line 2",)),
        ("a = [i for i in [1]]", ("a",)),
        ("a = lambda: 1", ("a",)),
        ("a = 2 ** 9999999", ("a",)),
        ("a = 9999999999999 * 2", ("a",)),
        ("a = [1] * 1001", ("a",)),
        ("a = 'x' * 3", ("a",)),
        ("a = 1 / 0", ("a",)),
        ("a = 1j", ("a",)),
        ("a = b'x'", ("a",)),
        (f"a = {1 << 64}", ("a",)),
        ("a = (", ("text that is no Python, line 1",)),
    ],
)
def test_anything_else_is_named_by_its_place(text: str, unread: tuple[str, ...]) -> None:
    assert parse_config(text).unread == unread


def test_what_is_understood_beside_it_is_kept() -> None:
    parsed = parse_config("import os\na = dict(b=os.path.join('x'), c=3)\nd = 4")
    assert parsed.values == {"a": {"c": 3}, "d": 4}
    assert parsed.unread == ("line 1", "a.b")


def test_nothing_is_executed(tmp_path: object) -> None:
    text = f"a = __import__('pathlib').Path({str(tmp_path)!r} + '/ran').touch()\n[__import__('os').mkdir('/x')]"
    assert parse_config(text).values == {}
    assert list(tmp_path.iterdir()) == []  # type: ignore[attr-defined]


DOUBLED = "a = dict(x=a, y=a)\n" * 60
HOSTILE = {
    "signs": "a = " + "-" * 200_000 + "1",
    "brackets": "a = " + "[" * 5000 + "]" * 5000,
    "less_brackets": "a = " + "[" * (DEEPEST + 5) + "]" * (DEEPEST + 5),
    "sum": "a = " + "+".join(["1"] * 200_000),
    "attributes": "a = b" + ".c" * 200_000,
    "lambdas": "a = " + "lambda:" * 50_000 + "1",
    "nul": "a = '\0'",
    "surrogate": "a = '\ud800'",
    "digits": "a = " + "9" * 100_000,
    "hexadecimal": "a = 0x" + "f" * 100_000,
    "names_of_names": "a = [1]\n" + "a = [a]\n" * 5000,
    "doubled": "a = [1]\n" + DOUBLED,
    "doubled_and_merged": "x.py\na = dict(x=1)\n" + DOUBLED + "y.py\na = dict(x=1)\n" + DOUBLED,
    "deep_and_merged": ("x.py\na = dict(x=1)\n" + "a = dict(x=a)\n" * 5000) * 2,
    "unpacked": f"a = dict({','.join(f'k{i}=1' for i in range(20_000))})\nb = dict({'**a,' * 40_000})",
    "too_long": "a = 1\n" * LONGEST,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_left_out_in_time(name: str) -> None:
    begun = time.process_time()
    parsed = parse_config(HOSTILE[name])
    assert time.process_time() - begun < 10
    assert parsed.unread
    assert len(repr(parsed.values)) < 10 * MOST_VALUES


@pytest.mark.parametrize("content", [None, 3, b"a = 1", ["a = 1"]])
def test_what_is_no_text_is_named(content: object) -> None:
    assert parse_config(content).unread == (f"a configuration of type {type(content).__name__}",)


def test_a_mapping_is_taken_unless_it_is_too_large() -> None:
    assert check_config({"a": {"b": [1, 2]}}).values == {"a": {"b": [1, 2]}}
    deep: dict[str, object] = {}
    for _ in range(DEEPEST + 1):
        deep = {"a": deep}
    for content in (deep, {"a": [0] * MOST_VALUES}, {"a": 1 << 64}):
        parsed = check_config(content)
        assert (parsed.values, parsed.unread) == ({}, ("a configuration of too many values",))
