"""Small random configurations of decoders that transformers has: what the architecture study runs, one line each.

A new architecture is added here; `sq study architectures` then finds out whether it is right or refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 384,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}
WINDOW = {"sliding_window": 384}
ALTERNATING = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
NO_HEAD_DIM = {"head_dim": None}  # configurations that compute it
BY_EXPERT = {"kv_channels": 16}


def rope(kind: str = "default", **parameters: Any) -> dict[str, Any]:
    """Rotary parameters of a configuration."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


LONGROPE = rope(
    "longrope",
    short_factor=[1 + 0.05 * i for i in range(8)],
    long_factor=[1.5 + i for i in range(8)],
    original_max_position_embeddings=512,
    factor=8.0,
)
LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512)
MROPE = rope(mrope_section=[2, 3, 3])
EYE = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_EYE = {"depth": 1, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "out_hidden_size": 64}


CLIP = {"model_type": "clip_vision_model", **EYE}
SIGLIP = {"model_type": "siglip_vision_model", **EYE}
GLM_EYE = {**QWEN_EYE, "intermediate_size": 32, "image_size": 28}
MLLAMA_EYE = {
    **EYE,
    "num_global_layers": 1,
    "vision_output_dim": 64,
    "intermediate_layers_indices": [0],
    "supported_aspect_ratios": [[1, 1]],
    "max_num_tiles": 1,
    "attention_heads": 2,
}
TILES = {"image_token_index": 380, "image_grid_pinpoints": [[28, 28]]}
IN_WRAPPER = "text decoder of a vision model"
LLAMA, QWEN2 = {"model_type": "llama"}, {"model_type": "qwen2"}


def by_kind(full: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters of full layers; sliding layers have plain RoPE."""
    own = {"full_attention": full["rope_parameters"], "sliding_attention": rope()["rope_parameters"]}
    return {"rope_parameters": own}


@dataclass(frozen=True)
class Architecture:
    """A configuration of `model_type`. what: its attention in words. changes: over `COMMON` (None leaves a field out).

    text: changes are for the text decoder inside a wrapper, `parts` are the wrapper's other fields.
    """

    model_type: str
    what: str
    changes: dict[str, Any] = field(default_factory=dict)
    variant: str = ""
    parts: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.model_type} ({self.variant})" if self.variant else self.model_type

    def fields(self) -> dict[str, Any]:
        """Keyword arguments of the configuration."""
        own = {k: v for k, v in {**COMMON, **self.changes}.items() if v is not None}
        return own if self.parts is None else {"text_config": own, **self.parts}


ARCHITECTURES = (
    Architecture("llama", "RoPE in halves"),
    Architecture("llama", "RoPE, linear scaling", rope("linear", factor=8.0), "linear"),
    Architecture(
        "llama", "RoPE, dynamic NTK", {**rope("dynamic", factor=4.0), "max_position_embeddings": 512}, "dynamic"
    ),
    Architecture("llama", "RoPE, YaRN", rope("yarn", factor=8.0, original_max_position_embeddings=512), "yarn"),
    Architecture("llama", "RoPE, Llama 3 scaling", LLAMA3, "llama3"),
    Architecture("phi3", "fused projections, partial RoPE", {"partial_rotary_factor": 0.5}),
    Architecture("phi3", "longrope", {**LONGROPE, "original_max_position_embeddings": 512}, "longrope"),
    Architecture("mistral", "sliding window", WINDOW),
    Architecture("ministral", "sliding and full layers", ALTERNATING),
    Architecture("ministral3", "full attention, scaled queries"),
    Architecture("mixtral", "experts", EXPERTS),
    Architecture("qwen2", "biases"),
    Architecture(
        "qwen2",
        "biases, sliding and full layers",
        {**ALTERNATING, "use_sliding_window": True, "max_window_layers": 1},
        "sliding",
    ),
    Architecture("qwen2_moe", "experts", {**EXPERTS, "decoder_sparse_step": 1}),
    Architecture("qwen3", "query and key norms"),
    Architecture("qwen3_moe", "query and key norms, experts", EXPERTS),
    Architecture("gemma", "one RoPE, wide heads"),
    Architecture("gemma2", "soft-capped scores, sliding and full layers", {**ALTERNATING, "query_pre_attn_scalar": 16}),
    Architecture("gemma3_text", "two RoPEs, sliding and full layers", {**ALTERNATING, "query_pre_attn_scalar": 16}),
    Architecture(
        "gemma3_text",
        "RoPE and longrope by kind of layer",
        {**ALTERNATING, "query_pre_attn_scalar": 16, **by_kind(LONGROPE)},
        "longrope",
    ),
    Architecture(
        "gemma3_text",
        "RoPE and dynamic NTK by kind of layer",
        {
            **ALTERNATING,
            "query_pre_attn_scalar": 16,
            "max_position_embeddings": 512,
            **by_kind(rope("dynamic", factor=4.0)),
        },
        "dynamic",
    ),
    Architecture(
        "gemma3n_text",
        "layers that share keys and values",
        {
            **WINDOW,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "intermediate_size": [96] * 4,
            "activation_sparsity_pattern": [0.0] * 4,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 384,
            "laurel_rank": 8,
        },
    ),
    Architecture("vaultgemma", "sliding and full layers", {**ALTERNATING, "query_pre_attn_scalar": 16}),
    Architecture("gpt2", "learned positions, one head a key", NO_HEAD_DIM),
    Architecture("gpt_bigcode", "learned positions, one key for all heads", NO_HEAD_DIM),
    Architecture("opt", "learned positions", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    Architecture("biogpt", "learned positions"),
    Architecture("bert", "learned positions", {"is_decoder": True}, "decoder"),
    Architecture("gpt_neox", "partial RoPE, fused projections"),
    Architecture("gpt_oss", "learnt sinks, sliding and full layers", {**EXPERTS, **WINDOW}),
    Architecture("phi", "partial RoPE"),
    Architecture("phimoe", "experts", {**EXPERTS, "original_max_position_embeddings": 512}),
    Architecture("stablelm", "partial RoPE"),
    Architecture("persimmon", "partial RoPE, query and key norms"),
    Architecture("nemotron", "partial RoPE"),
    Architecture("starcoder2", "biases"),
    Architecture("olmo", "RoPE in halves"),
    Architecture("olmo2", "norms over all heads"),
    Architecture("olmo3", "norms over all heads, sliding and full layers", ALTERNATING),
    Architecture("olmoe", "norms over all heads, experts", EXPERTS),
    Architecture("flex_olmo", "norms over all heads, experts", EXPERTS),
    Architecture("cohere", "interleaved RoPE"),
    Architecture("cohere2", "interleaved RoPE in sliding layers, none in full ones", ALTERNATING),
    Architecture("glm", "interleaved partial RoPE", {"partial_rotary_factor": 0.5}),
    Architecture("glm4", "interleaved partial RoPE", {"partial_rotary_factor": 0.5}),
    Architecture("glm4_moe", "partial RoPE, experts", {**EXPERTS, "partial_rotary_factor": 0.5}),
    Architecture("ernie4_5", "interleaved RoPE"),
    Architecture("ernie4_5_moe", "interleaved RoPE, experts", {**EXPERTS, "moe_num_experts": 4, "moe_k": 2}),
    Architecture("helium", "interleaved RoPE"),
    Architecture("granite", "scaled scores"),
    Architecture("granitemoe", "scaled scores, experts", EXPERTS),
    Architecture("granitemoeshared", "scaled scores, experts", EXPERTS),
    Architecture("exaone4", "query and key norms, sliding and full layers", ALTERNATING),
    Architecture("smollm3", "a layer without RoPE", {"no_rope_layers": [1, 0]}),
    Architecture("seed_oss", "biases"),
    Architecture("hunyuan_v1_dense", "query and key norms after RoPE"),
    Architecture("hunyuan_v1_moe", "query and key norms after RoPE, experts", EXPERTS),
    Architecture("apertus", "query and key norms"),
    Architecture("arcee", "RoPE in halves"),
    Architecture("bitnet", "ternary layers' shapes"),
    Architecture(
        "dots1", "query and key norms, experts", {**EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1}
    ),
    Architecture("minimax_m2", "partial RoPE, experts", EXPERTS),
    Architecture("modernbert-decoder", "sliding and full layers", {"local_attention": 384}),
    Architecture("nanochat", "RoPE that turns backwards, norms after RoPE"),
    Architecture("afmoe", "gated attention, sliding and full layers, experts", {**EXPERTS, **ALTERNATING}),
    Architecture("jais2", "biases"),
    Architecture("falcon", "one key for all heads", {**NO_HEAD_DIM, "alibi": False}),
    Architecture(
        "dbrx",
        "clipped projections, experts",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    Architecture(
        "gemma3",
        IN_WRAPPER,
        {**ALTERNATING, "query_pre_attn_scalar": 16},
        parts={
            "vision_config": EYE,
            "mm_tokens_per_image": 4,
            "image_token_index": 380,
            "boi_token_index": 381,
            "eoi_token_index": 382,
        },
    ),
    Architecture(
        "mistral3",
        IN_WRAPPER,
        {"model_type": "mistral"},
        parts={
            "vision_config": {"model_type": "pixtral", **EYE},
            "image_token_index": 380,
        },
    ),
    Architecture(
        "llava",
        IN_WRAPPER,
        {"model_type": "llama"},
        parts={
            "vision_config": {"model_type": "clip_vision_model", **EYE},
            "image_token_index": 380,
        },
    ),
    Architecture(
        "qwen2_vl",
        "positions on three axes",
        MROPE,
        parts={
            "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 14},
        },
    ),
    Architecture(
        "qwen2_5_vl",
        "positions on three axes",
        MROPE,
        parts={
            "vision_config": {**QWEN_EYE, "intermediate_size": 32, "fullatt_block_indexes": [0]},
        },
    ),
    Architecture(
        "qwen3_vl",
        "positions on three axes, interleaved",
        rope(mrope_section=[2, 3, 3], mrope_interleaved=True),
        parts={"vision_config": {**QWEN_EYE, "intermediate_size": 32, "deepstack_visual_indexes": [0]}},
    ),
    Architecture(
        "qwen3_vl_moe",
        "positions on three axes, interleaved; experts",
        {**EXPERTS, **rope(mrope_section=[2, 3, 3], mrope_interleaved=True)},
        parts={"vision_config": {**QWEN_EYE, "intermediate_size": 32, "deepstack_visual_indexes": [0]}},
    ),
    Architecture(
        "glm4v", "positions on three axes, in sections", MROPE, parts={"vision_config": GLM_EYE, "image_token_id": 380}
    ),
    Architecture("idefics3", IN_WRAPPER, LLAMA, parts={"vision_config": EYE, "image_token_id": 380, "scale_factor": 1}),
    Architecture(
        "internvl",
        IN_WRAPPER,
        QWEN2,
        parts={"vision_config": {**EYE, "image_size": [28, 28], "patch_size": [14, 14]}, "image_token_id": 380},
    ),
    Architecture("llava_next", IN_WRAPPER, LLAMA, parts={"vision_config": CLIP, **TILES}),
    Architecture("llava_onevision", IN_WRAPPER, QWEN2, parts={"vision_config": SIGLIP, **TILES}),
    Architecture("cohere2_vision", IN_WRAPPER, {"model_type": "cohere2"}, parts={"vision_config": SIGLIP}),
    Architecture(
        "aya_vision", IN_WRAPPER, {"model_type": "cohere"}, parts={"vision_config": SIGLIP, "image_token_index": 380}
    ),
    Architecture("fuyu", IN_WRAPPER, {"model_type": "persimmon"}, parts={"hidden_size": 64}),
    Architecture(
        "paligemma",
        "text read in both directions",
        {"model_type": "gemma"},
        parts={"vision_config": SIGLIP, "image_token_index": 380, "projection_dim": 64, "hidden_size": 64},
    ),
    Architecture(
        "mllama",
        "layers that read images alone",
        {"cross_attention_layers": [1], "num_hidden_layers": 3},
        parts={"vision_config": MLLAMA_EYE},
    ),
    Architecture("falcon", "ALiBi", {**NO_HEAD_DIM, "alibi": True}, "alibi"),
    Architecture("bloom", "ALiBi"),
    Architecture("mpt", "ALiBi", {"d_model": 64, "n_heads": 4, "n_layers": 2}),
    Architecture("gptj", "interleaved RoPE, attention of its own", {"rotary_dim": 8}),
    Architecture("codegen", "interleaved RoPE, attention of its own", {"rotary_dim": 8}),
    Architecture(
        "gpt_neo", "learned positions, local layers", {"attention_types": [[["global", "local"], 1]], "num_layers": 2}
    ),
    Architecture("xglm", "sinusoidal positions, attention of its own"),
    Architecture("bert", "no decoder", variant="encoder"),
    Architecture(
        "deepseek_v2", "multi-head latent attention", {**EXPERTS, "num_key_value_heads": 4, "kv_lora_rank": 32}
    ),
    Architecture(
        "deepseek_v3", "multi-head latent attention", {**EXPERTS, "num_key_value_heads": 4, "kv_lora_rank": 32}
    ),
    Architecture("minicpm3", "multi-head latent attention", {"kv_lora_rank": 32, "q_lora_rank": 32}),
    Architecture("kimi_linear", "linear and latent attention", EXPERTS),
    Architecture("mimo_v2_flash", "values narrower than keys", EXPERTS),
    Architecture(
        "llama4_text",
        "chunked attention, complex RoPE",
        {**EXPERTS, "num_hidden_layers": 4, "attention_chunk_size": 64, "intermediate_size_mlp": 96},
    ),
    Architecture("jetmoe", "experts of attention", {**EXPERTS, **BY_EXPERT}),
    Architecture("doge", "masks made of values", EXPERTS),
    Architecture("diffllama", "differential attention"),
    Architecture("gemma4_unified_text", "layers of two shapes", EXPERTS),
    Architecture("moshi", "a window that its own cache does not keep", {"hidden_size": 64}),
    Architecture("mamba", "state space", {"state_size": 8}),
    Architecture("mamba2", "state space", {"state_size": 8, "num_heads": 8}),
    Architecture("jamba", "state space and attention", EXPERTS),
    Architecture("bamba", "state space and attention"),
    Architecture("falcon_h1", "state space and attention"),
    Architecture("granitemoehybrid", "state space and attention", EXPERTS),
    Architecture("nemotron_h", "state space and attention", EXPERTS),
    Architecture("recurrent_gemma", "recurrent and local layers"),
    Architecture("qwen3_next", "linear and full attention", EXPERTS),
    Architecture("lfm2", "convolutions and attention", {"full_attn_idxs": [1]}),
    Architecture("minimax", "linear and full attention", EXPERTS),
    Architecture("rwkv", "recurrent", {"attention_hidden_size": 64}),
    Architecture("xlstm", "recurrent"),
)
