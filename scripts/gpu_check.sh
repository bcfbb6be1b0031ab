#!/bin/sh
# What only a GPU can show, in one file: the tests that need one, then the speed of three pairs.
#   PYTHON=.venv/bin/python scripts/gpu_check.sh [FILE]
# A few minutes on a data-centre GPU; needs no data set. The status is that of the first failure.
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python}
file=${1:-gpu_check.txt}
status=0

section() {
    printf '\n## %s\n\n' "$*"
    "$@" || status=$?
}

report() {
    "$python" - <<'END'
import platform
import sys

import torch

import eakd

if not torch.cuda.is_available():
    sys.exit("error: device: found no CUDA device here, allowed is a machine with one")
device = torch.cuda.get_device_properties(0)
print(f"eakd {eakd.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
print(f"{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
END
}

everything() {
    report || return 2
    section "$python" -m pytest -q -m gpu
    for pair in "resnet20 resnet8" "resnet32x4 resnet8x4" "resnet50 mobilenetv2"; do
        # With and without a table of the teacher's answers, beside a plain loop and the limit.
        section "$python" scripts/benchmark.py device=cuda table=true \
            "teacher=${pair% *}" "student=${pair#* }"
    done
    return "$status"
}

{ everything 2>&1; echo "$?" >"$file.status"; } | tee "$file"
status=$(cat "$file.status")
rm -f "$file.status"
exit "$status"
