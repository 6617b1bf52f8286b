"""Models that look at images: classifiers, detectors, encoders; name to (call, inputs in words)."""

from __future__ import annotations

from typing import Any

from zoo.calls import Call, Name, call

PICTURE = "3x32x32"

_VIT: dict[str, Any] = {"image_size": 32, "num_classes": 10, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48}
_CLASSES = {"num_classes": 10}


def _vit(path: str, **sizes: Any) -> Call:
    return call(f"vit_pytorch.{path}", **{**_VIT, "patch_size": 8, "dim_head": 8, **sizes})


VIT_PYTORCH = {
    "vit-pytorch/ViT": (_vit("vit:ViT"), f"img=real/{PICTURE}"),
    "vit-pytorch/SimpleViT": (_vit("simple_vit:SimpleViT"), f"img=real/{PICTURE}"),
    "vit-pytorch/DeepViT": (_vit("deepvit:DeepViT"), f"img=real/{PICTURE}"),
    "vit-pytorch/CaiT": (_vit("cait:CaiT", cls_depth=1), f"img=real/{PICTURE}"),
    "vit-pytorch/XCiT": (_vit("xcit:XCiT", cls_depth=1), f"img=real/{PICTURE}"),
    "vit-pytorch/T2TViT": (
        call("vit_pytorch.t2t:T2TViT", **_VIT, dim_head=8, t2t_layers=((7, 4), (3, 2))),
        f"img=real/{PICTURE}",
    ),
    "vit-pytorch/CCT": (
        call(
            "vit_pytorch.cct:CCT",
            img_size=32,
            embedding_dim=32,
            kernel_size=3,
            num_layers=2,
            num_heads=4,
            mlp_ratio=2.0,
            **_CLASSES,
        ),
        f"x=real/{PICTURE}",
    ),
    "vit-pytorch/LeViT": (
        call(
            "vit_pytorch.levit:LeViT",
            image_size=64,
            dim=(16, 24, 32),
            depth=2,
            heads=2,
            mlp_mult=2,
            dim_key=8,
            dim_value=12,
            **_CLASSES,
        ),
        "img=real/3x64x64",
    ),
    "vit-pytorch/MaxViT": (
        call(
            "vit_pytorch.max_vit:MaxViT",
            dim=16,
            depth=(1, 1),
            dim_head=8,
            window_size=4,
            dropout=0.0,
            **_CLASSES,
        ),
        f"x=real/{PICTURE}",
    ),
    "vit-pytorch/MobileViT": (
        call(
            "vit_pytorch.mobile_vit:MobileViT",
            image_size=(64, 64),
            dims=[24, 28, 32],
            channels=[8, 12, 16, 16, 20, 20, 24, 24, 28, 28, 40],
            **_CLASSES,
        ),
        "x=real/3x64x64",
    ),
    "vit-pytorch/NesT": (
        call(
            "vit_pytorch.nest:NesT",
            image_size=32,
            patch_size=4,
            dim=16,
            heads=2,
            num_hierarchies=2,
            block_repeats=(1, 1),
            dim_head=8,
            **_CLASSES,
        ),
        f"img=real/{PICTURE}",
    ),
}

DETECTION = {
    f"ultralytics/{cfg}": (
        call(f"ultralytics.nn.tasks:{kind}", f"{cfg}.yaml", verbose=False),
        "x=unit/3x64x64",
    )
    for cfg, kind in (
        ("yolov8n", "DetectionModel"),
        ("yolo11n", "DetectionModel"),
        ("yolo11n-seg", "SegmentationModel"),
        ("yolo11n-cls", "ClassificationModel"),
    )
}

_SMP: dict[str, Any] = {"encoder_weights": None, "classes": 2}

SEGMENTATION = {
    "segmentation-models-pytorch/Unet": (
        call(
            "segmentation_models_pytorch:Unet", "mobilenet_v2", decoder_channels=(32, 24, 20, 16, 8), **_SMP
        ),
        "x=real/3x64x64",
    ),
    "segmentation-models-pytorch/DeepLabV3Plus": (
        call("segmentation_models_pytorch:DeepLabV3Plus", "mobilenet_v2", decoder_channels=24, **_SMP),
        "x=real/3x64x64",
    ),
    "segmentation-models-pytorch/FPN": (
        call("segmentation_models_pytorch:FPN", "mobilenet_v2", decoder_pyramid_channels=24, **_SMP),
        "x=real/3x64x64",
    ),
    "segment-anything/ImageEncoderViT": (
        call(
            "segment_anything.modeling:ImageEncoderViT",
            img_size=32,
            patch_size=4,
            embed_dim=24,
            depth=2,
            num_heads=2,
            out_chans=16,
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
        ),
        f"x=real/{PICTURE}",
    ),
    "kornia/TinyViT": (
        call(
            "kornia.contrib:TinyViT",
            img_size=64,
            num_classes=10,
            embed_dims=(8, 16, 24, 32),
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 2, 4),
            window_sizes=(4, 4, 4, 2),
        ),
        "x=real/3x64x64",
    ),
    "kornia/HardNet": (call("kornia.feature:HardNet", pretrained=False), "input=unit/1x32x32"),
    "kornia/VisionTransformer": (
        call("kornia.models.vit:VisionTransformer", 32, 8, embed_dim=32, depth=2, num_heads=4),
        f"x=real/{PICTURE}",
    ),
}

CLASSIFICATION = {
    "efficientnet-pytorch/b0": (
        call("efficientnet_pytorch:EfficientNet.from_name", "efficientnet-b0", num_classes=10),
        "inputs=real/3x64x64",
    ),
    "pretrainedmodels/SENet": (
        call(
            "pretrainedmodels.models.senet:SENet",
            Name("pretrainedmodels.models.senet:SEResNeXtBottleneck"),
            [1, 1, 1, 1],
            4,
            4,
            inplanes=16,
            input_3x3=False,
            num_classes=10,
        ),
        "x=real/3x224x224",
    ),
    "resnest/resnest": (
        call(
            "resnest.torch.resnet:ResNet",
            Name("resnest.torch.resnet:Bottleneck"),
            [1, 1, 1, 1],
            radix=2,
            bottleneck_width=16,
            deep_stem=True,
            stem_width=8,
            avg_down=True,
            num_classes=10,
        ),
        "x=real/3x64x64",
    ),
    "lightly/ResNetGenerator": (call("lightly.models:ResNetGenerator", width=0.25), f"x=real/{PICTURE}"),
    "torchxrayvision/DenseNet": (
        call(
            "torchxrayvision.models:DenseNet",
            growth_rate=4,
            block_config=(2, 2),
            num_init_features=8,
            bn_size=2,
            num_classes=5,
        ),
        "x=real/1x224x224",
    ),
    "open-clip-torch/CLIP": (
        call(
            "open_clip:CLIP",
            24,
            call("open_clip:CLIPVisionCfg", layers=2, width=32, head_width=8, patch_size=8, image_size=32),
            call("open_clip:CLIPTextCfg", context_length=16, vocab_size=99, width=28, heads=4, layers=2),
        ),
        "image=real/3x32x32 text=ids/16",
    ),
    "mlp-mixer-pytorch/MLPMixer": (
        call(
            "mlp_mixer_pytorch:MLPMixer", image_size=32, channels=3, patch_size=8, dim=24, depth=2, **_CLASSES
        ),
        f"input=real/{PICTURE}",
    ),
    "g-mlp-pytorch/gMLPVision": (
        call("g_mlp_pytorch:gMLPVision", image_size=32, patch_size=8, dim=24, depth=2, **_CLASSES),
        f"x=real/{PICTURE}",
    ),
    "perceiver-pytorch/Perceiver": (
        call(
            "perceiver_pytorch:Perceiver",
            num_freq_bands=3,
            depth=2,
            max_freq=8.0,
            num_latents=10,
            latent_dim=24,
            latent_heads=2,
            cross_dim_head=8,
            latent_dim_head=8,
            **_CLASSES,
        ),
        "data=real/16x16x3",
    ),
    "axial-attention/AxialImageTransformer": (
        call(
            "axial_attention:AxialImageTransformer",
            16,
            2,
            heads=2,
            reversible=False,
            axial_pos_emb_shape=(8, 8),
        ),
        "x=real/16x8x8",
    ),
}

IMAGES: dict[str, tuple[Call, str]] = {
    **VIT_PYTORCH,
    **DETECTION,
    **SEGMENTATION,
    **CLASSIFICATION,
}
