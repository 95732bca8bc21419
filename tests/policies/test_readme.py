"""The README's lines for researchers, run as they stand, one block after the other."""

import re
from typing import Any

import pytest
import torch

from deployments.config import REPOSITORY
from policies import ModulatedLayer

SECTION = re.search(r"^## For researchers.*?(?=^## )", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
assert SECTION is not None
PREAMBLE, *BLOCKS = re.findall(r"^```python\n(.*?)^```", SECTION.group(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=["resnet", "segformer", "llama"])
def test_the_lines_modulate_the_model(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    with torch.enable_grad():  # gives back what the lines switch off
        exec(PREAMBLE + code, names)
    layers = [module for module in names["model"].modules() if isinstance(module, ModulatedLayer)]
    assert len(layers) == 1 and layers[0].last is not None
    assert not torch.equal(layers[0].last.logits, layers[0].last.clean)
    for shown in re.findall(r"# (0\.\d+)", code):
        assert float(re.findall(r"0\.\d+", capsys.readouterr().out)[0]) == pytest.approx(float(shown), abs=1e-3)
