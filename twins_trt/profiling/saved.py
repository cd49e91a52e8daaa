"""Saves a profile in the bundle that it measured: `profile.json` beside the graph, the medians in the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from twins_trt.errors import ProfileError
from twins_trt.profiling.results import PROFILE, Measurement, Profile, dump_profile
from twins_trt.runtime.bundle import Bundle, amend_bundle
from twins_trt.runtime.manifest import Figure, Manifest


def save_profile(bundle: Bundle, profile: Profile) -> Bundle:
    """Writes the whole profile into the bundle as `profile.json`, replacing an earlier one. Returns the new bundle.

    Figures in the manifest that were measured on the same device are replaced. Raises ProfileError where the profile
    does not measure this bundle's graph, BundleError as `amend_bundle` does.
    """
    digest = bundle.manifest.graph_sha256
    measured = [m for m in profile.measurements if m.subject.kind == "bundle" and m.subject.graph_sha256 == digest]
    if not measured:
        raise ProfileError(f"{bundle.path} was not measured in this profile", f"twins-trt profile {bundle.path} --save")
    new = [figure for measurement in measured for figure in _figures(measurement)]
    names = {(figure.name, figure.measured_on) for figure in new}

    def with_figures(manifest: Manifest) -> Manifest:
        kept = [figure for figure in manifest.figures if (figure.name, figure.measured_on) not in names]
        return replace(manifest, figures=(*kept, *new))

    return amend_bundle(bundle, {PROFILE: dump_profile(profile)}, change=with_figures)


def _figures(measurement: Measurement) -> Iterator[Figure]:
    subject = measurement.subject
    threads = "" if subject.threads is None else f", {subject.threads} threads"
    where = f"{subject.measured_on}, {subject.engine}{threads}"
    for name, value in (("end to end", measurement.end_to_end.p50), ("engine", measurement.stages["engine"].p50)):
        yield Figure(f"{name}, median", value, "ms", where, subject.simulated)
