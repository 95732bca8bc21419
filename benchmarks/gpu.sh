#!/bin/sh
# What a card does with the models, in under eight minutes: the modulation layer against the bandwidth limit and the
# forward (ResNet-50, SegFormer-B0 to B5, Llama of 1B and 8B; random weights), then engines and the way from JPEG to
# answer, modulated over plain, and memory. Usage: benchmarks/gpu.sh [--tiny], which tries it on small shapes, any CPU.
set -e
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-$(test -x .venv/bin/python && echo .venv/bin/python || echo python3)}"
"$PYTHON" -c 'import torch; print("torch", torch.__version__, "on", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")'
test "$1" = --tiny || timeout 240 "$PYTHON" -m benchmarks.layer_cost_cuda
timeout 230 "$PYTHON" -m benchmarks.engines_gpu ${1:+--tiny --rounds 2}
