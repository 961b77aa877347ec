"""`GraphedModel`: generation whose decode steps are CUDA graphs over hot codes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from spectralquant.cache.read.fused import shape_refusal
from spectralquant.errors import InputError
from spectralquant.geometry import BLOCK
from spectralquant.graphed.cache import IMPLEMENTATION, StaticSpectralCache, static_matrices
from spectralquant.graphed.fusion import fused
from spectralquant.graphed.greedy import Greedy
from spectralquant.graphed.select import Select, by_layer
from spectralquant.graphed.steps import GraphedSteps
from spectralquant.hooks.decoder import attention_modules, position_limit
from spectralquant.hooks.implementation import Switch, decoder_configs
from spectralquant.hooks.wrappers import model_device, usable_model
from spectralquant.models.probe import probe_geometry
from spectralquant.profile.model import CalibrationProfile


class GraphedModel:
    """`sq.GraphedModel(model, profile, max_tokens=33_024).generate(**inputs, max_new_tokens=256)`.

    Keys and values of layers that read everything are hot codes in buffers of fixed size. A decode step of the whole
    model is one CUDA graph, captured once for a batch size: it serves every length up to `max_tokens`, because lengths
    are counters on the device. Every 128 tokens a second graph codes the block that leaves the window. Sequences of a
    batch may have different lengths (left-padded, with an attention mask). The prompt is read by the model's own
    attention and coded layer by layer, so that no dense cache of the whole prompt is ever there.
    Without a GPU the same steps run one by one, read by the kernels' reference.

    Args:
        model: a decoder-only transformers model in evaluation mode, on one device.
        profile: its calibration profile, with a hot tier.
        max_tokens: tokens that a sequence can have, prompt and answer.
        batch: sequences of the first capture; another number is captured when it first comes.
        window: recent tokens that stay exact at least, a multiple of 128.
        select: a share (0.08) or number of the coded tokens that a step reads, by the index (None: all); or one for each
            layer that reads everything, such as `solve_shares` finds.

    Raises:
        InputError: what the steps cannot do, and what does it instead. ProfileError: the profile is for another model.
    """

    def __init__(
        self,
        model: nn.Module,
        profile: CalibrationProfile,
        *,
        max_tokens: int,
        batch: int = 1,
        window: int = BLOCK,
        select: Select | Sequence[Select] = None,
    ) -> None:
        if window < BLOCK or window % BLOCK:
            raise InputError(f"window={window} must be a positive multiple of the block size, {BLOCK}.")
        if batch < 1 or max_tokens < 1:
            raise InputError(f"batch={batch} and max_tokens={max_tokens} must be positive.")
        self.model = usable_model(model)
        limit = position_limit(self.model)
        if limit is not None and max_tokens > limit:
            raise InputError(f"max_tokens={max_tokens:,} is beyond the model's {limit:,} positions.")
        devices = {p.device for p in self.model.parameters()}
        if len(devices) > 1:
            raise InputError(f"The model is spread over {len(devices)} devices; graphs need one. Use SpectralCache.")
        profile.require_model(self.model)
        self.profile, self.geometry = profile, probe_geometry(self.model)
        why = shape_refusal(self.geometry.heads, self.geometry.kv_heads, self.geometry.head_dim)
        if why is not None:
            raise InputError(f"Kernels cannot read this model's cache: {why}. Use SpectralCache(kernels='torch').")
        self.max_tokens, self.window = max_tokens, window
        self.device = model_device(self.model)
        self.select = by_layer(select, self.geometry)
        self._matrices = static_matrices(profile, self.geometry, self.device, any(s is not None for s in self.select))
        self._configs = decoder_configs(self.model, attention_modules(self.model))
        self._forward: Callable[..., Any] = self.model.forward
        self.cache: StaticSpectralCache | None = None
        self._prepare(batch)

    def _prepare(self, batch: int) -> None:
        """Buffers and graphs for a number of sequences."""
        if self.cache is not None and self.cache.lengths.batch == batch:
            return
        self.cache = self._steps = None
        self.cache = StaticSpectralCache(
            self.model,
            self.geometry,
            self._matrices,
            batch=batch,
            max_tokens=self.max_tokens,
            window=self.window,
            backend="triton" if self.device.type == "cuda" else "reference",
            select=self.select,
        )
        self._steps = GraphedSteps(self.cache, self._one_token, fused(self.model))

    @torch.no_grad()
    def _one_token(self, ids: Tensor) -> Tensor:
        """Logits `[B, 1, V]` of ids `[B, 1]`, the device's counters already advanced."""
        positions = (self.cache.lengths.total - 1).long()[:, None]
        with Switch(self._configs, IMPLEMENTATION):
            output = self._forward(
                input_ids=ids, position_ids=positions, past_key_values=self.cache, use_cache=True, return_dict=True
            )
        return output.logits

    @torch.no_grad()
    def prefill(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Read a prompt `[B, T]` (left-padded where `attention_mask` says so) into an empty cache: logits `[B, n, V]`."""
        batch, tokens = input_ids.shape
        real = [tokens] * batch if attention_mask is None else attention_mask.sum(-1).tolist()
        if attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise InputError("Prompts must be padded on the left (tokenizer.padding_side = 'left').")
        if min(real) < 1:
            raise InputError("A sequence of the batch has no token.")
        self._require_room(max(real))
        self._prepare(batch)
        self.cache.begin_prompt(real, tokens)
        kwargs.setdefault("logits_to_keep", 1)
        if attention_mask is not None and "position_ids" not in kwargs:
            kwargs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        try:
            output = self._forward(
                input_ids=input_ids, attention_mask=attention_mask, past_key_values=self.cache, use_cache=True, **kwargs
            )
        finally:
            self.cache.end_prompt()
        return output.logits

    def step(self, input_ids: Tensor) -> Tensor:
        """One token more a sequence `[B, 1]`: its logits `[B, 1, V]`, in a buffer that the next step overwrites."""
        self._require_room(max(self.cache.lengths.host) + 1)
        return self._steps.run(input_ids)

    def _require_room(self, tokens: int) -> None:
        if tokens > self.max_tokens:
            raise InputError(
                f"{tokens:,} tokens do not fit: this GraphedModel holds {self.max_tokens:,} a sequence. "
                "Make one with a larger max_tokens."
            )

    def generate(self, input_ids: Tensor | None = None, *, resume: bool = False, **options: Any) -> Any:
        """`model.generate` whose steps are graphs; takes what `generate` takes. Every call starts from an empty cache.

        Args:
            input_ids: `[B, T]`. resume: go on from what the cache holds; `input_ids` begin with those tokens, and the new
                ones are read one by one, at the speed of steps.

        Raises:
            InputError: beams, assisted decoding, chunked prompts, a cache of the caller's, or outputs that graphs do not
                keep (attentions, hidden states); SpectralCache does those. More tokens than `max_tokens`.
        """
        inputs = options.pop("inputs", None) if input_ids is None else input_ids
        if inputs is None:
            raise InputError("generate needs input_ids: graphs start from token ids.")
        self._refuse(options)
        new = options.get("max_new_tokens")
        if new is not None:
            self._require_room(inputs.shape[1] + new - 1)
        if resume:
            self._require_resumable(inputs)
        else:
            self._start(inputs, options)
        greedy = Greedy.of(self.model, options, inputs.shape[1])
        if greedy is not None:
            mask = options.get("attention_mask")
            if mask is None and greedy.padding not in greedy.ends and greedy.padding in inputs:
                mask = (inputs != greedy.padding).long()
            cached = max(self.cache.lengths.host)
            logits = self._one_by_one(inputs[:, cached:]) if resume else self.prefill(inputs, mask)
            return greedy.run(inputs, logits, self.step)
        with self._in_place():
            return self.model.generate(inputs, past_key_values=self.cache, **options)

    def _one_by_one(self, ids: Tensor) -> Tensor:
        """Logits after more tokens `[B, T]`, read one by one."""
        for token in ids.split(1, dim=1):
            logits = self.step(token)
        return logits

    def _require_resumable(self, inputs: Tensor) -> None:
        tokens = max(self.cache.lengths.host)
        if inputs.shape[0] != self.cache.lengths.batch or inputs.shape[1] <= tokens or tokens == 0:
            raise InputError(
                f"resume=True needs input_ids of {self.cache.lengths.batch} sequences that go on after the {tokens:,} tokens "
                f"in the cache, not {list(inputs.shape)}."
            )

    def _start(self, inputs: Tensor, options: dict[str, Any]) -> None:
        config = options.get("generation_config") or self.model.generation_config
        copies = options.get("num_return_sequences") or config.num_return_sequences or 1
        self._prepare(inputs.shape[0] * copies)
        self.cache.lengths.start([0] * self.cache.lengths.batch)

    def _refuse(self, options: dict[str, Any]) -> None:
        config = options.get("generation_config") or self.model.generation_config

        def value(name: str) -> Any:
            return options[name] if name in options else getattr(config, name, None)

        unable = {
            "past_key_values": "continuing a cache of the caller's",
            "assistant_model": "assisted decoding",
            "prompt_lookup_num_tokens": "prompt lookup",
            "output_attentions": "attention weights",
            "output_hidden_states": "hidden states",
            "prefill_chunk_size": "reading a prompt in chunks",
            "inputs_embeds": "embeddings in place of ids",
        }
        asked = [words for name, words in unable.items() if value(name) not in (None, False)]
        if (value("num_beams") or 1) > 1:
            asked.append("beam search")
        if value("use_cache") is False:
            asked.append("generating without a cache")
        if asked:
            raise InputError(f"A GraphedModel does not do {asked[0]}. Use model.generate with a SpectralCache.")

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        """The model's forward goes through the graphs, for `generate`."""
        if "forward" in vars(self.model):
            raise InputError("The model's forward is replaced already, perhaps by another generate that is running.")
        self.model.forward = functools.wraps(self._forward)(functools.partial(self._forward_graphed))
        try:
            yield
        finally:
            del self.model.forward

    def _forward_graphed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: StaticSpectralCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """What `generate` calls in place of the model's forward."""
        if max(self.cache.lengths.host) == 0:
            kept = {k: v for k, v in kwargs.items() if k in ("position_ids", "logits_to_keep")}
            logits = self.prefill(input_ids, attention_mask, **kept)
        else:
            logits = self._one_by_one(input_ids)
        return CausalLMOutputWithPast(logits=logits, past_key_values=self.cache)
