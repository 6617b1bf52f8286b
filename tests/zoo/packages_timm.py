"""Models of timm, the smallest of each of its families; name to (call, inputs in words)."""

from __future__ import annotations

from zoo.calls import Call, call

#: models that take any size
_ANY = """
test_convnext test_efficientnet test_nfnet test_mambaout test_byobnet test_resnet starnet_s050 dla46x_c
mobilevit_xxs edgenext_xx_small mobilenetv3_small_050 ese_vovnet19b_slim_dw repghostnet_050 ghostnet_050
regnetx_002 cspnext_tiny iformer_t cs3darknet_focus_s efficientvit_b0 pvt_v2_b0 fasternet_t0 fastvit_t8
lcnetv2_small inception_next_atto rexnet_100 hardcorenas_b repvit_m1 hgnetv2_b0 shvit_s1 cpubone_nano
efficientvim_m1 dpn48b csatv2 resnetv2_18 legacy_seresnet18 poolformerv2_s12 skresnet18 tiny_vit_5m_224
hrnet_w18_small lowformer_b0 resnest26d legacy_xception inception_v3 rdnet_tiny convmixer_1024_20_ks9_p14
res2net50_14w_8s sam2_hiera_tiny xception41p davit_tiny focalnet_tiny_srf selecsls42 tresnet_m nextvit_small
inception_v4 inception_resnet_v2 densenet121 mobilenetv5_base pnasnet5large qwen3_vit_88m nasnetalarge
naflexvit_base_patch16_siglip vgg11 gemma4_vit_167m
"""

#: models of one size, by that size
_FIXED = {
    160: """
test_vit test_coatnet test_vit_relpos
""",
    224: """
efficientvit_m1 xcit_nano_12_p8_224 swiftformer_xs efficientformerv2_s0 pit_ti_224 coat_tiny
eva02_tiny_patch14_224 convit_tiny deit_tiny_patch16_224 gmlp_ti16_224 vit_tiny_r_s16_p8_224 levit_128s
visformer_tiny cait_xxs24_224 gcvit_xxtiny efficientformer_l1 nest_tiny vitamin_small_224
tnt_s_legacy_patch16_224 twins_svt_small mvitv2_tiny volo_d1_224 sequencer2d_s hiera_tiny_224
deepseek_vit_412m swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 samvit_base_patch16_224 beit_base_patch16_224
""",
    240: """
crossvit_tiny_240
""",
    256: """
eca_botnext26ts_256 swinv2_tiny_window8_256
""",
}

_SIDE = 96


def _row(name: str, side: int) -> tuple[Call, str]:
    return call("timm:create_model", name, num_classes=10), f"x=real/3x{side}x{side}"


TIMM: dict[str, tuple[Call, str]] = {
    **{f"timm/{name}": _row(name, _SIDE) for name in _ANY.split()},
    **{f"timm/{name}": _row(name, side) for side, names in _FIXED.items() for name in names.split()},
}
