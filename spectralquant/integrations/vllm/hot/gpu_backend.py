"""`HotGpuBackend`: vLLM's attention over hot codes in its own pages, on a GPU.

Opt in with `SPECTRALQUANT_HOT_PROFILE=PROFILE` in the server's environment and `--attention-backend CUSTOM` (see
`integrations.vllm.plugin`). vLLM gives this interface no stable contract: it is written for, and tested with, vllm 0.26.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadata,
    AttentionMetadataBuilder,
)
from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func, get_flash_attn_version
from vllm.v1.attention.backends.utils import split_decodes_and_prefills
from vllm.v1.kv_cache_interface import TQFullAttentionSpec

from spectralquant.errors import InputError
from spectralquant.geometry import BLOCK
from spectralquant.integrations.vllm.hot.gpu_attend import Piece, Pieces, attend_pieces
from spectralquant.integrations.vllm.hot.gpu_pages import HotPages, Sequences
from spectralquant.integrations.vllm.hot.layer import HotLayer, require_heads
from spectralquant.integrations.vllm.hot.profile import pages_profile
from spectralquant.integrations.vllm.hot.variable import hot_profile
from sqkernels.common.checks import MAX_GROUP


@functools.cache
def hot_pages() -> HotPages:
    """Of the profile that the environment names, on this process's GPU."""
    return HotPages(pages_profile(hot_profile()), torch.device("cuda", torch.cuda.current_device()))


def hot_spec(layer: Any, spec: Any) -> Any:
    """The engine's own description of a layer's cache, with pages as long as codes need them.

    Raises:
        InputError: the profile does not fit the layer.
    """
    hot = hot_pages()
    require_heads(spec, hot.geometry)
    return TQFullAttentionSpec(
        block_size=spec.block_size,
        num_kv_heads=spec.num_kv_heads,
        head_size=spec.head_size,
        head_size_v=spec.head_size_v,
        dtype=torch.uint8,
        tq_slot_size=hot.slot_bytes,
    )


class HotGpuBackend(AttentionBackend):
    """Pages of codes; see the module."""

    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto"]

    @staticmethod
    def get_name() -> str:
        """The entry that vLLM keeps for backends out of its tree."""
        return "CUSTOM"

    @staticmethod
    def get_supported_kernel_block_sizes() -> list[Any]:
        """Kernels read pages of 128 tokens."""
        return [BLOCK]

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int, block_size: int, num_kv_heads: int, head_size: int, cache_dtype_str: str = "auto"
    ) -> tuple[int, ...]:
        """As many bytes as `hot_spec` asks for; a page is one run of bytes."""
        return (num_blocks, num_kv_heads, block_size, hot_pages().slot_bytes)

    @staticmethod
    def get_impl_cls() -> type[HotGpuAttention]:
        """What computes."""
        return HotGpuAttention

    @staticmethod
    def get_builder_cls() -> type[HotGpuMetadataBuilder]:
        """What tells it about a step."""
        return HotGpuMetadataBuilder

    @classmethod
    def supports_kv_connector(cls) -> bool:
        """Connectors would take codes for keys and values."""
        return False


@dataclass
class HotGpuMetadata(AttentionMetadata):
    """One step: sequences with one query each, then pieces of prompts."""

    decodes: int
    sequences: Sequences
    pieces: Pieces | None


class HotGpuMetadataBuilder(AttentionMetadataBuilder[HotGpuMetadata]):
    """From what vLLM knows of a step. What captured graphs read is kept in the same tensors from step to step."""

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        if vllm_config.speculative_config is not None:
            raise InputError(
                "The hot backend reads one new token a sequence and pieces of prompts, not speculative tokens. Leave out "
                "--speculative-config, or unset SPECTRALQUANT_HOT_PROFILE."
            )
        self._init_reorder_batch_threshold(1, supports_spec_as_decode=False)
        captured = vllm_config.compilation_config.max_cudagraph_capture_size or 0
        count = max(vllm_config.scheduler_config.max_num_seqs, captured)
        pages = -(-vllm_config.model_config.max_model_len // BLOCK) + 1
        self.sequences = Sequences.empty(count, pages, device)
        self.page_bytes = kv_cache_spec.page_size_bytes * BLOCK // kv_cache_spec.block_size

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> HotGpuMetadata:
        """See vLLM."""
        m = common_attn_metadata
        if m.causal is not True:
            raise NotImplementedError("the hot backend reads causal attention alone")
        decodes, prefills, _, _ = split_decodes_and_prefills(m, decode_threshold=1)
        count = decodes + prefills
        sequences = self.sequences.fill(m.block_table_tensor[:count], m.seq_lens[:count], self.page_bytes)
        pieces = self._pieces(m, decodes, count, sequences) if prefills else None
        return HotGpuMetadata(decodes, sequences.rows(0, decodes), pieces)

    def _pieces(self, m: Any, first: int, last: int, sequences: Sequences) -> Pieces:
        starts, lengths = m.query_start_loc_cpu.tolist(), _lengths(m)
        each = [
            Piece(
                starts[i] - starts[first],
                starts[i + 1] - starts[first],
                lengths[i] - (starts[i + 1] - starts[i]),
                sequences.rows(i, i + 1),
            )
            for i in range(first, last)
        ]
        ends = (m.query_start_loc[first : last + 1] - starts[first]).to(torch.int32)
        return Pieces(each, ends, max(p.last - p.first for p in each))


def _lengths(m: Any) -> list[int]:
    """Tokens of each request; the engine's own copy on the CPU is exact for prompts."""
    known = m.seq_lens_cpu_upper_bound
    return (m.seq_lens if known is None else known).tolist()


class HotGpuAttention(HotLayer):
    """One layer."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        if self.num_heads > MAX_GROUP * (self.num_kv_heads or self.num_heads):
            raise InputError(
                f"{self.num_heads} query heads over {self.num_kv_heads} key heads are more than {MAX_GROUP} a key head, the most that "
                "the hot backend's kernel takes. Unset SPECTRALQUANT_HOT_PROFILE."
            )
        self.version = get_flash_attn_version(head_size=self.head_size)

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Code this step's tokens into their pages."""
        count = len(slot_mapping)
        shape = (count, self.num_kv_heads, self.head_size)
        hot_pages().write(
            extract_layer_index(layer.layer_name),
            kv_cache.flatten(1),
            slot_mapping,
            key[:count].view(shape),
            value[:count].view(shape),
        )

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: HotGpuMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attention of this step's queries."""
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("fused output quantization is not supported by the hot backend")
        if attn_metadata is None:
            return output.fill_(0)
        m, index, pages = attn_metadata, extract_layer_index(layer.layer_name), kv_cache.flatten(1)
        hot = hot_pages()
        shape = (self.num_kv_heads, self.head_size)
        query, out = (x.view(-1, self.num_heads, self.head_size) for x in (query, output))
        if m.decodes:
            out[: m.decodes] = hot.decode(index, pages, query[: m.decodes], m.sequences, self.scale)
        if m.pieces is not None:
            some = slice(m.decodes, m.decodes + m.pieces.each[-1].last)
            new = key[some].view(-1, *shape), value[some].view(-1, *shape)
            out[some] = attend_pieces(hot, index, pages, query[some], new, m.pieces, self._dense)
        return output

    def _dense(
        self, query: Tensor, keys: Tensor, values: Tensor, ends: Tensor | None, longest: int
    ) -> tuple[Tensor, Tensor]:
        causal = ends is not None
        firsts = [ends] * 2 if causal else [_one(x) for x in (query, keys)]
        version = {} if self.version is None else {"fa_version": self.version}
        return flash_attn_varlen_func(
            q=query,
            k=keys,
            v=values,
            cu_seqlens_q=firsts[0],
            cu_seqlens_k=firsts[1],
            max_seqlen_q=longest,
            max_seqlen_k=longest if causal else len(keys),
            softmax_scale=self.scale,
            causal=causal,
            return_softmax_lse=True,
            **version,
        )


def _one(x: Tensor) -> Tensor:
    """First token of the one sequence `x` and one past its last, without waiting for the device."""
    return torch.arange(2, dtype=torch.int32, device=x.device) * len(x)
