"""Finds in the facts what is broken or likely to go wrong, each with the command that mends it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from twins_trt.diagnosis.facts import Facts, version_key
from twins_trt.spelling import spelled

# Bytes. A bundle of the largest model with two engines needs half of this, and a second copy while it is replaced.
LOW_DISK = 2_000_000_000
OLDEST_CUDA = 12
DRIVER_OF_CUDA = {12: "525", 13: "580"}  # the first driver branch for this CUDA, from CUDA's release notes

# CUresult in cuda.h.
NO_DEVICE, DRIVER_MISMATCH, COMPAT_NOT_SUPPORTED = 100, 803, 804


@dataclass(frozen=True)
class Finding:
    """Something that is wrong. kind: its name, for programs. cause: in words. mend: a command, or what to change."""

    kind: str
    cause: str
    mend: str


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Everything that is wrong, in the order of `RULES`: from the system up to single packages."""
    return tuple(finding for rule in RULES for finding in rule(facts))


def _jetpack(facts: Facts) -> Iterator[Finding]:
    if facts.jetson and facts.jetson.jetpack in ("4", "5"):
        cause = f"JetPack {facts.jetson.jetpack} is too old: its Python and its TensorRT are"
        yield Finding("jetpack-old", cause, "flash JetPack 6 or 7 with NVIDIA's SDK Manager")


def _driver(facts: Facts) -> Iterator[Finding]:
    if facts.driver is None or facts.system is None:
        return
    system, jetson = facts.system, facts.jetson is not None
    if facts.driver.cuda is None:
        if system.in_container and (jetson or system.gpu_on_bus):
            flag = "--runtime nvidia" if jetson else "--gpus all"
            cause = "the host's CUDA driver is not in this container"
            yield Finding("driver-not-in-container", cause, f"docker run {flag} ..., with the NVIDIA Container Toolkit")
        elif jetson:
            yield Finding(
                "driver-missing", "L4T's CUDA driver is missing", "sudo apt install --reinstall nvidia-l4t-cuda"
            )
        elif system.kernel_driver:
            branch = system.kernel_driver.partition(".")[0]
            cause = f"the kernel has NVIDIA's driver {system.kernel_driver}, but libcuda.so.1 does not load"
            yield Finding("driver-half", cause, f"sudo apt install libnvidia-compute-{branch}")
        elif system.gpu_on_bus:
            cause = "there is an NVIDIA GPU, but no driver for it"
            yield Finding("driver-missing", cause, "sudo ubuntu-drivers install, then reboot")
    elif facts.driver.status == DRIVER_MISMATCH:
        cause = "libcuda.so.1 and the kernel's NVIDIA module are of different versions (after an update)"
        yield Finding("driver-mismatch", cause, "sudo reboot; in a container: update the NVIDIA Container Toolkit")
    elif facts.driver.status == COMPAT_NOT_SUPPORTED:
        cause = "CUDA's compatibility library was loaded, which this GPU does not support"
        yield Finding("driver-compat", cause, "take cuda/compat out of LD_LIBRARY_PATH, or update the driver")
    elif facts.driver.status == NO_DEVICE and system.visible_devices is not None:
        cause = f"CUDA_VISIBLE_DEVICES={system.visible_devices} hides every GPU"
        yield Finding("gpu-hidden", cause, "unset CUDA_VISIBLE_DEVICES")
    elif facts.driver.status == NO_DEVICE and not system.blocked:
        yield Finding("gpu-missing", "a CUDA driver is there, but no GPU that it serves", "nvidia-smi says more")
    elif facts.driver.status not in (0, NO_DEVICE):
        cause = f"the CUDA driver does not start (cuInit returns {facts.driver.status})"
        yield Finding("driver-broken", cause, "sudo reboot; if that does not help, install the driver again")


def _permissions(facts: Facts) -> Iterator[Finding]:
    if facts.system is None or not facts.system.blocked:
        return
    cause = f"this user may not use {', '.join(facts.system.blocked)}"
    if facts.system.in_container:
        mend = 'docker run --group-add video --group-add "$(getent group render | cut -d: -f3)" ...'
    else:
        mend = 'sudo usermod -aG video,render "$USER", then log in again'
    yield Finding("device-permission", cause, mend)


def _cuda_version(facts: Facts) -> Iterator[Finding]:
    if facts.driver is None or facts.driver.cuda is None:
        return
    served = facts.driver.cuda
    major = version_key(served)[0]
    if major < OLDEST_CUDA:
        cause = f"the driver serves CUDA {served}; TensorRT and TensorRT-RTX need {OLDEST_CUDA} or later"
        yield Finding("driver-old", cause, f"update the driver to {DRIVER_OF_CUDA[OLDEST_CUDA]} or later")
    binding = facts.package("cuda.bindings.driver")
    if binding is not None and binding.version and (wanted := version_key(binding.version)[0]) > major:
        cause = f"cuda-bindings {binding.version} is for CUDA {wanted}, the driver serves {served}"
        yield Finding("binding-cuda", cause, f'pip install "cuda-bindings>={major},<{major + 1}"')
    rtx = facts.package("tensorrt_rtx")
    if (
        facts.jetson is None
        and rtx is not None
        and rtx.state == "ok"
        and (wanted := _cuda_of(rtx.package.distribution)) > major
    ):
        cause = f"{rtx.package.distribution} is for CUDA {wanted}, the driver serves {served}: its engines do not run"
        yield Finding("rtx-cuda", cause, f"update the driver to {DRIVER_OF_CUDA[wanted]} or later")


def _tensorrt(facts: Facts) -> Iterator[Finding]:
    tensorrt, system = facts.package("tensorrt"), facts.system
    if tensorrt is None or system is None:
        return
    jetson = facts.jetson is not None
    if tensorrt.state != "ok" and system.system_tensorrt and facts.python and facts.python.isolated_venv:
        cause = "the system's tensorrt is hidden from this virtual environment"
        mend = "/usr/bin/python3 -m venv --system-site-packages --clear .venv, then install twins-trt into it again"
        yield Finding("venv-isolated", cause, mend)
    elif jetson and tensorrt.location and "dist-packages" not in tensorrt.location:
        cause = "tensorrt was installed by pip: it is not built for Jetson and hides JetPack's"
        yield Finding("tensorrt-from-pip", cause, "pip list | grep -io '^tensorrt[^ ]*' | xargs pip uninstall -y")
    elif jetson and tensorrt.state == "missing":
        mend = "sudo apt install python3-libnvinfer"
        yield Finding("tensorrt-missing", "TensorRT's Python bindings, which come with JetPack, are missing", mend)
    elif tensorrt.state == "broken" and (wanted := re.search(r"libnvinfer\w*\.so\.(\d+)", tensorrt.error or "")):
        has = f"the system's is {system.nvinfer}" if system.nvinfer else "no such package is installed"
        cause = f"tensorrt's bindings want the library of TensorRT {wanted[1]}; {has}"
        apt = f"sudo apt install --reinstall libnvinfer{wanted[1]} python3-libnvinfer"
        yield Finding("tensorrt-library", cause, apt if jetson else "pip install --force-reinstall tensorrt")


def _rtx(facts: Facts) -> Iterator[Finding]:
    rtx = facts.package("tensorrt_rtx")
    if rtx is None or rtx.state != "ok":
        return
    if facts.jetson is not None:
        cause = "TensorRT-RTX is not for Jetson"
        yield Finding(
            "rtx-on-jetson", cause, f"pip uninstall tensorrt-rtx-cu13; build with {spelled('flavour', 'tensorrt')}"
        )
    elif facts.driver is not None and facts.driver.cuda is None:
        cause = "TensorRT-RTX builds engines here but cannot run them: there is no CUDA driver"
        yield Finding("rtx-without-driver", cause, "nothing, unless there is a GPU: bundles run on the CPU")
    elif facts.gpu is not None and rtx.targets and facts.gpu.target not in rtx.targets:
        cause = f"TensorRT-RTX does not build for this GPU ({facts.gpu.target}), only for {', '.join(rtx.targets)}"
        yield Finding(
            "rtx-target", cause, f'pip install "twins-trt[tensorrt]"; build with {spelled("flavour", "tensorrt")}'
        )


def _places(facts: Facts) -> Iterator[Finding]:
    elsewhere = {
        "weights": "export TWINS_TRT_CACHE=FOLDER",
        "temporary files": "export TMPDIR=FOLDER",
        "working folder": "cd FOLDER",
    }
    for place in facts.places or ():
        if not place.writable:
            cause = f"{place.path} cannot be written ({place.use})"
            yield Finding("read-only", cause, f"{elsewhere[place.use]}, one that can be written")
        elif place.free < LOW_DISK:
            cause = f"only {place.free / 1e9:.1f} GB free in {place.path} ({place.use})"
            yield Finding("disk-low", cause, f"free some, or {elsewhere[place.use]}")


def _cuda_of(distribution: str) -> int:
    """The CUDA version in a name, such as 13 in `tensorrt-rtx-cu13`; 0 if there is none."""
    found = re.search(r"-cu(\d+)$", distribution)
    return int(found[1]) if found else 0


RULES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _jetpack,
    _driver,
    _permissions,
    _cuda_version,
    _tensorrt,
    _rtx,
    _places,
)
