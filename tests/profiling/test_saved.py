"""A profile in a bundle is listed, verified and replaced, and only in the bundle that it measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from results_of import measurement, profile
from tiny_graphs import MakeBundle

from twins_trt.errors import ProfileError
from twins_trt.files import sha256_of
from twins_trt.profiling.results import PROFILE, Profile, read_profile
from twins_trt.profiling.saved import save_profile
from twins_trt.runtime import Bundle, Figure, open_bundle
from twins_trt.runtime.bundle import amend_bundle


def profile_of(bundle: Bundle, milliseconds: float) -> Profile:
    found = measurement("x", [milliseconds] * 4)
    return profile(replace(found, subject=replace(found.subject, graph_sha256=sha256_of(bundle.graph))))


def test_it_travels_with_the_bundle_and_can_be_replaced(make_bundle: MakeBundle) -> None:
    elsewhere = Figure("end to end, median", 3.0, "ms", "an Orin, tensorrt", False)
    bundle = make_bundle(figures=(elsewhere,))
    assert PROFILE not in bundle.files
    for milliseconds in (20.0, 10.0):
        save_profile(open_bundle(bundle.path), found := profile_of(bundle, milliseconds))
        again = open_bundle(bundle.path)  # verified
        assert read_profile(again.file(PROFILE)) == found
        where = "a test, onnxruntime"
        assert again.manifest.figures == (
            elsewhere,
            Figure("end to end, median", milliseconds, "ms", where, False),
            Figure("engine, median", milliseconds - 3, "ms", where, False),
        )
    assert set(again.files) == {"graph.onnx", "profile.json"}


def test_what_was_added_since_the_bundle_was_opened_stays(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    amend_bundle(bundle, {"gate.json": b"{}"}, change=lambda manifest: replace(manifest, gate="passed"))
    saved = save_profile(bundle, profile_of(open_bundle(bundle.path), 20.0))
    assert saved == open_bundle(bundle.path)
    assert saved.manifest.gate == "passed" and len(saved.manifest.figures) == 2
    assert set(saved.files) == {"gate.json", "graph.onnx", "profile.json"}


def test_another_bundles_profile_is_refused(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    with pytest.raises(ProfileError, match="was not measured in this profile"):
        save_profile(bundle, profile(measurement("x")))
    assert open_bundle(bundle.path).files == ("graph.onnx",)
