"""The Hugging Face part of the zoo: one row for each architecture, a class of `transformers` with a tiny configuration.

A row is the name of a class (and `/` a variant); sizes that `tiny.TINY` does not give are in `overrides.OVERRIDES`, inputs in words
that `inputs.made` parses. Nothing is imported or built before a row's `build` is called.
"""

# ruff: noqa: SIM905 (names in words read better than lists of quoted names)

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from zoo.inputs import parse_inputs
from zoo.overrides import OVERRIDES

TEXT = "input_ids=ids/13 attention_mask=padded/13"

DECODERS = """
AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM AriaTextForCausalLM AXK1ForCausalLM AXK2ForCausalLM
BambaForCausalLM BartForCausalLM BeamForCausalLM BertGenerationDecoder BertLMHeadModel BigBirdForCausalLM
BigBirdPegasusForCausalLM BioGptForCausalLM BitNetForCausalLM BlenderbotForCausalLM BlenderbotSmallForCausalLM
BloomForCausalLM CamembertForCausalLM CodeGenForCausalLM Cohere2ForCausalLM Cohere2MoeForCausalLM
CohereForCausalLM CpmAntForCausalLM CTRLLMHeadModel CwmForCausalLM Data2VecTextForCausalLM DeepseekV2ForCausalLM
DeepseekV32ForCausalLM DeepseekV3ForCausalLM DeepseekV4ForCausalLM DiffLlamaForCausalLM DogeForCausalLM
Dots1ForCausalLM Dots3NoteForCausalLM ElectraForCausalLM Emu3ForCausalLM Ernie4_5_MoeForCausalLM
Ernie4_5ForCausalLM ErnieForCausalLM Exaone4ForCausalLM ExaoneMoeForCausalLM FalconForCausalLM
FalconH1ForCausalLM FalconMambaForCausalLM FlexOlmoForCausalLM FlintForCausalLM Gemma2ForCausalLM
Gemma3ForCausalLM Gemma4ForCausalLM Gemma4UnifiedForCausalLM GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM
Glm4MoeLiteForCausalLM GlmForCausalLM GlmMoeDsaForCausalLM GPT2LMHeadModel GPTBigCodeForCausalLM GPTJForCausalLM
GPTNeoForCausalLM GPTNeoXForCausalLM GPTNeoXJapaneseForCausalLM GptOssForCausalLM GraniteForCausalLM
GraniteMoeForCausalLM GraniteMoeHybridForCausalLM GraniteMoeSharedForCausalLM GraniteMoeSWAForCausalLM
GraniteSWAForCausalLM HeliumForCausalLM HrmTextForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM
HyperCLOVAXForCausalLM HYV3ForCausalLM HYV4ForCausalLM Inkling2ForCausalLM InklingForCausalLM Jais2ForCausalLM
JambaForCausalLM JetMoeForCausalLM KimiLinearForCausalLM Kolibri1ForCausalLM LagunaForCausalLM Lfm2ForCausalLM
Lfm2MoeForCausalLM Lfm3ForCausalLM Llama4ForCausalLM LlamaForCausalLM LongcatFlashForCausalLM Mamba2ForCausalLM
MambaForCausalLM MarianForCausalLM MBartForCausalLM MegatronBertForCausalLM MellumForCausalLM
MiMoV2FlashForCausalLM MiniCPM3ForCausalLM MiniMaxForCausalLM MiniMaxM2ForCausalLM MiniMaxM3VLForCausalLM
Ministral3ForCausalLM MinistralForCausalLM MistralForCausalLM MixtralForCausalLM ModernBertDecoderForCausalLM
MoshiForCausalLM MptForCausalLM MusicgenForCausalLM MusicgenMelodyForCausalLM MvpForCausalLM NanoChatForCausalLM
NemotronForCausalLM NemotronHForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM OlmoeForCausalLM OlmoForCausalLM
OlmoHybridForCausalLM OpenAIGPTLMHeadModel OPTForCausalLM PegasusForCausalLM PersimmonForCausalLM
Phi3ForCausalLM PhiForCausalLM PhimoeForCausalLM PLBartForCausalLM ProphetNetForCausalLM Qwen2ForCausalLM
Qwen2MoeForCausalLM Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM
Qwen3NextForCausalLM RecurrentGemmaForCausalLM ReformerModelWithLMHead RemBertForCausalLM RobertaForCausalLM
RobertaPreLayerNormForCausalLM RoCBertForCausalLM RoFormerForCausalLM RwkvForCausalLM SeedOssForCausalLM
SmolLM3ForCausalLM SolarOpenForCausalLM StableLmForCausalLM Starcoder2ForCausalLM TrOCRForCausalLM
VaultGemmaForCausalLM WhisperForCausalLM XGLMForCausalLM XLMRobertaForCausalLM XLMRobertaXLForCausalLM
XLMWithLMHeadModel XLNetLMHeadModel xLSTMForCausalLM XmodForCausalLM YoutuForCausalLM Zamba2ForCausalLM
ZambaForCausalLM ZayaForCausalLM
"""

ENCODERS = """
AlbertForMaskedLM BertForMaskedLM BertForQuestionAnswering BigBirdForMaskedLM CamembertForMaskedLM CanineModel
CLIPTextModel ConvBertForMaskedLM Data2VecTextForMaskedLM DebertaForMaskedLM DebertaV2ForMaskedLM
DistilBertForMaskedLM DPRQuestionEncoder ElectraForMaskedLM ErnieForMaskedLM EsmcForMaskedLM EsmForMaskedLM
EuroBertForMaskedLM FlaubertWithLMHeadModel FNetForMaskedLM FunnelForMaskedLM GPT2ForSequenceClassification
GteForMaskedLM IBertForMaskedLM JinaEmbeddingsV3ForMaskedLM LayoutLMForMaskedLM LongformerForMaskedLM
LukeForMaskedLM MarkupLMModel MegatronBertForMaskedLM MobileBertForMaskedLM ModernBertForMaskedLM
ModernVBertForMaskedLM MPNetForMaskedLM MraForMaskedLM NeoMMEForMaskedLM NomicBertForMaskedLM
NystromformerForMaskedLM PerceiverForMaskedLM ReformerForMaskedLM RemBertForMaskedLM RobertaForMaskedLM
RobertaPreLayerNormForMaskedLM RoCBertForMaskedLM RoFormerForMaskedLM Sam3LiteTextTextModel SplinterModel
SqueezeBertForMaskedLM T5EncoderModel TapasForMaskedLM Tipsv2TextModel UltrabertForMaskedLM
UltraVBertForMaskedLM XLMRobertaForMaskedLM XLMRobertaXLForMaskedLM XmodForMaskedLM YosoForMaskedLM
"""

ENCODER_DECODERS = """
BartForConditionalGeneration BigBirdPegasusForConditionalGeneration BlenderbotForConditionalGeneration
BlenderbotSmallForConditionalGeneration LEDForConditionalGeneration
LongT5ForConditionalGeneration M2M100ForConditionalGeneration MarianMTModel MBartForConditionalGeneration
MT5ForConditionalGeneration MvpForConditionalGeneration NllbMoeForConditionalGeneration
PegasusForConditionalGeneration PegasusXForConditionalGeneration PLBartForConditionalGeneration
ProphetNetForConditionalGeneration SeamlessM4TForTextToText SeamlessM4Tv2ForTextToText
SwitchTransformersForConditionalGeneration T5ForConditionalGeneration T5Gemma2ForConditionalGeneration
T5GemmaForConditionalGeneration UMT5ForConditionalGeneration
"""

IMAGES = """
Aimv2VisionModel BeitForImageClassification BitForImageClassification ChineseCLIPVisionModel
CLIPForImageClassification CLIPVisionModel CvtForImageClassification Data2VecVisionForImageClassification
DeiTForImageClassification DepthAnythingForDepthEstimation Dinov2ForImageClassification
Dinov2ForImageClassification/swiglu Dinov2WithRegistersForImageClassification DINOv3ConvNextModel DINOv3ViTModel
DonutSwinForImageClassification DPTForDepthEstimation EfficientNetForImageClassification
FocalNetForImageClassification FocalNetForMaskedImageModeling GLPNForDepthEstimation
HGNetV2ForImageClassification HieraForImageClassification Idefics3VisionTransformer IJepaForImageClassification
InternVLVisionModel MaskFormerSwinModel MetaClip2ForImageClassification MgpstrForSceneTextRecognition
MLCDVisionModel MobileNetV1ForImageClassification MobileNetV2ForImageClassification
MobileViTForImageClassification PixioModel PixtralVisionModel PoolFormerForImageClassification
PPLCNetForImageClassification PvtForImageClassification PvtV2ForImageClassification RadioModel
RegNetForImageClassification ResNetForImageClassification ResNetForImageClassification/bottleneck Sam3ViTModel
SamHQVisionModel SamVisionModel SegformerForImageClassification SegformerForSemanticSegmentation
SiglipForImageClassification SiglipVisionModel SmolVLMVisionTransformer SwiftFormerForImageClassification
SwinForImageClassification Swinv2ForImageClassification TextNetForImageClassification Tipsv2VisionModel
VitDetModel ViTForImageClassification ViTMAEModel ViTMSNForImageClassification YolosForObjectDetection
"""

WAVES = """
Data2VecAudioForCTC HubertForCTC SEWDForCTC SEWForCTC UniSpeechForCTC UniSpeechSatForCTC Wav2Vec2ConformerForCTC
Wav2Vec2ConformerForCTC/rotary Wav2Vec2ForCTC Wav2Vec2ForSequenceClassification WavLMForCTC
"""

#: architectures with inputs of their own
OTHERS = {
    # sound
    "ASTForAudioClassification": "input_values=real/40x24",
    "ClapAudioModel": "input_features=real/1x32x8",
    "DacModel": "input_values=real/1x160",
    "EncodecModel": "input_values=real/1x160",
    "GlmAsrEncoder": "input_features=real/16x64",
    "LasrForCTC": "input_features=real/64x16",
    "MimiModel": "input_values=real/1x160",
    "MoonshineForConditionalGeneration": "input_values=real/2000 decoder_input_ids=ids/11",
    "NemotronAsrStreamingEncoder": "input_features=real/64x16",
    "ParakeetForCTC": "input_features=real/64x16",
    "Qwen2AudioEncoder": "input_features=real/16x32",
    "Speech2TextForConditionalGeneration": "input_features=real/40x16 decoder_input_ids=ids/11",
    "SpeechT5ForSpeechToText": "input_values=real/400 decoder_input_ids=ids/11",
    "SpeechT5HifiGan": "spectrogram=real/13x16",
    "UnivNetModel": "input_features=real/13x16 noise_sequence=real/13x8",
    "VitsModel": "input_ids=ids/13",
    "VoxtralRealtimeEncoder": "input_features=real/16x64",
    "Wav2Vec2BertForCTC": "input_features=real/20x18",
    "WhisperForConditionalGeneration": "input_features=real/16x32 decoder_input_ids=ids/11",
    # vision
    "ConvNextForImageClassification": "pixel_values=real/3x64x64",
    "ConvNextV2ForImageClassification": "pixel_values=real/3x64x64",
    "ImageGPTForCausalImageModeling": "input_ids=ids/13",
    "LevitForImageClassification": "pixel_values=real/3x64x64",
    "MobileViTV2ForImageClassification": "pixel_values=real/3x64x64",
    "Siglip2VisionModel": "pixel_values=real/16x192 pixel_attention_mask=ones/16 spatial_shapes=fours/2",
    "SuperPointForKeypointDetection": "pixel_values=real/3x32x32",
    "Swin2SRForImageSuperResolution": "pixel_values=real/3x16x16",
    "TimesformerForVideoClassification": "pixel_values=real/4x3x16x16",
    "UperNetForSemanticSegmentation": "pixel_values=real/3x64x64",
    "VJEPA2Model": "pixel_values_videos=real/4x3x16x16",
    "VideoMAEForVideoClassification": "pixel_values=real/4x3x16x16",
    "VivitForVideoClassification": "pixel_values=real/4x3x16x16",
    # text with boxes, pictures or tables
    "BrosModel": "input_ids=ids/13 bbox=unit/13x4",
    "DPRReader": "input_ids=ids/13",
    "LayoutLMv3ForSequenceClassification": f"{TEXT} bbox=boxes/13x4",
    "LiltModel": "input_ids=ids/13 bbox=boxes/13x4",
    "LxmertModel": "input_ids=ids/13 visual_feats=real/5x22 visual_pos=unit/5x4",
    "TapasForSequenceClassification": "input_ids=ids/13 token_type_ids=zeros/13x7",
    "VisualBertModel": f"{TEXT} visual_embeds=real/5x22 visual_attention_mask=ones/5 visual_token_type_ids=ones/5",
    # text and images
    **dict.fromkeys(
        """AltCLIPModel BlipForConditionalGeneration BlipModel ChineseCLIPModel CLIPModel FlavaModel GitForCausalLM Owlv2Model
        OwlViTModel""".split(),
        f"{TEXT} pixel_values=real/3x32x32",
    ),
    **dict.fromkeys(
        "CLIPSegForImageSegmentation CLIPSegModel GroupViTModel SiglipModel ViltModel VisionTextDualEncoderModel".split(),
        "input_ids=ids/13 pixel_values=real/3x32x32",
    ),
    **dict.fromkeys(
        "InternVLForConditionalGeneration LlavaForConditionalGeneration".split(),
        "input_ids=marked/16/29 attention_mask=ones/29 pixel_values=real/3x32x32",
    ),
    "PaliGemmaForConditionalGeneration": (
        "input_ids=marked/16/29 attention_mask=padded/29 token_type_ids=zeros/29 pixel_values=real/3x32x32"
    ),
    **dict.fromkeys(
        "AyaVisionForConditionalGeneration Blip2ForConditionalGeneration".split(),
        "input_ids=marked/4/13 attention_mask=ones/13 pixel_values=real/3x32x32",
    ),
    **dict.fromkeys(
        "Idefics3ForConditionalGeneration SmolVLMForConditionalGeneration".split(),
        "input_ids=marked/4/13 attention_mask=ones/13 pixel_values=real/1x3x32x32",
    ),
    "Kosmos2ForConditionalGeneration": f"{TEXT} pixel_values=real/3x32x32 image_embeds_position_mask=four/13",
    **dict.fromkeys("Qwen2VLForConditionalGeneration Qwen2_5_VLForConditionalGeneration".split(), TEXT),
    "Qwen3VLForConditionalGeneration": TEXT,
    "XCLIPModel": f"{TEXT} pixel_values=real/2x3x32x32",
    # series, queries, and a decoder whose mask the model would otherwise make by looking at the tokens
    "FSMTForConditionalGeneration": f"{TEXT} decoder_input_ids=ids/11 decoder_attention_mask=padded/11",
    **dict.fromkeys(
        "AutoformerModel InformerModel InformerModel/undistilled TimeSeriesTransformerModel".split(),
        "past_values=real/14 past_time_features=real/14x1 past_observed_mask=unit/14 future_values=real/5 future_time_features=real/5x1",
    ),
    "Blip2QFormerModel": "query_embeds=real/5x32 encoder_hidden_states=real/7x22",
    "DecisionTransformerModel": "states=real/13x7 actions=real/13x5 rewards=real/13x1 returns_to_go=real/13x1 timesteps=ids/13",
    "PatchTSMixerForPrediction": "past_values=real/32x5",
    "PatchTSTForPrediction": "past_values=real/32x5",
    "TimesFmModel": "past_values=real/32 past_values_padding=zeros/32 freq=zeros/1",
}

#: captured with fixed sizes: torch takes minutes over the symbolic sizes of their unrolled scans
FIXED = frozenset(
    """FalconH1ForCausalLM GraniteMoeHybridForCausalLM KimiLinearForCausalLM OlmoHybridForCausalLM Qwen3NextForCausalLM
    Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM""".split()
)


@dataclass(frozen=True)
class Row:
    """One architecture: a class of `transformers` and its inputs in words; `dynamic` where torch captures symbolic sizes in time."""

    name: str
    inputs: str
    dynamic: bool

    def build(self) -> tuple[nn.Module, Mapping[str, Any]]:
        """The model and its keyword inputs."""
        transformers = importlib.import_module("transformers")
        tiny = importlib.import_module("zoo.tiny")
        kind = getattr(transformers, self.name.partition("/")[0])
        return tiny.tiny_model(kind, OVERRIDES.get(self.name, {})), parse_inputs(self.inputs)


FAMILIES = (
    (DECODERS, TEXT),
    (ENCODERS, TEXT),
    (ENCODER_DECODERS, f"{TEXT} decoder_input_ids=ids/11"),
    (IMAGES, "pixel_values=real/3x32x32"),
    (WAVES, "input_values=real/400"),
)

_WORDS = {**{name: inputs for names, inputs in FAMILIES for name in names.split()}, **OTHERS}

ROWS = {name: Row(name, inputs, name not in FIXED) for name, inputs in _WORDS.items()}
