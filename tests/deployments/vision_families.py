"""Every family of image classifiers and segmenters of both libraries: what makes it small, or why it is refused."""

from __future__ import annotations

from typing import Any

CLASSES = ("sky", "sea", "sand", "tree")
SIDE = 64
VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": SIDE,
    "patch_size": 16,
}  # fmt: skip
DINO = {key: VIT[key] for key in VIT if key != "intermediate_size"} | {"mlp_ratio": 2}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
SWIN = {"image_size": SIDE, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 2}
TOWER = {key: VIT[key] for key in VIT} | {"projection_dim": 16}
PYRAMID: dict[str, Any] = STAGES | {"num_attention_heads": [1, 2, 2, 4], "image_size": SIDE}
SEGFORMER = {**STAGES, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}
MOBILEVIT = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "image_size": SIDE}
LEVIT = {
    "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1], "key_dim": [8, 8, 8],
    "image_size": SIDE, "down_ops": [["Subsample", 8, 2, 2, 2, 2], ["Subsample", 8, 3, 2, 2, 2]],
}  # fmt: skip

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "beit": VIT,
    "bit": {**STAGES, "embedding_size": 8, "num_groups": 2},
    "clip": {"vision_config": TOWER},
    "convnext": STAGES,
    "convnextv2": STAGES,
    "cvt": {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "data2vec-vision": VIT,
    "deit": VIT,
    "dinov2": DINO,
    "dinov2_with_registers": DINO,
    "donut-swin": SWIN,
    "efficientnet": {"image_size": SIDE, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "focalnet": {"image_size": SIDE, "embed_dim": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]},
    "hgnet_v2": {
        **STAGES, "embedding_size": 8, "stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 16, 16],
        "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [16, 16, 16, 32], "stage_num_blocks": [1, 1, 1, 1],
    },
    "hiera": {"image_size": [SIDE, SIDE], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
              "masked_unit_size": [8, 8]},
    "ijepa": VIT,
    "levit": LEVIT,
    "metaclip_2": {"vision_config": TOWER},
    "mobilenet_v1": {"depth_multiplier": 0.25, "image_size": SIDE},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": SIDE},
    "mobilevit": MOBILEVIT,
    "mobilevitv2": {"width_multiplier": 0.25, "image_size": SIDE, "n_attn_blocks": [1, 1, 1]},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 1, "image_size": 16,
                  "_label_trainable_num_channels": 32},
    "poolformer": STAGES,
    "pvt": {**PYRAMID, "num_labels": len(CLASSES)},
    "pvt_v2": {**PYRAMID, "image_size": [SIDE, SIDE]},
    "regnet": {**STAGES, "embedding_size": 8, "groups_width": 8},
    "resnet": {**STAGES, "embedding_size": 8},
    "segformer": SEGFORMER,
    "siglip": {"vision_config": TOWER},
    "swin": SWIN,
    "swinv2": SWIN,
    "textnet": {"image_size": [SIDE, SIDE], "hidden_sizes": [8, 8, 8, 16, 16], "stem_out_channels": 8},
    "timm_wrapper": {"architecture": "resnet10t"},
    "vit": VIT,
    "vit_msn": VIT,
}  # fmt: skip
"""Model type: what makes its configuration small."""

SEGMENTERS: dict[str, dict[str, Any]] = {
    "beit": {**VIT, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2]},
    "data2vec-vision": {**VIT, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2]},
    "dpt": {**VIT, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 16, "readout_type": "ignore"},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": SIDE},
    "mobilevit": {**MOBILEVIT, "aspp_out_channels": 16},
    "mobilevitv2": {"width_multiplier": 0.25, "image_size": SIDE, "n_attn_blocks": [1, 1, 1], "aspp_out_channels": 16},
    "sapiens2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
                 "head_config": {"upsample_out_channels": [16, 16], "conv_out_channels": [8]}},
    "segformer": SEGFORMER,
    "upernet": {"hidden_size": 16, "pool_scales": [1, 2], "auxiliary_channels": 8},
}  # fmt: skip

ONE_LAYER = "its logits are put together from the outputs of 'A' and 'B'"
NOT_PIXELS = "cannot be served: it takes"
NO_TASK = "its model_type in config.json is not that of"
TIPS = {
    "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 16,
    "backbone_config": {
        "model_type": "tipsv2_vision_model", **DINO, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4],
        "reshape_hidden_states": False,
    },
}  # fmt: skip
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "DeiTForImageClassificationWithTeacher": ("deit", VIT, ONE_LAYER),
    "LevitForImageClassificationWithTeacher": ("levit", LEVIT, ONE_LAYER),
    "SwiftFormerForImageClassification": (
        "swiftformer", {"embed_dims": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "image_size": SIDE}, ONE_LAYER,
    ),
    "PPLCNetForImageClassification": (
        "pp_lcnet", {"scale": 0.25, "class_expand": 32, "stem_channels": 8}, "the model answers no logits",
    ),
    "Siglip2ForImageClassification": (
        "siglip2", {"vision_config": {**TOWER, "num_patches": 16}},
        f"{NOT_PIXELS} pixel_attention_mask, spatial_shapes",
    ),
    "ImageGPTForImageClassification": (
        "imagegpt", {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 9, "n_positions": 64},
        f"{NOT_PIXELS} input_ids",
    ),
    "Tipsv2DptForSemanticSegmentation": ("tipsv2_dpt", TIPS, "more is done to the output of 'decoder.head'"),
    "DinatForImageClassification": ("dinat", {}, "needs another package: DinatForImageClassification"),
    "MaskFormerForInstanceSegmentation": ("maskformer", {}, f"{NO_TASK} a segmenter with logits for each pixel"),
    "Mask2FormerForUniversalSegmentation": ("mask2former", {}, f"{NO_TASK} a segmenter with logits for each pixel"),
    "EomtForUniversalSegmentation": ("eomt", {}, f"{NO_TASK} a segmenter with logits for each pixel"),
    "DetrForSegmentation": ("detr", {}, f"{NO_TASK} a segmenter with logits for each pixel"),
}  # fmt: skip
"""Class: model type, what makes it small, and why it is refused."""
UNBUILT = {
    "shieldgemma2": "a language model that answers yes or no to a policy",
}
"""Model type: why there is no row of it."""
UNIVERSAL = {"detr", "eomt", "eomt_dinov3", "mask2former", "maskformer", "oneformer", "rf_detr", "videomt"}
"""Model types whose answers are masks of queries: all have one way into the loader, and one line out of it."""

TORCHVISION: dict[str, dict[str, Any]] = {
    "alexnet": {},
    "convnext_tiny": {},
    "densenet121": {},
    "efficientnet_b0": {},
    "efficientnet_v2_s": {},
    "googlenet": {"arguments": {"transform_input": True}},
    "inception_v3": {"arguments": {"transform_input": False}, "input_size": 96},
    "maxvit_t": {"arguments": {"input_size": [224, 224]}, "input_size": 224},
    "mnasnet0_5": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "regnet_x_400mf": {},
    "regnet_y_400mf": {},
    "resnet18": {},
    "shufflenet_v2_x0_5": {},
    "swin_t": {},
    "swin_v2_t": {},
    "vgg11": {},
    "vit_b_32": {"arguments": {"image_size": 64}},
}
"""The smallest of each family, and what its specification says besides."""
FEW = {"maxvit_t": 8}
"""Pictures for what takes none smaller than 224 pixels."""
TORCHVISION_REFUSED = dict.fromkeys(("squeezenet1_0", "squeezenet1_1"), "more is done to the output of 'classifier.1'")
TORCHVISION_SEGMENTERS = ["deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large"]
