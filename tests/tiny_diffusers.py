"""Tiny, randomly initialised components of Diffusers pipelines: no download, and a call takes milliseconds."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

WIDTH = 16  # of text embeddings


class Words:
    """A tokenizer: every word is a number between 2 and 99; 0 begins, 1 ends and pads."""

    model_max_length = 8
    added_tokens_encoder: ClassVar[dict[str, int]] = {}

    def __call__(self, text: str | Sequence[str], **options: Any) -> Any:
        from transformers import BatchEncoding

        texts = [text] if isinstance(text, str) else list(text)
        length = options.get("max_length") or self.model_max_length
        ids = [([0, *(2 + sum(map(ord, word)) % 98 for word in one.split())] + [1] * length)[:length] for one in texts]
        mask = [[1] + [int(i != 1) for i in row[1:]] for row in ids]
        return BatchEncoding({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)})

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def batch_decode(self, ids: Tensor) -> list[str]:
        return [""] * len(ids)


def build(seed: int, make: Any, **options: Any) -> Any:
    """Build a module from a seed, ready for inference."""
    torch.manual_seed(seed)
    module = make(**options) if not hasattr(make, "config_class") else make(make.config_class(**options))
    return module.eval().requires_grad_(False)


def louder(module: Any, factor: float) -> Any:
    """Scale a network's last layer, so that a fresh network is not almost zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor) if parameter.ndim > 1 else None
    return module


def unet(channels: int = 4, out: int | None = None, **options: Any) -> Any:
    """Build the UNet of Stable Diffusion."""
    from diffusers import UNet2DConditionModel

    return build(
        0,
        UNet2DConditionModel,
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        in_channels=channels,
        out_channels=out or 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=options.pop("cross_attention_dim", WIDTH),
        attention_head_dim=options.pop("attention_head_dim", 4),
        norm_num_groups=4,
        **options,
    )


def unconditional_unet() -> Any:
    """Build a UNet on pixels."""
    from diffusers import UNet2DModel

    return build(
        0,
        UNet2DModel,
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )


def vae(channels: int = 4, **options: Any) -> Any:
    """Build the autoencoder: images of 16 pixels, latents of 8."""
    from diffusers import AutoencoderKL

    return build(
        1,
        AutoencoderKL,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **options,
    )


def clip(projected: bool = False) -> Any:
    """Build a text encoder of the CLIP kind."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    return build(
        2,
        CLIPTextModelWithProjection if projected else CLIPTextModel,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=100,
        max_position_embeddings=8,
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def t5() -> Any:
    """Build a text encoder of the T5 kind."""
    from transformers import T5EncoderModel

    return build(3, T5EncoderModel, d_model=WIDTH, d_ff=16, d_kv=4, num_heads=2, num_layers=2, vocab_size=100)


def stable_diffusion(name: str, scheduler: Any, channels: int = 4, **more: Any) -> Any:
    """Build a pipeline of the Stable Diffusion 1 and 2 family."""
    import diffusers

    return getattr(diffusers, name)(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=Words(),
        unet=unet(channels),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **more,
    )


def stable_diffusion_xl(name: str, scheduler: Any) -> Any:
    """Build a pipeline of the Stable Diffusion XL family."""
    import diffusers

    network = unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH,
    )
    return getattr(diffusers, name)(
        vae=vae(),
        text_encoder=clip(),
        text_encoder_2=clip(projected=True),
        tokenizer=Words(),
        tokenizer_2=Words(),
        unet=network,
        scheduler=scheduler,
    )


def stable_diffusion_3(name: str, scheduler: Any) -> Any:
    """Build a pipeline of the Stable Diffusion 3 family."""
    import diffusers

    transformer = build(
        0,
        diffusers.SD3Transformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
    )
    return getattr(diffusers, name)(
        transformer=transformer,
        scheduler=scheduler,
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(projected=True),
        tokenizer=Words(),
        text_encoder_2=clip(projected=True),
        tokenizer_2=Words(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux(name: str, scheduler: Any) -> Any:
    """Build a pipeline of the Flux family."""
    import diffusers

    transformer = build(
        0,
        diffusers.FluxTransformer2DModel,
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    return getattr(diffusers, name)(
        transformer=transformer,
        scheduler=scheduler,
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(),
        tokenizer=Words(),
        text_encoder_2=t5(),
        tokenizer_2=Words(),
    )


def dit(scheduler: Any) -> Any:
    """Build a class-conditional DiT pipeline with a learned variance, which the pipeline drops."""
    import diffusers

    transformer = build(
        0,
        diffusers.DiTTransformer2DModel,
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    return diffusers.DiTPipeline(transformer=transformer, vae=vae(), scheduler=scheduler)


def pixart(scheduler: Any) -> Any:
    """Build a PixArt pipeline."""
    import diffusers

    transformer = build(
        0,
        diffusers.PixArtTransformer2DModel,
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    return diffusers.PixArtSigmaPipeline(
        transformer=transformer, scheduler=scheduler, vae=vae(), text_encoder=t5(), tokenizer=Words()
    )


def wan(scheduler: Any) -> Any:
    """Build a text-to-video pipeline."""
    import diffusers

    video = build(
        1, diffusers.AutoencoderKLWan, base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    transformer = build(
        0,
        diffusers.WanTransformer3DModel,
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    return diffusers.WanPipeline(
        transformer=transformer, scheduler=scheduler, vae=video, text_encoder=t5(), tokenizer=Words()
    )


def animatediff(scheduler: Any) -> Any:
    """Build a text-to-video pipeline on the UNet of Stable Diffusion, with motion between its layers."""
    import diffusers

    motion = build(
        6,
        diffusers.MotionAdapter,
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )
    return diffusers.AnimateDiffPipeline(
        vae=vae(), text_encoder=clip(), tokenizer=Words(), unet=unet(), motion_adapter=motion, scheduler=scheduler
    )


def controlnet() -> Any:
    """Build a ControlNet for the UNet of Stable Diffusion, whose zero layers are not zero."""
    from diffusers import ControlNetModel

    network = build(
        4,
        ControlNetModel,
        block_out_channels=(8, 16),
        layers_per_block=1,
        in_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
        conditioning_embedding_out_channels=(8, 8),
    )
    torch.manual_seed(5)
    for block in [network.controlnet_mid_block, *network.controlnet_down_blocks]:
        torch.nn.init.normal_(block.weight, std=0.1)
    torch.nn.init.normal_(network.controlnet_cond_embedding.conv_out.weight, std=0.3)
    return network
