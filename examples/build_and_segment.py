"""The whole way in Python: weights to bundle with an engine and its audit, then a picture to a mask.

    python examples/build_and_segment.py out/example.bundle [--size 512]

uses random weights; give `checkpoint="F.pth"` instead of `seeded=True` for real ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from draw_scene import draw_scene

import twins_trt


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", type=Path, help="the folder to write")
    parser.add_argument("--size", type=int, default=512, help="height and width (default %(default)s)")
    arguments = parser.parse_args()

    # 1. A precision-complete graph, and one engine for two GPUs. No GPU is needed for it.
    report = twins_trt.build(
        "twins_svt-s_fpn",
        arguments.bundle,
        seeded=True,
        size=arguments.size,
        targets=["sm_86", "sm_89"],
        overwrite=True,
    )

    # 2. The audit of the engine. An attention that is not fused would have failed the build.
    for engine, audit in report.audits.items():
        assert audit.attentions == audit.expected_attentions
        print(f"{engine}: {audit.kernels} kernels, {audit.attentions} fused attentions")

    # 3. Run the bundle: any size in, a mask of that size out.
    picture = draw_scene(300, 400)
    with twins_trt.Segmenter(report.bundle) as segmenter:
        result = segmenter(picture)
    assert result.mask.shape == picture.shape[:2]
    largest = max(result.areas().items(), key=lambda item: item[1])
    print(f"{result.mask.shape} {result.mask.dtype}, {largest[1]:.0%} {largest[0]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
