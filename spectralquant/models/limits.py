"""Whether token ids and lengths fit a model, asked before it runs: on a GPU an unknown id ends the whole process."""

from __future__ import annotations

from torch import Tensor, nn

from spectralquant.errors import InputError
from spectralquant.hooks.decoder import position_limit


def require_known_ids(model: nn.Module, ids: Tensor) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        InputError: naming the largest id and the number of embeddings.
    """
    if not ids.numel():
        return
    known, low, high = model.get_input_embeddings().weight.shape[0], int(ids.min()), int(ids.max())
    if low < 0 or high >= known:
        raise InputError(
            f"The text has token id {high if high >= known else low}, but the model has embeddings for ids 0 to {known - 1} "
            "only: the tokenizer is not the model's own, or tokens were added to it. Use the tokenizer that was published "
            "with the model, or first call model.resize_token_embeddings(len(tokenizer))."
        )


def require_positions(model: nn.Module, tokens: int, what: str, way_out: str) -> None:
    """Refuse `tokens` tokens where the model has fewer positions.

    Raises:
        InputError: `what` has too many tokens; `way_out`.
    """
    limit = position_limit(model)
    if limit is not None and tokens > limit:
        raise InputError(f"{what} has {tokens:,} tokens; the model has {limit:,} positions. {way_out}")
