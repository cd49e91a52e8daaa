"""An interpreter that has torch, Triton, numpy and pytest with what they need, and nothing else: no pip, no project."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "numpy", "pytest")


def make(folder: Path, packages: tuple[str, ...] = PACKAGES) -> Path:
    """A virtual environment in `folder` whose packages are links to this interpreter's. Returns its interpreter."""
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in needed_by(packages):
        # the folders and modules of a package, and its metadata
        for top in sorted({file.parts[0] for file in metadata.files(package) or ()} - {"..", "__pycache__"}):
            place, link = Path(str(metadata.distribution(package).locate_file(top))), site / top
            if place.exists() and not link.is_symlink():
                link.symlink_to(place)
    return folder / "bin" / "python"


def needed_by(packages: tuple[str, ...]) -> set[str]:
    """These packages and what they require, of what is installed here."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    names = list(packages)
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        wanted = (Requirement(each) for each in requires)
        names += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def copy_tree(folder: Path) -> Path:
    """The repository's files, also those that are not committed yet, in `folder`; without its history."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


if __name__ == "__main__":  # python tests/benchmarks/bare_python.py DIR: to try something there by hand
    target = Path(sys.argv[1]).resolve()
    copy_tree(target / "tree")
    print(make(target / "python"))
