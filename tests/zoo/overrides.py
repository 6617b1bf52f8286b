"""Overrides of configurations, beyond `tiny.TINY`: only sizes, never a hint about structure."""

# ruff: noqa: PIE800, SIM905 (a ** keeps sizes that belong together on one line)

from __future__ import annotations

from typing import Any

MLA = {"head_dim": 4, "num_key_value_heads": 4}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 6,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
}
MROPE = {
    "text_config": {
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    }
}
SPELLING = {
    "pronunciation_vocab_size": 91,
    "shape_vocab_size": 89,
    "pronunciation_embed_dim": 12,
    "shape_embed_dim": 14,
}
STAGES = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 1]}
PYRAMID = {**STAGES, "num_attention_heads": [1, 2, 4, 5], "decoder_hidden_size": 24}
SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}
WAVES = {"conv_dim": [12, 14], "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_feat_extract_layers": 2}
SPEECH = {**WAVES, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "vocab_size": 99}
CODEC = {"codebook_size": 32, "hidden_size": 16, "upsampling_ratios": [4, 2]}
SERIES = {
    "prediction_length": 5,
    "context_length": 12,
    "lags_sequence": [1, 2],
    "input_size": 1,
    "num_time_features": 1,
}
IMAGE = {"image_token_id": 5, "image_token_index": 5}

TEXT: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        """AXK1ForCausalLM AXK2ForCausalLM DeepseekV3ForCausalLM DeepseekV32ForCausalLM Glm4MoeLiteForCausalLM
        GlmMoeDsaForCausalLM MiniCPM3ForCausalLM YoutuForCausalLM""".split(),
        MLA,
    ),
    "BambaForCausalLM": {**MAMBA2, "attn_layer_indices": [1]},
    "CodeGenForCausalLM": {"rotary_dim": 4},
    "DeepseekV3ForCausalLM": {
        **MLA,
        "first_k_dense_replace": 1,
        "num_experts_per_tok": 2,
        "n_group": 3,
        "topk_group": 2,
    },
    "DeepseekV2ForCausalLM": {**MLA, "num_experts_per_tok": 2},
    "Dots1ForCausalLM": {
        "n_shared_experts": 1,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
    "Dots3NoteForCausalLM": {"num_key_value_heads": 4},
    "EsmForMaskedLM": {"vocab_size": 99, "pad_token_id": 0, "mask_token_id": 3},
    "EsmcForMaskedLM": {"num_key_value_heads": 4},
    "FSMTForConditionalGeneration": {"src_vocab_size": 99, "tgt_vocab_size": 99},
    "FlaubertWithLMHeadModel": {"n_words": 99, "emb_dim": 32, "vocab_size": 99},
    "GPT2ForSequenceClassification": {"pad_token_id": 0},
    "GPTJForCausalLM": {"rotary_dim": 4},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "Gemma4ForCausalLM": {"vocab_size_per_layer_input": 99, "hidden_size_per_layer_input": 6},
    "GraniteMoeHybridForCausalLM": {**MAMBA2, "layer_types": ["mamba", "attention"]},
    "HunYuanDenseV1ForCausalLM": {"head_dim": 8},
    "HunYuanMoEV1ForCausalLM": {"head_dim": 8},
    "JambaForCausalLM": {
        **{
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
        **{"use_mamba_kernels": False, "mamba_d_state": 6, "mamba_dt_rank": 5},
    },
    "JetMoeForCausalLM": {"kv_channels": 8},
    "KimiLinearForCausalLM": {"num_experts_per_token": 2},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "LongcatFlashForCausalLM": {
        **MLA,
        "ffn_hidden_size": 40,
        "expert_ffn_hidden_size": 24,
        "zero_expert_num": 2,
        "moe_topk": 2,
    },
    "LukeForMaskedLM": {"entity_vocab_size": 30, "entity_emb_size": 20},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8, "state_size": 6, "n_groups": 2, "chunk_size": 8},
    "MinistralForCausalLM": {"head_dim": 8},
    "MusicgenForCausalLM": {"num_codebooks": 1},
    "MusicgenMelodyForCausalLM": {"num_codebooks": 1},
    "NemotronForCausalLM": {"num_key_value_heads": 2},
    "NeoMMEForMaskedLM": {"head_dim": 16},
    "PerceiverForMaskedLM": {
        **{"d_latents": 24, "num_latents": 7, "num_self_attends_per_block": 2},
        **{"num_self_attention_heads": 4, "num_cross_attention_heads": 4},
    },
    "RecurrentGemmaForCausalLM": {"lru_width": 32, "attention_window_size": 8},
    "ReformerForMaskedLM": {"is_decoder": False, "axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "ReformerModelWithLMHead": {"is_decoder": True, "axial_pos_embds": False},
    "RoCBertForCausalLM": SPELLING,
    "RoCBertForMaskedLM": SPELLING,
    "SqueezeBertForMaskedLM": {"embedding_size": 32},
    "XLMWithLMHeadModel": {"n_words": 99, "emb_dim": 32, "vocab_size": 99},
    "XmodForCausalLM": {"default_language": "en_XX", "languages": ["en_XX"]},
    "XmodForMaskedLM": {"default_language": "en_XX", "languages": ["en_XX"]},
    "Zamba2ForCausalLM": {"use_mem_rope": True},
    "ZambaForCausalLM": {"use_mamba_kernels": False, "mamba_d_state": 6, "mamba_dt_rank": 5},
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
    "xLSTMForCausalLM": {"num_blocks": 2, "chunk_size": 8},
}

VISION: dict[str, dict[str, Any]] = {
    "BitForImageClassification": {"embedding_size": 16, **STAGES, "num_groups": 4},
    "ConvNextForImageClassification": STAGES,
    "ConvNextV2ForImageClassification": STAGES,
    "CvtForImageClassification": {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    "DINOv3ConvNextModel": STAGES,
    "DPTForDepthEstimation": {
        **{"backbone_out_indices": [0, 1], "neck_hidden_sizes": [12, 16], "fusion_hidden_size": 20},
        **{"reassemble_factors": [2, 1], "is_hybrid": False},
    },
    "DepthAnythingForDepthEstimation": {
        "backbone_config": {
            "out_indices": [1, 2],
            "reshape_hidden_states": False,
            "apply_layernorm": True,
            "hidden_size": 32,
        },
        **{"reassemble_hidden_size": 32, "reassemble_factors": [2, 1], "neck_hidden_sizes": [12, 16]},
        **{"fusion_hidden_size": 20, "head_hidden_size": 10},
    },
    "Dinov2ForImageClassification/swiglu": {"use_swiglu_ffn": True},
    "DonutSwinForImageClassification": SWIN,
    "EfficientNetForImageClassification": {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.5,
        "hidden_dim": 320,
    },
    "GLPNForDepthEstimation": PYRAMID,
    "HGNetV2ForImageClassification": {
        **{
            "stem_channels": [3, 8, 12],
            "stage_in_channels": [12, 16, 24, 32],
            "stage_mid_channels": [6, 8, 10, 12],
        },
        **{"stage_out_channels": [16, 24, 32, 40], "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]},
        **{"embedding_size": 12, "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [2, 2, 2, 2]},
    },
    "HieraForImageClassification": {
        **{
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "image_size": [32, 32],
            "masked_unit_size": [4, 4],
        },
        **{"query_stride": [2, 2], "num_query_pool": 1, "embed_dim_multiplier": 2.0},
    },
    "InternVLVisionModel": {"image_size": [32, 32], "patch_size": [8, 8]},
    "LevitForImageClassification": {
        **{"hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1]},
        **{"key_dim": [6, 6, 6], "image_size": 64, "patch_size": 16},
    },
    "MaskFormerSwinModel": SWIN,
    "MgpstrForSceneTextRecognition": {
        **{"image_size": [32, 32], "patch_size": 4, "max_token_length": 5},
        **{"num_character_labels": 11, "num_bpe_labels": 13, "num_wordpiece_labels": 17},
    },
    "MobileViTForImageClassification": {
        **{"hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [8, 12, 16, 20, 24, 28, 32], "patch_size": 2},
    },
    "MobileViTV2ForImageClassification": {
        **{"n_attn_blocks": [1, 1, 1], "width_multiplier": 0.25, "base_attn_unit_dims": [64, 96, 128]},
        **{"image_size": 64, "patch_size": 2},
    },
    "PoolFormerForImageClassification": {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]},
    "PvtForImageClassification": {
        **{"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 5]},
    },
    "RegNetForImageClassification": {"embedding_size": 12, **STAGES, "groups_width": 8},
    "ResNetForImageClassification": {"embedding_size": 12, **STAGES, "layer_type": "basic"},
    "ResNetForImageClassification/bottleneck": {"embedding_size": 12, **STAGES},
    "SegformerForImageClassification": PYRAMID,
    "SegformerForSemanticSegmentation": PYRAMID,
    "Siglip2VisionModel": {"num_patches": 16},
    "Swin2SRForImageSuperResolution": {
        **SWIN,
        "patch_size": 1,
        "image_size": 16,
        "num_channels": 3,
        "num_channels_out": 3,
    },
    "SwinForImageClassification": {**SWIN, "window_size": 2},
    "Swinv2ForImageClassification": SWIN,
    "TextNetForImageClassification": {
        **{"stem_num_channels": 3, "stem_out_channels": 16, "hidden_sizes": [16, 16, 24, 32, 40]},
        "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3], [1, 3]], [[3, 1]], [[3, 3]]],
        "conv_layer_strides": [[1], [2, 1], [2], [2]],
    },
    "TimesformerForVideoClassification": {"num_frames": 4, "image_size": 16},
    "UperNetForSemanticSegmentation": {
        "backbone_config": {**STAGES, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
        **{"hidden_size": 16, "pool_scales": [1, 2], "auxiliary_in_channels": 32, "auxiliary_channels": 12},
    },
    "VJEPA2Model": {
        **{"crop_size": 16, "frames_per_clip": 4, "tubelet_size": 2},
        **{"pred_hidden_size": 24, "pred_num_attention_heads": 4, "pred_num_hidden_layers": 2},
    },
    "VideoMAEForVideoClassification": {"num_frames": 4, "tubelet_size": 2, "image_size": 16},
    "VivitForVideoClassification": {"num_frames": 4, "image_size": 16, "tubelet_size": [2, 8, 8]},
    "YolosForObjectDetection": {"num_detection_tokens": 5},
}

SOUND: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        "Wav2Vec2ForCTC HubertForCTC WavLMForCTC UniSpeechForCTC UniSpeechSatForCTC SEWForCTC SEWDForCTC".split(),
        SPEECH,
    ),
    "ASTForAudioClassification": {
        "max_length": 40,
        "num_mel_bins": 24,
        "frequency_stride": 6,
        "time_stride": 6,
    },
    "ClapAudioModel": {
        **{"spec_size": 32, "num_mel_bins": 8, "patch_embeds_hidden_size": 16, "depths": [1, 1]},
        **{
            "num_attention_heads": [2, 4],
            "window_size": 2,
            "hidden_size": 32,
            "patch_embed_input_channels": 1,
        },
    },
    "DacModel": {
        **{**CODEC, "encoder_hidden_size": 8, "decoder_hidden_size": 16, "downsampling_ratios": [2, 4]},
        **{"n_codebooks": 2, "codebook_dim": 4, "quantizer_dropout": 0},
    },
    "Data2VecAudioForCTC": {**SPEECH, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5},
    "EncodecModel": {**CODEC, "num_filters": 4, "codebook_dim": 16, "num_lstm_layers": 1},
    "MimiModel": {
        **{
            **CODEC,
            "num_filters": 4,
            "codebook_dim": 16,
            "hidden_size": 32,
            "num_quantizers": 2,
            "num_semantic_quantizers": 1,
        },
        **{"vector_quantization_hidden_dimension": 16, "upsample_groups": 32},
    },
    "Qwen2AudioEncoder": {"max_source_positions": 16},
    "Speech2TextForConditionalGeneration": {
        "input_feat_per_channel": 16,
        "conv_channels": 24,
        "num_conv_layers": 2,
    },
    "SpeechT5ForSpeechToText": {**SPEECH, "max_speech_positions": 64, "max_text_positions": 64},
    "SpeechT5HifiGan": {"model_in_dim": 16, "upsample_initial_channel": 16},
    "UnivNetModel": {
        "model_hidden_channels": 8,
        "model_in_channels": 8,
        "kernel_predictor_hidden_channels": 8,
    },
    "VitsModel": {
        **{"vocab_size": 99, "flow_size": 16, "upsample_initial_channel": 16, "spectrogram_bins": 20},
        **{"wavenet_dilation_rate": 1, "prior_encoder_num_flows": 2, "prior_encoder_num_wavenet_layers": 1},
        **{"posterior_encoder_num_wavenet_layers": 1, "duration_predictor_filter_channels": 24},
        **{"depth_separable_num_layers": 1, "duration_predictor_num_flows": 1},
    },
    "Wav2Vec2BertForCTC": {
        "feature_projection_input_dim": 18,
        "conv_depthwise_kernel_size": 5,
        "vocab_size": 99,
    },
    "Wav2Vec2ConformerForCTC": {**SPEECH, "conv_depthwise_kernel_size": 5},
    "Wav2Vec2ConformerForCTC/rotary": {
        **SPEECH,
        "conv_depthwise_kernel_size": 5,
        "position_embeddings_type": "rotary",
    },
    "Wav2Vec2ForSequenceClassification": {**SPEECH, "classifier_proj_size": 18},
    "WhisperForConditionalGeneration": {"max_source_positions": 16},
}

MIXED: dict[str, dict[str, Any]] = {
    "AutoformerModel": SERIES,
    "AyaVisionForConditionalGeneration": {**IMAGE, "downsample_factor": 2},
    "Blip2ForConditionalGeneration": {**IMAGE, "num_query_tokens": 4},
    "Blip2QFormerModel": {"encoder_hidden_size": 22},
    "BrosModel": {"dim_bbox_sinusoid_emb_2d": 32, "dim_bbox_projection": 8, "dim_bbox_sinusoid_emb_1d": 4},
    "CLIPSegForImageSegmentation": {"extract_layers": [0, 1], "reduce_dim": 16},
    "DPRReader": {"projection_dim": 0},
    "DecisionTransformerModel": {"state_dim": 7, "act_dim": 5, "max_ep_len": 40},
    "GroupViTModel": {
        "vision_config": {
            **{"depths": [1, 1, 1], "num_group_tokens": [6, 4, 0], "num_output_groups": [6, 4, 0]},
            **{"hidden_size": 32, "assign_mlp_ratio": [0.5, 4]},
        },
    },
    "Idefics3ForConditionalGeneration": {**IMAGE, "scale_factor": 2},
    "InformerModel": SERIES,
    "InformerModel/undistilled": {**SERIES, "distil": False},
    "InternVLForConditionalGeneration": {
        **IMAGE,
        "vision_config": {"image_size": [32, 32], "patch_size": [4, 4]},
    },
    "Kosmos2ForConditionalGeneration": {
        "latent_query_num": 4,
        "text_config": {"embed_dim": 32, "layers": 2, "attention_heads": 4, "ffn_dim": 40},
    },
    "LayoutLMv3ForSequenceClassification": {
        **{"coordinate_size": 5, "shape_size": 6, "visual_embed": False, "max_2d_position_embeddings": 64},
    },
    "LiltModel": {"channel_shrink_ratio": 2, "max_2d_position_embeddings": 64, "hidden_size": 48},
    "LlavaForConditionalGeneration": IMAGE,
    "LxmertModel": {"visual_feat_dim": 22, "l_layers": 2, "x_layers": 2, "r_layers": 2},
    "PaliGemmaForConditionalGeneration": {
        **IMAGE,
        "projection_dim": 32,
        "vision_config": {"projection_dim": 32},
    },
    "PatchTSMixerForPrediction": {
        **{"context_length": 32, "patch_length": 8, "patch_stride": 8, "num_input_channels": 5},
        **{"prediction_length": 7, "d_model": 16},
    },
    "PatchTSTForPrediction": {
        **{
            "context_length": 32,
            "patch_length": 8,
            "patch_stride": 8,
            "num_input_channels": 5,
            "prediction_length": 7,
        },
    },
    "Qwen2VLForConditionalGeneration": MROPE,
    "Qwen2_5_VLForConditionalGeneration": MROPE,
    "SmolVLMForConditionalGeneration": {**IMAGE, "scale_factor": 2},
    "TimeSeriesTransformerModel": SERIES,
    "TimesFmModel": {"patch_length": 8, "context_length": 32},
    "ViltModel": {"modality_type_vocab_size": 2},
    "VisualBertModel": {"visual_embedding_dim": 22},
    "XCLIPModel": {
        "vision_config": {
            **{
                "num_frames": 2,
                "mit_hidden_size": 32,
                "mit_num_attention_heads": 4,
                "mit_num_hidden_layers": 1,
            },
            "mit_intermediate_size": 40,
        },
        **{"prompt_layers": 1, "prompt_num_attention_heads": 4, "projection_dim": 32},
    },
}

OVERRIDES = {**TEXT, **VISION, **SOUND, **MIXED}
