#!/usr/bin/env bash
# Shows how the installed Python files of detectron2 differ from its official repository.
#
#   git clone https://github.com/facebookresearch/detectron2
#   tools/compare_detectron2.sh detectron2 [COMMIT] [PYTHON]
#
# COMMIT is a59f0563 unless given, the one that `make setup` installs; PYTHON .venv/bin/python.
# Every difference is printed, of files in both as a diff; nothing printed means none. The exit
# code is diff's: 0 for none, 1 for some.
set -euo pipefail
clone=${1:?usage: tools/compare_detectron2.sh CLONE [COMMIT] [PYTHON]}
commit=${2:-a59f0563}
python=${3:-$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python}

installed=$("$python" -c 'from importlib.util import find_spec; print(*find_spec("detectron2").submodule_search_locations)')
official=$(mktemp -d)
trap 'rm -rf "$official"' EXIT
git -C "$clone" archive "$commit" | tar -x -C "$official"
# Where its setup.py puts these when it builds a wheel.
cp -r "$official/configs" "$official/detectron2/model_zoo/configs"
cp -r "$official/projects/PointRend/point_rend" "$official/projects/DeepLab/deeplab" \
    "$official/projects/Panoptic-DeepLab/panoptic_deeplab" "$official/detectron2/projects/"

diff --recursive --unified=0 --exclude=__pycache__ --exclude='README*' --exclude=csrc \
    --exclude='_C.*' "$official/detectron2" "$installed"
