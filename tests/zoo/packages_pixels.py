"""Models whose outputs are images or volumes: diffusion, super-resolution, segmentation of volumes; name to (call, inputs in words)."""

from __future__ import annotations

from typing import Any

from zoo.calls import Call, call

_UNET: dict[str, Any] = {"block_out_channels": (16, 32), "norm_num_groups": 4, "layers_per_block": 1}

DIFFUSION = {
    "diffusers/UNet2DModel": (
        call(
            "diffusers:UNet2DModel",
            **_UNET,
            sample_size=16,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ),
        "sample=real/3x16x16 timestep=fours",
    ),
    "diffusers/UNet2DConditionModel": (
        call(
            "diffusers:UNet2DConditionModel",
            **_UNET,
            sample_size=16,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=24,
            attention_head_dim=4,
        ),
        "sample=real/4x16x16 timestep=fours encoder_hidden_states=real/7x24",
    ),
    "diffusers/AutoencoderKL": (
        call(
            "diffusers:AutoencoderKL",
            **_UNET,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        "sample=real/3x16x16",
    ),
    "diffusers/DiTTransformer2DModel": (
        call(
            "diffusers:DiTTransformer2DModel",
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=2,
            sample_size=8,
            num_embeds_ada_norm=10,
        ),
        "hidden_states=real/4x8x8 timestep=fours class_labels=fours",
    ),
    "diffusers/FluxTransformer2DModel": (
        call(
            "diffusers:FluxTransformer2DModel",
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=20,
            axes_dims_rope=(4, 4, 8),
        ),
        """hidden_states=real/9x16 encoder_hidden_states=real/7x24 pooled_projections=real/20 timestep=unit
        img_ids=rows/9x3 txt_ids=rows/7x3""",
    ),
    "diffusers/SD3Transformer2DModel": (
        call(
            "diffusers:SD3Transformer2DModel",
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=24,
            caption_projection_dim=32,
            pooled_projection_dim=20,
            pos_embed_max_size=8,
        ),
        "hidden_states=real/4x8x8 encoder_hidden_states=real/7x24 pooled_projections=real/20 timestep=fours",
    ),
    "diffusers/AutoencoderTiny": (
        call(
            "diffusers:AutoencoderTiny",
            encoder_block_out_channels=(16, 16),
            decoder_block_out_channels=(16, 16),
            num_encoder_blocks=(1, 2),
            num_decoder_blocks=(2, 1),
        ),
        "sample=unit/3x16x16",
    ),
    "denoising-diffusion-pytorch/Unet": (
        call("denoising_diffusion_pytorch:Unet", 8, dim_mults=(1, 2), attn_dim_head=8, attn_heads=2),
        "x=real/3x16x16 time=fours",
    ),
    "denoising-diffusion-pytorch/Unet1D": (
        call("denoising_diffusion_pytorch:Unet1D", 8, dim_mults=(1, 2), attn_dim_head=8, attn_heads=2),
        "x=real/3x16 time=fours",
    ),
    "denoising-diffusion-pytorch/KarrasUnet": (
        call(
            "denoising_diffusion_pytorch:KarrasUnet",
            image_size=16,
            dim=8,
            dim_max=16,
            num_downsamples=1,
            num_blocks_per_stage=1,
            attn_res=(8,),
            attn_dim_head=8,
            fourier_dim=8,
        ),
        "x=real/4x16x16 time=unit",
    ),
}

VOLUMES = {
    "monai/UNet": (
        call("monai.networks.nets:UNet", 3, 1, 2, (8, 12, 16), (2, 2), num_res_units=1),
        "x=real/1x16x16x16",
    ),
    "monai/AttentionUnet": (
        call("monai.networks.nets:AttentionUnet", 2, 1, 2, (8, 12, 16), (2, 2)),
        "x=real/1x32x32",
    ),
    "monai/SwinUNETR": (
        call("monai.networks.nets:SwinUNETR", 1, 2, spatial_dims=2, feature_size=12, depths=(1, 1, 1, 1)),
        "x_in=real/1x64x64",
    ),
    "monai/UNETR": (
        call("monai.networks.nets:UNETR", 1, 2, 32, 8, 24, 32, 4, spatial_dims=2),
        "x_in=real/1x32x32",
    ),
    "monai/SegResNet": (
        call("monai.networks.nets:SegResNet", 2, 8, blocks_down=(1, 1), blocks_up=(1,)),
        "x=real/1x16x16",
    ),
    "monai/DynUNet": (
        call("monai.networks.nets:DynUNet", 2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], [8, 12, 16]),
        "x=real/1x16x16",
    ),
    "monai/VNet": (call("monai.networks.nets:VNet", 2), "x=real/1x32x32"),
    "monai/DenseNet": (
        call("monai.networks.nets:DenseNet", 2, 1, 3, 8, 4, (2, 2), 2),
        "x=real/1x32x32",
    ),
}

SCALING = {
    "spandrel/ESRGAN": (
        call("spandrel.architectures.ESRGAN:ESRGAN", num_filters=16, num_blocks=2, scale=2),
        "x=unit/3x16x16",
    ),
    "spandrel/SwinIR": (
        call(
            "spandrel.architectures.SwinIR:SwinIR",
            img_size=16,
            embed_dim=16,
            depths=[2],
            num_heads=[2],
            window_size=4,
            upscale=2,
            upsampler="pixelshuffle",
        ),
        "x=unit/3x16x16",
    ),
    "spandrel/HAT": (
        call(
            "spandrel.architectures.HAT:HAT",
            img_size=16,
            embed_dim=16,
            depths=(2,),
            num_heads=(2,),
            window_size=4,
            squeeze_factor=4,
            upscale=2,
            num_feat=16,
        ),
        "x=unit/3x16x16",
    ),
    "spandrel/DAT": (
        call(
            "spandrel.architectures.DAT:DAT",
            img_size=16,
            embed_dim=64,
            split_size=[2, 4],
            depth=[2],
            num_heads=[2],
            expansion_factor=2.0,
        ),
        "x=unit/3x16x16",
    ),
    "spandrel/SPAN": (
        call("spandrel.architectures.SPAN:SPAN", num_in_ch=3, num_out_ch=3, feature_channels=12, upscale=2),
        "x=unit/3x16x16",
    ),
    "spandrel/OmniSR": (
        call("spandrel.architectures.OmniSR:OmniSR", num_feat=16, window_size=8, up_scale=2),
        "x=unit/3x16x16",
    ),
}

PIXELS: dict[str, tuple[Call, str]] = {**DIFFUSION, **VOLUMES, **SCALING}
