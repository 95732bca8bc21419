"""What the modulation head costs on a GPU, for models of ResNet's, SegFormer's and Llama's shapes with random weights.

The share of the forward pass with every item below 1.0, against what moving its bytes takes at the memory bandwidth
that a large copy shows; and the same captured in a CUDA graph.

Usage: python -m benchmarks.layer_cost_cuda
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, SegformerConfig, SegformerForSemanticSegmentation

from policies import Calibration, Head, Setting
from policies.field.variance import POSITIONS
from policies.head.attachment import layer_shape

SECRET = b"benchmarks/layer_cost_cuda.py"
LEVELS = (0.9, 0.7, 0.8, 0.6, 0.95, 0.85, 0.75, 0.65)
# Width of the stages, their depths, and of the decoder: Xie et al., NeurIPS 2021, table 6.
SEGFORMERS = {
    "SegFormer-B0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "SegFormer-B1": ((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "SegFormer-B2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "SegFormer-B3": ((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "SegFormer-B4": ((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "SegFormer-B5": ((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
LLAMAS = {
    "Llama 1B": LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    ),
    "Llama 8B": LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model without its final layer, that layer, an input, and the field's D and block."""

    name: str
    run: Callable[[Tensor], Tensor]
    final: nn.Module
    inputs: Tensor
    depth: int
    block: int = 1


def cases(device: torch.device, batch: int = 8) -> Iterator[Case]:
    """The shapes, one at a time: the 8B one takes 16 GB."""
    half = torch.bfloat16
    resnet = _made(lambda: torchvision.models.resnet50(), device, half)
    final, resnet.fc = resnet.fc, nn.Identity()
    yield Case("ResNet-50", resnet, final, torch.randn(batch, 3, 224, 224, device=device, dtype=half), 512)
    for name, (widths, depths, decoder) in SEGFORMERS.items():
        config = SegformerConfig(
            hidden_sizes=list(widths), depths=list(depths), decoder_hidden_size=decoder, num_labels=150
        )
        yield segformer_case(name, config, torch.randn(batch, 3, 512, 512, device=device, dtype=half))
    for name, llama in LLAMAS.items():
        yield llama_case(name, llama, torch.ones(batch, 1, dtype=torch.int64, device=device))


def segformer_case(name: str, config: SegformerConfig, inputs: Tensor) -> Case:
    """Pictures [B, 3, h, w] to their maps."""
    model = _made(lambda: SegformerForSemanticSegmentation(config), inputs.device, inputs.dtype)
    head = model.decode_head
    final, head.classifier = head.classifier, nn.Identity()
    return Case(name, lambda pixels: model(pixels).logits, final, inputs, 128, 4)


def llama_case(name: str, config: LlamaConfig, inputs: Tensor, dtype: torch.dtype = torch.bfloat16) -> Case:
    """A decode step of [B, 1] tokens, its reading of the cache left out, which would only add to the forward."""
    model = _made(lambda: LlamaForCausalLM(config), inputs.device, dtype)
    body = model.model
    return Case(name, lambda ids: body(ids, use_cache=False).last_hidden_state[:, -1], model.lm_head, inputs, 64)


def _made(make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return make().requires_grad_(False).eval()
        finally:
            torch.set_default_dtype(before)


def seconds(run: Callable[[], object], device: torch.device, repeats: int = 30) -> float:
    """Median time of a call, by events on a GPU."""
    for _ in range(3):
        run()
    found = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1e3)
        else:
            begun = time.thread_time()
            run()
            found.append(time.thread_time() - begun)
    return statistics.median(found)


def bandwidth(device: torch.device, size: int = 2**28) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.empty(size, device=device)
    target = torch.empty_like(source)
    return 2 * size * 4 / seconds(lambda: target.copy_(source), device)


def bytes_moved(case: Case, features: Tensor, logits: Tensor, levels: int) -> int:
    """The least that modulation reads and writes: features, the field, a matrix a level, logits in and out."""
    width, classes = layer_shape(case.final)
    matrices = 4 * levels * case.depth * classes
    return sum(
        [
            features.numel() * features.element_size(),
            4 * width * case.depth,
            matrices,
            2 * logits.numel() * logits.element_size(),
        ]
    )


@torch.inference_mode()
def measure(case: Case, per_second: float, repeats: int = 30) -> Iterator[str]:
    """Rows of a table: levels, time, limit, share of the forward, bytes a level."""
    device, batch = case.inputs.device, len(case.inputs)
    curve = ((0, 1.0), (POSITIONS, 0.1))
    calibration = Calibration("cost", 10.0, case.depth, curve, (1.0,), (1.0,), 1000, None, case.block)
    width, classes = layer_shape(case.final)
    features = case.run(case.inputs)
    logits: Tensor = case.final(features)
    whole = seconds(lambda: case.final(case.run(case.inputs)), device, repeats)
    for levels in (1, 2, 3, 8):
        # A head of its own for each: cells are laid out once for the most levels that were in use.
        head = Head(calibration, SECRET, features=width, classes=classes, slots=batch, device=device)
        head.write_all([Setting(LEVELS[i % levels]) for i in range(batch)])
        step = partial(head, features, logits, head.slots_of(batch))
        took = seconds(step, device, repeats)
        limit = bytes_moved(case, features, logits, levels) / per_second
        line = f"| {case.name} | {levels} | {took * 1e3:.3f} | {limit * 1e3:.3f} | {took / whole:.2%} |"
        yield f"{line} {graph_ms(step, device)} | {whole * 1e3:.2f} | {4 * case.depth * classes:,} |"


def graph_ms(step: Callable[[], object], device: torch.device) -> str:
    """The same, replayed from a CUDA graph; without a GPU as it is."""
    if device.type != "cuda":
        return f"{seconds(step, device) * 1e3:.3f}"
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return f"{seconds(graph.replay, device) * 1e3:.3f}"


def measure_cuda() -> None:
    """Print a table, or that there is no GPU."""
    if not torch.cuda.is_available():
        print("\nCUDA: skipped, no GPU at hand.")
        return
    device = torch.device("cuda")
    per_second = bandwidth(device)
    print(f"\n{torch.cuda.get_device_name(device)}, {per_second / 1e9:.0f} GB/s; batch of 8, bfloat16\n")
    print("| model | levels | head, ms | limit, ms | of the forward | as a graph, ms | forward, ms | bytes a level |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases(device):
        for row in measure(case, per_second):
            print(row, flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    measure_cuda()
