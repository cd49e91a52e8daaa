#!/usr/bin/env bash
# From nothing to engines and a segmented picture, without a GPU: sets up .venv, builds twins_svt-s_fpn in FP16 for
# SM86, SM89 and SM120, prints the audit, and segments a picture on the CPU.
#
#   examples/quickstart.sh                        random weights: real engines, a meaningless mask
#   examples/quickstart.sh --fetch                the published ADE20K weights, downloaded once
#   examples/quickstart.sh --checkpoint F.pth     your own, in mmsegmentation's format; [--size HxW]
#   examples/quickstart.sh --image photo.jpg      your picture instead of a drawn one
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=twins_svt-s_fpn weights=(--seeded) size=512x512 image=out/scene.png fetch=

while [ $# -gt 0 ]; do
    case $1 in
        --fetch) fetch=1 weights=(); shift ;;
        --checkpoint) weights=(--checkpoint "$(realpath "${2:?--checkpoint needs a file}")"); shift 2 ;;
        --size) size=${2:?--size needs HEIGHTxWIDTH}; shift 2 ;;
        --image) image=$(realpath "${2:?--image needs a file}"); shift 2 ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$here/quickstart.sh"; exit ;;
        *) echo "unknown option $1 (see --help)" >&2; exit 2 ;;
    esac
done

cd "$here/.."
venv=$(tools/venv.sh)
twins=$venv/bin/twins-trt
mkdir -p out
if [ -n "$fetch" ]; then "$twins" fetch "$model"; fi
if [ "$image" = out/scene.png ]; then "$venv/bin/python" examples/draw_scene.py "$image" --size "$size"; fi

"$twins" build "$model" "${weights[@]}" --size "$size" --precision fp16 --target sm_86,sm_89,sm_120 \
    --out "out/$model.bundle" --overwrite
"$twins" predict "out/$model.bundle" "$image" --out out/masks
echo
echo "bundle:  out/$model.bundle   (twins-trt inspect out/$model.bundle)"
echo "overlay: out/masks/$(basename "${image%.*}")_overlay.png"
