"""The same curve for a second, differently shaped model, so that nothing is tuned to one.

No second model can be had without a hub, so a small one is trained here on Python sources: a Qwen3 (q/k norms, other
depth, width and grouping than the built-in model). It is a weak language model; what counts is that its keys and
values were shaped by training and not drawn at random.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from research.cold import ColdStudy, cold_study
from research.windows import scored_windows
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.results.schema import ColdResults
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.tokens import TokenText

SHAPE = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
WINDOW, BATCH, PEAK_RATE, HELD_OUT = 1024, 16, 1.5e-3, 0.1
STUDY = ColdStudy(
    steps=60,
    window=WINDOW,
    windows=16,
    ratios=(12, 20, 30, 42, 55, 70, 95),
    long_ratios=(),
    needle_contexts=(),
    needle_ratios=(),
)


def second_model_study(
    tokenizer: Any,
    text: TokenText,
    text_name: str,
    device: torch.device,
    train_seconds: float,
    progress: Callable[[str, int, int], None],
    kept: Kept = NOTHING_KEPT,
) -> ColdResults:
    """Train for `train_seconds`, then measure the cold curve on text the model has not seen."""
    scored_windows(
        text, STUDY.steps, STUDY.window, STUDY.windows
    )  # a text that is too short is refused before training
    cut = int(len(text.ids) * (1 - HELD_OUT))
    learnt = TokenText(text.ids[:cut], text.bos)

    def trained() -> bytes:
        model, facts = train(learnt, len(tokenizer), device, train_seconds, progress)
        buffer = io.BytesIO()
        torch.save({"weights": model.state_dict(), "facts": facts}, buffer)
        return buffer.getvalue()

    saved = torch.load(io.BytesIO(kept.data("trained model", trained)), weights_only=True, map_location=device)
    model = _new_model(len(tokenizer), device)
    model.load_state_dict(saved["weights"])
    model.eval()
    loaded = LoadedModel("qwen3-12x384-trained-here", model, tokenizer, probe_geometry(model))
    result = cold_study(loaded, text, STUDY, text_name, progress, kept)
    result.training = saved["facts"]
    return result


def _new_model(vocabulary: int, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", vocab_size=vocabulary, **SHAPE)).to(device)


def train(
    text: TokenText, vocabulary: int, device: torch.device, seconds: float, progress: Callable[[str, int, int], None]
) -> tuple[nn.Module, dict[str, Any]]:
    """AdamW with a cosine schedule over wall-clock time; returns the model in float32 and how training went."""
    model = _new_model(vocabulary, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    ids = text.ids.to(device)
    start, steps, loss = time.perf_counter(), 0, float("nan")
    while (spent := time.perf_counter() - start) < seconds:
        progress("training a second model, s", int(spent), int(seconds))
        rate = PEAK_RATE * min(1.0, steps / 50) * (0.55 + 0.45 * math.cos(math.pi * spent / seconds))
        for group in optimizer.param_groups:
            group["lr"] = rate
        at = torch.randint(0, len(ids) - WINDOW, (BATCH if device.type == "cuda" else 1,), generator=generator)
        batch = torch.stack([ids[i : i + WINDOW] for i in at.tolist()])
        with torch.autocast(device.type, dtype=torch.bfloat16):
            out = model(input_ids=batch, labels=batch, use_cache=False)
        optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
        if steps % 20 == 0:
            loss = out.loss.item()
    facts = {
        "steps": steps,
        "seconds": round(spent, 1),
        "tokens_seen": steps * len(at) * WINDOW,
        "last_loss": loss,
        "text_tokens": len(ids),
        "shape": SHAPE,
    }
    return model.eval(), facts
