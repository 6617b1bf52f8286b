"""Models of text and sound: name to (call, inputs in words)."""

from __future__ import annotations

from typing import Any

from zoo.calls import Call, call

_LM: dict[str, Any] = {"num_tokens": 99, "dim": 32, "depth": 2, "heads": 4}
_HEADS = {"dim_head": 8}
_IDS = "x=ids/16"


def _decoder(**options: Any) -> tuple[Call, str]:
    """A language model of x-transformers with these options of its layers."""
    layers = call("x_transformers:Decoder", dim=32, depth=2, heads=4, attn_dim_head=8, **options)
    return call("x_transformers:TransformerWrapper", num_tokens=99, max_seq_len=32, attn_layers=layers), _IDS


X_TRANSFORMERS = {
    "x-transformers/Decoder": _decoder(),
    "x-transformers/rotary-swiglu-rmsnorm": _decoder(
        rotary_pos_emb=True, ff_swish=True, ff_glu=True, use_rmsnorm=True
    ),
    "x-transformers/alibi-grouped-heads": _decoder(alibi_pos_bias=True, attn_kv_heads=2),
    "x-transformers/talking-heads": _decoder(attn_pre_talking_heads=True, attn_post_talking_heads=True),
    "x-transformers/gated-residual": _decoder(gate_residual=True),
    "x-transformers/memory-tokens": (
        call(
            "x_transformers:TransformerWrapper",
            num_tokens=99,
            max_seq_len=32,
            num_memory_tokens=3,
            attn_layers=call("x_transformers:Encoder", dim=32, depth=2, heads=4, attn_dim_head=8),
        ),
        _IDS,
    ),
    "x-transformers/ViTransformerWrapper": (
        call(
            "x_transformers:ViTransformerWrapper",
            image_size=32,
            patch_size=8,
            num_classes=10,
            attn_layers=call("x_transformers:Encoder", dim=32, depth=2, heads=4, attn_dim_head=8),
        ),
        "img=real/3x32x32",
    ),
}


def _litgpt(**options: Any) -> tuple[Call, str]:
    sizes: dict[str, Any] = {
        "block_size": 32,
        "n_layer": 2,
        "n_embd": 32,
        "vocab_size": 99,
        "padding_multiple": 1,
        "n_head": 4,
        "norm_class_name": "RMSNorm",
        "mlp_class_name": "LLaMAMLP",
        "intermediate_size": 40,
        "parallel_residual": False,
        "bias": False,
    }
    return call("litgpt:GPT", call("litgpt:Config", **{**sizes, **options})), "idx=ids/16"


TEXT = {
    "litgpt/Llama": _litgpt(n_query_groups=2, rotary_percentage=1.0),
    "litgpt/Pythia": _litgpt(
        norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP", parallel_residual=True, bias=True
    ),
    "litgpt/Gemma": _litgpt(
        mlp_class_name="GemmaMLP", n_query_groups=1, scale_embeddings=True, final_logit_softcapping=30.0
    ),
    "mambapy/Mamba": (
        call("mambapy.mamba:Mamba", call("mambapy.mamba:MambaConfig", 24, 2, d_state=4, pscan=False)),
        "x=real/9x24",
    ),
    "performer-pytorch/PerformerLM": (
        call("performer_pytorch:PerformerLM", max_seq_len=16, nb_features=12, **_LM, **_HEADS),
        _IDS,
    ),
    "linformer/LinformerLM": (call("linformer:LinformerLM", 99, 32, 16, 2, k=6, heads=4), _IDS),
    "reformer-pytorch/ReformerLM": (
        call(
            "reformer_pytorch:ReformerLM",
            99,
            32,
            2,
            16,
            heads=4,
            dim_head=8,
            use_full_attn=True,
            ff_chunks=1,
        ),
        _IDS,
    ),
    "nystrom-attention/Nystromformer": (
        call("nystrom_attention:Nystromformer", dim=32, depth=2, heads=4, dim_head=8, num_landmarks=4),
        "x=real/16x32",
    ),
    "linear-attention-transformer/LinearAttentionTransformerLM": (
        call(
            "linear_attention_transformer:LinearAttentionTransformerLM",
            99,
            32,
            2,
            16,
            heads=4,
            dim_head=8,
            blindspot_size=1,
        ),
        _IDS,
    ),
    "local-attention/LocalTransformer": (
        call(
            "local_attention.transformer:LocalTransformer",
            max_seq_len=32,
            local_attn_window_size=4,
            num_residual_streams=1,
            **_LM,
            **_HEADS,
        ),
        _IDS,
    ),
    "g-mlp-pytorch/gMLP": (call("g_mlp_pytorch:gMLP", num_tokens=99, dim=32, depth=2, seq_len=16), _IDS),
    "mega-pytorch/Mega": (
        call(
            "mega_pytorch:Mega",
            num_tokens=99,
            dim=24,
            depth=2,
            ema_heads=4,
            attn_dim_qk=8,
            attn_dim_value=24,
            laplacian_attn_fn=True,
        ),
        _IDS,
    ),
    "minGRU-pytorch/minLM": (
        call("minGRU_pytorch.minLM:minLM", num_tokens=99, dim=24, depth=2),
        _IDS,
    ),
    "soft-moe-pytorch/SoftMoE": (
        call("soft_moe_pytorch:SoftMoE", 24, seq_len=16, num_experts=4),
        "x=real/16x24",
    ),
    "st-moe-pytorch/MoE": (call("st_moe_pytorch:MoE", 24, num_experts=4), "x=real/16x24"),
    "perceiver-pytorch/PerceiverIO": (
        call(
            "perceiver_pytorch:PerceiverIO",
            depth=2,
            dim=20,
            queries_dim=16,
            logits_dim=10,
            num_latents=6,
            latent_dim=24,
            latent_heads=2,
            cross_dim_head=8,
            latent_dim_head=8,
        ),
        "data=real/16x20 queries=real/5x16",
    ),
    "enformer-pytorch/Enformer": (
        call(
            "enformer_pytorch:Enformer",
            call(
                "enformer_pytorch:EnformerConfig",
                dim=48,
                depth=1,
                heads=4,
                output_heads={"human": 7},
                target_length=-1,
                attn_dim_key=8,
                num_downsamples=3,
                dim_divisible_by=12,
            ),
        ),
        "x=real/64x4",
    ),
}

_HIFIGAN: dict[str, Any] = {
    "resblock_type": "1",
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    "resblock_kernel_sizes": [3, 5],
    "upsample_kernel_sizes": [4, 4],
    "upsample_initial_channel": 32,
    "upsample_factors": [2, 2],
}
_SEANET: dict[str, Any] = {"dimension": 24, "n_filters": 4, "ratios": [2, 2]}

SPEECH = {
    "openai-whisper/Whisper": (
        call(
            "whisper.model:Whisper", call("whisper.model:ModelDimensions", 16, 20, 32, 4, 2, 99, 16, 32, 4, 2)
        ),
        "mel=real/16x40 tokens=ids/11",
    ),
    "speechbrain/ECAPA_TDNN": (
        call(
            "speechbrain.lobes.models.ECAPA_TDNN:ECAPA_TDNN",
            16,
            lin_neurons=20,
            channels=[32, 32, 32, 32, 48],
            attention_channels=12,
            res2net_scale=4,
            se_channels=12,
        ),
        "x=real/24x16",
    ),
    "speechbrain/Xvector": (
        call(
            "speechbrain.lobes.models.Xvector:Xvector",
            tdnn_channels=[24, 24, 24, 24, 40],
            lin_neurons=20,
            in_channels=16,
        ),
        "x=real/32x16",
    ),
    "speechbrain/MaskNet": (
        call("speechbrain.lobes.models.conv_tasnet:MaskNet", 16, 12, 20, 3, 2, 1, 2),
        "mixture_w=real/16x24",
    ),
    "speechbrain/CRDNN": (
        call(
            "speechbrain.lobes.models.CRDNN:CRDNN",
            input_shape=[None, None, 16],
            cnn_channels=[8, 12],
            rnn_layers=1,
            rnn_neurons=12,
            dnn_neurons=20,
            rnn_class=call("zoo.calls:named", "speechbrain.nnet.RNN:LSTM"),
        ),
        "x=real/12x16",
    ),
    "torchaudio/Conformer": (
        call("torchaudio.models:Conformer", 24, 4, 40, 2, 7),
        "input=real/12x24 lengths=full/12",
    ),
    "torchaudio/ConvTasNet": (
        call("torchaudio.models:ConvTasNet", 2, 8, 24, 3, 16, 20, 2, 2),
        "input=real/1x160",
    ),
    "torchaudio/WaveRNN": (
        call(
            "torchaudio.models:WaveRNN",
            upsample_scales=[2, 2],
            n_classes=16,
            hop_length=4,
            n_res_block=2,
            n_rnn=20,
            n_fc=24,
            n_freq=12,
            n_hidden=16,
            n_output=16,
        ),
        "waveform=real/1x20 specgram=real/1x12x9",
    ),
    "torchaudio/DeepSpeech": (call("torchaudio.models:DeepSpeech", 16, 24, 10), "x=real/1x12x16"),
    "conformer/Conformer": (
        call("conformer:Conformer", 32, depth=2, heads=4, dim_head=8, conv_kernel_size=7),
        "x=real/16x32",
    ),
    "torchcrepe/Crepe": (call("torchcrepe.model:Crepe", "tiny"), "x=real/1024"),
    "coqui-tts/HifiganGenerator": (
        call("TTS.vocoder.models.hifigan_generator:HifiganGenerator", 16, 1, **_HIFIGAN),
        "x=real/16x12",
    ),
    "coqui-tts/MelganGenerator": (
        call(
            "TTS.vocoder.models.melgan_generator:MelganGenerator",
            16,
            1,
            base_channels=32,
            upsample_factors=(2, 2),
            num_res_blocks=2,
        ),
        "c=real/16x12",
    ),
    "encodec/SEANetEncoder": (call("encodec.modules:SEANetEncoder", **_SEANET), "x=real/1x64"),
    "encodec/SEANetDecoder": (call("encodec.modules:SEANetDecoder", **_SEANET), "z=real/24x16"),
    "snac/SNAC": (
        call(
            "snac:SNAC",
            encoder_dim=8,
            encoder_rates=[2, 2],
            decoder_dim=32,
            decoder_rates=[2, 2],
            attn_window_size=None,
            codebook_size=16,
            codebook_dim=4,
            vq_strides=[2, 1],
            noise=False,
        ),
        "audio_data=real/1x64",
    ),
    "vocos/VocosBackbone": (call("vocos.models:VocosBackbone", 16, 24, 40, 2), "x=real/16x20"),
    "vocos/VocosResNetBackbone": (call("vocos.models:VocosResNetBackbone", 16, 24, 2), "x=real/16x20"),
    "demucs/Demucs": (
        call(
            "demucs.demucs:Demucs",
            ["a", "b"],
            channels=8,
            depth=3,
            norm_starts=2,
            dconv_attn=5,
            dconv_lstm=5,
            resample=False,
            norm_groups=2,
            normalize=False,
        ),
        "mix=real/2x400",
    ),
    "demucs/HDemucs": (
        call(
            "demucs.hdemucs:HDemucs",
            ["a", "b"],
            channels=8,
            nfft=256,
            depth=3,
            norm_groups=2,
            norm_starts=2,
            dconv_attn=5,
            dconv_lstm=5,
        ),
        "mix=real/2x2048",
    ),
    "bs-roformer/BSRoformer": (
        call(
            "bs_roformer:BSRoformer",
            16,
            depth=1,
            time_transformer_depth=1,
            freq_transformer_depth=1,
            freqs_per_bands=(2, 3, 4, 8, 16, 32),
            dim_head=8,
            heads=2,
            num_residual_streams=1,
            flash_attn=False,
            dim_freqs_in=65,
            stft_n_fft=128,
            stft_hop_length=64,
            stft_win_length=128,
        ),
        "raw_audio=real/512",
    ),
}

SEQUENCES: dict[str, tuple[Call, str]] = {**X_TRANSFORMERS, **TEXT, **SPEECH}
