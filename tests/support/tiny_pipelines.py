"""A tiny random pipeline of every family, built from configurations and a seed; nothing is shipped or fetched.

Strides are smaller than the published ones and differ in time and space, so that what assumes the usual ones fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tokenizers import AddedToken
from torch import nn
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    Gemma2Model,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from pipeline.config import VideoModelConfig
from pipeline.models import open_model
from pipeline.models.diffusers_model import DiffusersModel

TOKENIZER = Path(__file__).parents[2] / "pipeline/weights/wan-demo/tokenizer"
WIDTH = 32  # of text embeddings
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Tiny:
    """How a family's tiny pipeline is made, and at which frames, height and width it is tested."""

    make: Callable[[], Any]
    geometry: tuple[int, int, int]
    settings: dict[str, Any] = field(default_factory=dict)  # of `model`
    timesteps: tuple[float, ...] = (751.0,)


def tokenizer(length: int = 512) -> Any:
    made = AutoTokenizer.from_pretrained(TOKENIZER)
    made.model_max_length = length
    return made


def with_prefix(made: Any, prefix: str, count: int) -> Any:
    """A tokenizer in which a template is as many tokens as the pipeline cuts off: with any other one every caption
    would be cut off with it, and all of them alike."""
    head = prefix[: len(prefix) - (count - 1)]
    pieces = [head, *prefix[len(head) :]]
    made.add_tokens([AddedToken(piece, normalized=False, special=True) for piece in dict.fromkeys(pieces)])
    assert len(made(prefix, add_special_tokens=False).input_ids) == count
    return made


def t5() -> nn.Module:
    torch.manual_seed(0)
    return T5EncoderModel(T5Config(vocab_size=512, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4)).eval()


def umt5() -> nn.Module:
    torch.manual_seed(0)
    settings = UMT5Config(vocab_size=512, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4, pad_token_id=0)
    return UMT5EncoderModel(settings).eval()


def filled(module: nn.Module) -> Any:
    """No parameter is zero, so that each gets a gradient."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


def flow_steps(shift: float = 3.0) -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


# --- Wan --------------------------------------------------------------------------------------------------------------


def wan_vae(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {
        "base_dim": 3,
        "z_dim": 4,
        "dim_mult": [1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [True],
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [0.9, 1.1, 0.8, 1.3],
        "scale_factor_temporal": 2,
        "scale_factor_spatial": 2,
        **changes,
    }
    return filled(diffusers.AutoencoderKLWan(**settings))


def wan_transformer(seed: int = 0, kind: Any = diffusers.WanTransformer3DModel, **changes: Any) -> Any:
    torch.manual_seed(seed)
    settings = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": WIDTH,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
        **changes,
    }
    return filled(kind(**settings))


def wan(**parts: Any) -> Any:
    own = {
        "tokenizer": tokenizer(),
        "text_encoder": umt5(),
        "vae": wan_vae(),
        "scheduler": flow_steps(),
        "transformer": wan_transformer(),
        **parts,
    }
    return diffusers.WanPipeline(**own)


def wan_experts() -> Any:
    return wan(transformer_2=wan_transformer(1), boundary_ratio=0.875)


def wan_tokens() -> Any:
    vae = wan_vae(
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        decoder_base_dim=3,
        scale_factor_spatial=4,
    )
    return wan(vae=vae, scheduler=flow_steps(5.0), expand_timesteps=True)


def image_encoder() -> dict[str, Any]:
    torch.manual_seed(0)
    settings = CLIPVisionConfig(
        hidden_size=4,
        projection_dim=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        intermediate_size=16,
        patch_size=8,
    )
    processor = CLIPImageProcessor(crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32})
    return {"image_encoder": CLIPVisionModel(settings).eval(), "image_processor": processor}


def wan_image(**parts: Any) -> Any:
    own = {
        "tokenizer": tokenizer(),
        "text_encoder": umt5(),
        "vae": wan_vae(),
        "scheduler": flow_steps(),
        "transformer": wan_transformer(in_channels=10, image_dim=4, added_kv_proj_dim=24),
        **image_encoder(),
        **parts,
    }
    return diffusers.WanImageToVideoPipeline(**own)


def wan_image_experts() -> Any:
    return wan_image(
        transformer=wan_transformer(in_channels=10),
        transformer_2=wan_transformer(1, in_channels=10),
        boundary_ratio=0.9,
        image_encoder=None,
        image_processor=None,
    )


def wan_image_tokens() -> Any:
    parts = wan_tokens().components
    components = {name: parts[name] for name in ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")}
    return wan_image(**components, expand_timesteps=True, image_encoder=None, image_processor=None)


def skyreels() -> Any:
    return diffusers.SkyReelsV2Pipeline(
        tokenizer=tokenizer(),
        text_encoder=umt5(),
        vae=wan_vae(),
        scheduler=flow_steps(8.0),
        transformer=wan_transformer(kind=diffusers.SkyReelsV2Transformer3DModel),
    )


def sana() -> Any:
    torch.manual_seed(0)
    encoder = Gemma2Model(
        Gemma2Config(
            head_dim=16,
            hidden_size=8,
            intermediate_size=64,
            num_attention_heads=2,
            num_hidden_layers=1,
            num_key_value_heads=2,
            vocab_size=512,
            max_position_embeddings=4096,
            attn_implementation="eager",
        )
    )
    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=8,
        mlp_ratio=2.5,
        patch_size=(1, 2, 2),
        rope_max_seq_len=32,
    )
    return diffusers.SanaVideoPipeline(
        transformer=filled(transformer),
        vae=wan_vae(),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
        ),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer(4096),
    )


# --- LTX-Video --------------------------------------------------------------------------------------------------------


def ltx_scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )


def ltx() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        num_layers=2,
        caption_channels=WIDTH,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=2,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    vae.latents_mean.fill_(0.1)
    vae.latents_std.fill_(0.9)
    return diffusers.LTXPipeline(
        scheduler=ltx_scheduler(),
        vae=vae.eval(),
        text_encoder=t5(),
        tokenizer=tokenizer(128),
        transformer=filled(transformer),
    )


# --- LTX-2 ------------------------------------------------------------------------------------------------------------


def ltx2(later: bool = False) -> Any:
    """LTX-2; `later`: 2.3, with captions that are projected for picture and sound apart."""
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    torch.manual_seed(0)
    layers, width = 2, 16
    words = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2,
             "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 512, "sliding_window": 64}  # fmt: skip
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 28, "patch_size": 14}  # fmt: skip
    encoder = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=words, vision_config=sight, mm_tokens_per_image=4)
    )
    flags = ("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod", "perturbed_attn")
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        vae_scale_factors=(4, 8, 8),
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=4,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=width,
        rope_type="split",
        use_prompt_embeddings=not later,
        **dict.fromkeys(flags, later),
    )
    connectors = LTX2TextConnectors(
        caption_channels=width,
        text_proj_in_factor=layers + 1,
        video_connector_num_attention_heads=4 if later else 2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=8,
        video_gated_attn=later,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
        audio_gated_attn=later,
        connector_rope_base_seq_len=32,
        rope_type="split",
        per_modality_projections=later,
        video_hidden_dim=32,
        audio_hidden_dim=16,
        proj_bias=later,
    )
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 3,
        decoder_block_out_channels=(8, 16),
        layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 3,
        spatio_temporal_scaling=(True,) * 3,
        decoder_spatio_temporal_scaling=(True,) * 2,
        decoder_inject_noise=(False,) * 3,
        downsample_type=("spatial", "temporal", "spatiotemporal"),
        upsample_type=("spatiotemporal",) * 2,
        upsample_residual=(True,) * 2,
        upsample_factor=(2,) * 2,
        patch_size=2,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    )
    vae.latents_mean.fill_(0.1)
    vae.latents_std.fill_(0.9)
    sound = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=32,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16000,
    )
    return diffusers.LTX2Pipeline(
        scheduler=ltx_scheduler(),
        vae=vae.eval(),
        audio_vae=sound.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer(1024),
        connectors=filled(connectors),
        transformer=filled(transformer),
        vocoder=vocoder.eval(),
    )


# --- CogVideoX --------------------------------------------------------------------------------------------------------


def cogvideox(rope: bool = False, patch_t: int | None = None) -> Any:
    torch.manual_seed(0)
    more = {} if patch_t is None else {"patch_size_t": patch_t, "patch_bias": False}
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=rope,
        **more,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
        snr_shift_scale=1.0 if rope else 3.0,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    return diffusers.CogVideoXPipeline(
        tokenizer=tokenizer(226),
        text_encoder=t5(),
        vae=vae.eval(),
        transformer=filled(transformer),
        scheduler=scheduler,
    )


# --- HunyuanVideo -----------------------------------------------------------------------------------------------------


def hunyuan_vae() -> Any:
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.476986,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
        mid_block_add_attention=True,
    )
    return vae.eval()


def hunyuan() -> Any:
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    small = {"intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 512}
    llama = LlamaModel(LlamaConfig(hidden_size=16, pad_token_id=0, **small))
    clip = CLIPTextModel(
        CLIPTextConfig(hidden_size=8, projection_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=0, **small)
    )
    words = with_prefix(
        tokenizer(), DEFAULT_PROMPT_TEMPLATE["template"].split("{}")[0], DEFAULT_PROMPT_TEMPLATE["crop_start"]
    )
    llama.resize_token_embeddings(len(words))
    return diffusers.HunyuanVideoPipeline(
        transformer=filled(transformer),
        vae=hunyuan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=llama.eval(),
        text_encoder_2=clip.eval(),
        tokenizer=words,
        tokenizer_2=tokenizer(77),
    )


# --- Mochi ------------------------------------------------------------------------------------------------------------


def mochi() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        out_channels=None,
        qk_norm="rms_norm",
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=16,
    )
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1,) * 5,
    )
    return diffusers.MochiPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=vae.eval(),
        text_encoder=t5(),
        tokenizer=tokenizer(256),
        transformer=filled(transformer),
    )


# --- HunyuanVideo 1.5 -------------------------------------------------------------------------------------------------


def hunyuan15() -> Any:
    from diffusers.guiders import ClassifierFreeGuidance
    from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import format_text_input

    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=16,
        text_embed_2_dim=WIDTH,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    words = tokenizer()
    words.chat_template = CHAT
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    encoder = Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            vocab_size=512,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            rope_scaling=rope,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    made = diffusers.HunyuanVideo15Pipeline(
        transformer=filled(transformer),
        vae=vae.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=encoder.eval(),
        text_encoder_2=t5(),
        tokenizer=words,
        tokenizer_2=ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=1.0),
    )
    message = format_text_input(["\x00"], made.system_message)
    (whole,) = words.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    with_prefix(words, whole.split("\x00")[0], made.prompt_template_encode_start_idx)
    encoder.resize_token_embeddings(len(words))
    return made


# --- Kandinsky 5 ------------------------------------------------------------------------------------------------------


def kandinsky5() -> Any:
    torch.manual_seed(0)
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    words = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2, "rope_scaling": rope, "pad_token_id": 0,
             "eos_token_id": 1}  # fmt: skip
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=words, vision_config=sight))
    small = {"intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 512}
    clip = CLIPTextModel(
        CLIPTextConfig(hidden_size=16, projection_dim=16, bos_token_id=0, eos_token_id=1, pad_token_id=0, **small)
    )
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        out_visual_dim=4,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(2, 2, 4),
        visual_cond=True,
        attention_type="regular",
    )
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer(), Qwen2VLVideoProcessor(), chat_template=CHAT)
    made = diffusers.Kandinsky5T2VPipeline(
        transformer=filled(transformer),
        vae=hunyuan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder=encoder.eval(),
        tokenizer=processor,
        text_encoder_2=clip.eval(),
        tokenizer_2=tokenizer(77),
    )
    before = made.prompt_template.split("{}")[0]
    with_prefix(processor.tokenizer, before, made.prompt_template_encode_start_idx)
    encoder.resize_token_embeddings(len(processor.tokenizer))
    return made


TINY = {
    "wan2.1": Tiny(wan, (5, 16, 32), {"text_tokens": 16}),
    "wan2.2-a14b": Tiny(wan_experts, (5, 16, 32), {"text_tokens": 16}, (951.0, 751.0)),
    "wan2.2-ti2v-5b": Tiny(wan_tokens, (5, 32, 48), {"text_tokens": 16}),
    "ltx-video": Tiny(ltx, (9, 32, 64), {"text_tokens": 16}),
    "ltx-2": Tiny(ltx2, (9, 32, 64), {"text_tokens": 16}),
    "ltx-2.3": Tiny(lambda: ltx2(later=True), (9, 32, 64), {"text_tokens": 16}),
    "cogvideox-2b": Tiny(cogvideox, (9, 64, 64), {"text_tokens": 16}, (494.0,)),
    "cogvideox-5b": Tiny(lambda: cogvideox(rope=True), (9, 32, 48), {"text_tokens": 16}, (633.0,)),
    "cogvideox-1.5": Tiny(lambda: cogvideox(rope=True, patch_t=2), (9, 32, 48), {"text_tokens": 16}, (633.0,)),
    "wan2.1-i2v": Tiny(wan_image, (5, 16, 32), {"text_tokens": 512}),
    "wan2.2-i2v-a14b": Tiny(wan_image_experts, (5, 16, 32), {"text_tokens": 16}, (951.0, 751.0)),
    "wan2.2-ti2v-5b-image": Tiny(wan_image_tokens, (5, 32, 48), {"text_tokens": 16}),
    "skyreels-v2": Tiny(skyreels, (5, 16, 32), {"text_tokens": 16}),
    "sana-video": Tiny(sana, (5, 32, 32), {"text_tokens": 16}),
    "hunyuanvideo": Tiny(hunyuan, (9, 32, 48), {"text_tokens": 16}),
    "mochi": Tiny(mochi, (13, 32, 48), {"text_tokens": 16}),
    "hunyuanvideo-1.5": Tiny(hunyuan15, (5, 16, 24), {"text_tokens": 32}),
    "kandinsky-5": Tiny(kandinsky5, (5, 16, 32), {"text_tokens": 32}),
}


def fixtures(names: Sequence[str]) -> tuple[Any, Any]:
    """Two fixtures of a module: `family`, each of these names in turn, and `folder`, with the pipeline of that family.
    ``family, folder = tiny_pipelines.fixtures(FAMILIES)`` names them."""

    @pytest.fixture(scope="module", params=names)
    def each(request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(scope="module")
    def place(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return folder(tmp_path_factory, family)

    return each, place


def folder(factory: pytest.TempPathFactory, name: str) -> Path:
    return _written(factory.getbasetemp() / "tiny_pipelines" / name, name)


@cache
def _written(path: Path, name: str) -> Path:
    TINY[name].make().save_pretrained(path)
    return path


def config(path: Path, name: str, **changes: Any) -> VideoModelConfig:
    values = {"id": str(path), "dtype": "float32", "gradient_checkpointing": False, **TINY[name].settings, **changes}
    return VideoModelConfig.model_validate(values)


def opened(path: Path, name: str, **changes: Any) -> DiffusersModel:
    model = open_model(config(path, name, **changes), torch.device("cpu"))
    assert isinstance(model, DiffusersModel)
    if name == "hunyuanvideo-1.5":
        model.pipeline.vision_num_semantic_tokens = 4  # of an image that is not there; 729 take most of the time
        model.pipeline.tokenizer_2_max_length = 8
    return model
