"""The small random Llama on a GPU, prompts for it, and caches filled with them."""

from __future__ import annotations

import copy

import torch
from conftest import profile_of

from spectralquant import SpectralCache

GPU = torch.device("cuda", 0)
TIERS = ("exact", "hot", "warm", "cold")
PROMPT = 700


def model_on(device=GPU, dtype=torch.float32):
    """Model and profile; both copies of one's own."""
    loaded, profile = profile_of("llama")
    return copy.deepcopy(loaded.model).to(device, dtype), copy.deepcopy(profile)


def prompt(tokens=PROMPT, rows=1, seed=0):
    """Token ids `[rows, tokens]` on the CPU."""
    return torch.randint(5, 500, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def read(model, cache, ids):
    """Logits of one forward pass over `ids`, wherever they are."""
    return model(input_ids=ids.to(model.device), past_key_values=cache).logits


def filled(model, profile, tier, tokens=PROMPT, rows=1, **options):
    """A cache that has seen a prompt."""
    cache = SpectralCache(model, profile, tier=tier, **{"background": False, **options})
    read(model, cache, prompt(tokens, rows))
    return cache


@torch.no_grad()
def steps(model, cache, ids):
    """Logits of decode steps over `ids: [B, T]`, one token after the other."""
    return torch.cat([read(model, cache, ids[:, i : i + 1]) for i in range(ids.shape[1])], dim=1)


def distance(found, expected):
    """Relative L2 distance, computed on the CPU in double precision."""
    a, b = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((a - b).norm() / b.norm())
