"""The final layer of real architectures, found by running them; those that have none are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
import transformers
from torch import Tensor, nn

from policies.head.final import Final, NoFinalLayer, evaluating, find_final

PICTURES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(24).reshape(2, 12)
DECODER = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def found(model: nn.Module, run: Callable[[], Any]) -> Final:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)  # torchvision begins some with zeros
    return find_final(model, run)


def upernet() -> nn.Module:
    stages = [f"stage{i}" for i in (1, 2, 3, 4)]
    backbone = transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, out_features=stages)
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, num_labels=7, auxiliary_in_channels=24, auxiliary_channels=8
    )
    return transformers.UperNetForSemanticSegmentation(config)


def dpt() -> nn.Module:
    config = transformers.DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=64, num_labels=7,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 16, 24, 32], fusion_hidden_size=16,
    )  # fmt: skip
    return transformers.DPTForSemanticSegmentation(config)


def segformer() -> nn.Module:
    return transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=7, depths=[1] * 4))


def torchvision_segmenter(name: str, **options: Any) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=7, **options)


@pytest.mark.parametrize(
    ("make", "name", "align_corners"),
    [
        (segformer, "decode_head.classifier", None),
        (upernet, "decode_head.classifier", False),
        (dpt, "head.head.4", True),
        (lambda: torchvision_segmenter("deeplabv3_mobilenet_v3_large", aux_loss=True), "classifier.4", False),
        (lambda: torchvision_segmenter("fcn_resnet50", aux_loss=True), "classifier.4", False),
    ],
    ids=["segformer", "upernet", "dpt", "deeplab", "fcn"],
)
def test_segmenters_are_modulated_at_the_convolution(make: Any, name: str, align_corners: bool | None) -> None:
    model = make()
    final = found(model, lambda: model(PICTURES))
    assert (final.name, final.maps, final.align_corners) == (name, True, align_corners)
    assert isinstance(final.module, nn.Conv2d) and final.module.out_channels == 7


def test_a_sum_of_two_convolutions_is_refused_by_name() -> None:
    model = torchvision_segmenter("lraspp_mobilenet_v3_large")
    with pytest.raises(NoFinalLayer, match="LRASPP.*'classifier.low_classifier' and 'classifier.high_classifier'"):
        found(model, lambda: model(PICTURES))


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3"), ("vit_b_32", "heads.head")],
)
def test_classifiers(architecture: str, name: str) -> None:
    model = torchvision.models.get_model(architecture, weights=None, num_classes=10)
    pixels = PICTURES.repeat(1, 1, 4, 4)[..., :224, :224]
    final = found(model, lambda: model(pixels))
    assert (final.name, final.maps, final.align_corners) == (name, False, None)


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(**DECODER),
        transformers.GraniteConfig(**DECODER, logits_scaling=8.0),
        transformers.CohereConfig(**DECODER),
        transformers.Gemma2Config(**DECODER, head_dim=8, final_logit_softcapping=1.0),
        transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_language_models_whose_logits_are_scaled_or_capped_count(config: Any, dtype: torch.dtype) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    assert find_final(model, lambda: model(input_ids=TOKENS)).name == "lm_head"
    assert model.training
    greedy = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    final = find_final(model, lambda: model.generate(TOKENS, max_new_tokens=1, **greedy))
    assert final.module is model.lm_head


class Two(nn.Module):
    """Two heads of one width, of which the first is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.auxiliary = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(x), "auxiliary": self.auxiliary(x)}


def test_auxiliary_heads_are_passed_over() -> None:
    model = Two()
    assert found(model, lambda: model(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))).name == "head"


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (nn.LayerNorm(3), "more is done to the output of '0'"),
        (nn.Flatten(0), "are not the output of an nn.Linear"),
        (nn.Threshold(1e6, 0.0), "are all equal"),
    ],
)
def test_what_follows_the_layer_may_not_change_the_order(tail: nn.Module, said: str) -> None:
    if isinstance(tail, nn.LayerNorm):
        nn.init.normal_(tail.weight)
    model = nn.Sequential(nn.Linear(4, 3), tail)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NoFinalLayer, match=f"Sequential cannot be modulated: .*{said}"):
        find_final(model, lambda: model(x))


def test_probabilities_and_models_that_are_one_layer_count() -> None:
    x, layer = torch.randn(8, 4), nn.Linear(4, 3)
    assert find_final(nn.Sequential(layer, nn.Softmax(dim=1)), lambda: layer(x).softmax(dim=1)).module is layer
    assert find_final(layer, lambda: layer(x)).name == ""


def test_what_answers_no_logits_is_refused() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(NoFinalLayer, match="answers no logits, but str"):
        find_final(model, lambda: "an answer")


def test_every_module_is_put_back_to_its_own_mode() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval()).train()
    model[1].eval()
    with evaluating(model):
        assert not model[0].training
    assert model[0].training and not model[1].training and model.training
