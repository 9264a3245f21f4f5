"""What a config that leaves something out means: the constructors' defaults of diffusers 0.42 and transformers 5, as data.

`DEFAULTS` holds the keys that change what a graph computes. `IGNORED` holds those that do not: sizes that a program is not bound to,
what counts in training alone, parts of the model that are other graphs, and what describes the file. A test compares both with the
libraries' signatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNET: Mapping[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_head_dim": 8,
    "attention_type": "default",
    "block_out_channels": (320, 640, 1280, 1280),
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 1280,
    "cross_attention_norm": None,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "upcast_attention": False,
    "use_linear_projection": False,
}

VAE_DECODER: Mapping[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": (64,),
    "latent_channels": 4,
    "layers_per_block": 1,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "out_channels": 3,
    "up_block_types": ("UpDecoderBlock2D",),
    "use_post_quant_conv": True,
}

TEXT_ENCODER: Mapping[str, Any] = {
    "hidden_act": "quick_gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {"unet": UNET, "vae_decoder": VAE_DECODER, "text_encoder": TEXT_ENCODER}

IGNORED: Mapping[str, frozenset[str]] = {
    "unet": frozenset({"sample_size", "dropout"}),
    "vae_decoder": frozenset(
        {
            "sample_size",
            # The encoder is no part of the decoder.
            "in_channels",
            "down_block_types",
            "use_quant_conv",
            # Applied to the latents by whoever calls the decoder.
            "scaling_factor",
            "shift_factor",
            "latents_mean",
            "latents_std",
            "force_upcast",
        }
    ),
    "text_encoder": frozenset(
        {
            "architectures",
            "attention_dropout",
            "chunk_size_feed_forward",
            "dropout",
            "dtype",
            "id2label",
            "initializer_factor",
            "initializer_range",
            "is_encoder_decoder",
            "label2id",
            "model_type",
            "output_attentions",
            "output_hidden_states",
            "problem_type",
            # The projection and the token that is pooled count for the pooled output, which Stable Diffusion does not use.
            "projection_dim",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "return_dict",
            "torch_dtype",
            "transformers_version",
        }
    ),
}

PER_BLOCK: Mapping[str, frozenset[str]] = {
    "unet": frozenset(
        {"attention_head_dim", "cross_attention_dim", "layers_per_block", "only_cross_attention", "transformer_layers_per_block"}
    ),
    "vae_decoder": frozenset(),
    "text_encoder": frozenset(),
}
"""Keys that hold one value for all blocks, or a list of one for each block: both forms are the same graph."""
