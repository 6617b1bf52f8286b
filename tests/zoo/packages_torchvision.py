"""Models of torchvision, the smallest of each kind, detectors and video included; name to (call, inputs in words)."""

from __future__ import annotations

from typing import Any

from zoo.calls import Call, Name, call

_PICTURE = "x=real/3x64x64"
_MODELS = "torchvision.models"
_CLASSES = {"num_classes": 10}
_UNTRAINED: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 5}
_FEW: dict[str, Any] = {"min_size": 64, "max_size": 64}
_TWO_STAGES: dict[str, Any] = {**_FEW, "box_detections_per_img": 5, "rpn_post_nms_top_n_test": 10}
_ONE_STAGE: dict[str, Any] = {**_FEW, "detections_per_img": 5, "topk_candidates": 20}
_SINGLE_SHOT: dict[str, Any] = {"detections_per_img": 5, "topk_candidates": 20}

_CLASSIFIERS = {
    f"torchvision/{name}": (call(f"{_MODELS}:{name}", **_CLASSES, **more), words)
    for name, words, more in (
        ("mobilenet_v3_small", _PICTURE, {}),
        ("shufflenet_v2_x0_5", _PICTURE, {}),
        ("squeezenet1_1", _PICTURE, {}),
        ("regnet_y_400mf", _PICTURE, {}),
        ("mnasnet0_5", _PICTURE, {}),
        ("resnet18", _PICTURE, {}),
        ("googlenet", _PICTURE, {"init_weights": False}),
        ("mobilenet_v2", _PICTURE, {}),
        ("mobilenet_v3_large", _PICTURE, {}),
        ("shufflenet_v2_x1_0", _PICTURE, {}),
        ("squeezenet1_0", _PICTURE, {}),
        ("regnet_x_400mf", _PICTURE, {}),
        ("densenet121", _PICTURE, {}),
        ("efficientnet_b0", _PICTURE, {}),
        ("efficientnet_v2_s", _PICTURE, {}),
        ("convnext_tiny", _PICTURE, {}),
        ("resnet50", _PICTURE, {}),
        ("resnext50_32x4d", _PICTURE, {}),
        ("wide_resnet50_2", _PICTURE, {}),
        ("inception_v3", "x=real/3x96x96", {"init_weights": False}),
        ("alexnet", _PICTURE, {}),
        ("vgg11", _PICTURE, {}),
        ("vgg11_bn", _PICTURE, {}),
    )
}

_TRANSFORMERS = {
    "torchvision/VisionTransformer": (
        call(f"{_MODELS}:VisionTransformer", 32, 8, 2, 4, 32, 48),
        "x=real/3x32x32",
    ),
    "torchvision/SwinTransformer": (
        call(f"{_MODELS}:SwinTransformer", [4, 4], 16, [2, 2], [2, 4], [4, 4]),
        "x=real/3x32x32",
    ),
    "torchvision/SwinTransformerV2": (
        call(
            f"{_MODELS}:SwinTransformer",
            [4, 4],
            16,
            [2, 2],
            [2, 4],
            [4, 4],
            block=Name(f"{_MODELS}.swin_transformer:SwinTransformerBlockV2"),
            downsample_layer=Name(f"{_MODELS}.swin_transformer:PatchMergingV2"),
        ),
        "x=real/3x32x32",
    ),
    "torchvision/MaxVit": (
        call(f"{_MODELS}:MaxVit", (64, 64), 16, 2, [16, 24], [1, 1], 8, 0.0, **_CLASSES),
        _PICTURE,
    ),
}

_SEGMENTATION = {
    f"torchvision/{name}": (call(f"{_MODELS}.segmentation:{name}", **_UNTRAINED), f"{argument}=real/3x64x64")
    for name, argument in (
        ("lraspp_mobilenet_v3_large", "input"),
        ("deeplabv3_mobilenet_v3_large", "x"),
        ("deeplabv3_resnet50", "x"),
        ("fcn_resnet50", "x"),
    )
}

_DETECTION = {
    f"torchvision/{name}": (
        call(f"{_MODELS}.detection:{name}", **_UNTRAINED, **sizes),
        "images=pictures/3x64x64",
    )
    for name, sizes in (
        ("fasterrcnn_mobilenet_v3_large_320_fpn", _TWO_STAGES),
        ("fasterrcnn_mobilenet_v3_large_fpn", _TWO_STAGES),
        ("fasterrcnn_resnet50_fpn", _TWO_STAGES),
        ("fasterrcnn_resnet50_fpn_v2", _TWO_STAGES),
        ("maskrcnn_resnet50_fpn", _TWO_STAGES),
        ("maskrcnn_resnet50_fpn_v2", _TWO_STAGES),
        ("keypointrcnn_resnet50_fpn", _TWO_STAGES),
        ("fcos_resnet50_fpn", _ONE_STAGE),
        ("retinanet_resnet50_fpn", _ONE_STAGE),
        ("retinanet_resnet50_fpn_v2", _ONE_STAGE),
        ("ssd300_vgg16", _SINGLE_SHOT),
        ("ssdlite320_mobilenet_v3_large", _SINGLE_SHOT),
    )
}

_VIDEO = {
    **{
        f"torchvision/{name}": (
            call(f"{_MODELS}.video:{name}", **_CLASSES),
            f"x=real/3x{frames}x{edge}x{edge}",
        )
        for name, frames, edge in (
            ("mc3_18", 4, 64),
            ("r2plus1d_18", 4, 64),
            ("r3d_18", 4, 64),
            ("s3d", 16, 224),
        )
    },
    "torchvision/SwinTransformer3d": (
        call(f"{_MODELS}.video:SwinTransformer3d", [2, 4, 4], 16, [2, 2], [2, 4], [2, 4, 4], **_CLASSES),
        "x=real/3x4x32x32",
    ),
    "torchvision/raft_small": (
        call(f"{_MODELS}.optical_flow:raft_small", weights=None),
        "image1=real/3x128x128 image2=real/3x128x128",
    ),
}

TORCHVISION: dict[str, tuple[Call, str]] = {
    **_CLASSIFIERS,
    **_TRANSFORMERS,
    **_SEGMENTATION,
    **_DETECTION,
    **_VIDEO,
}
