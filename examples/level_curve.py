"""Draws what a model's levels deliver: agreement over the noise, as solved and on inputs that were not used for it.

The model is the final layer of the shipped ResNet-18, with the features of 4,000 held-back CIFAR-10 pictures as inputs.

Usage: python examples/level_curve.py [OUT.png]
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from safetensors.torch import load_file
from torch import nn

from policies import modulate

SHIPPED = Path(__file__).parents[1] / "models" / "resnet18-cifar10"
weights = load_file(SHIPPED / "model.safetensors")
model = nn.Linear(*reversed(weights["fc.weight"].shape))
model.load_state_dict({"weight": weights["fc.weight"].float(), "bias": weights["fc.bias"].float()})
features = load_file(SHIPPED / "calibration.safetensors")["features"].float()
holdout, others = features[1000:], features[:1000]

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for noise, colour in (("ladder", "tab:blue"), ("independent", "tab:orange")):
    sold = modulate(model, holdout, secret=b"the secret of this picture", noise=noise)
    curve, clean = sold.curve(), model(others).argmax(dim=1)
    axes.plot(curve.scales[1:], curve.agreement[1:], color=colour, label=f"{noise} noise, as solved")
    for level in (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5):
        with sold.at(level):
            delivered = (model(others).argmax(dim=1) == clean).float().mean().item()
        scale = next(s for s, a in zip(curve.scales, curve.agreement, strict=True) if a <= level)
        axes.plot(scale, delivered, "o", color=colour)
        print(f"{noise}: level {level} delivers {delivered:.3f} on {len(others)} other pictures")
    sold.remove()
axes.set(
    xscale="log", xlabel="standard deviation of the noise, in logits", ylabel="answers kept", title="resnet18-cifar10"
)
axes.legend()
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "level_curve.png", dpi=120)
