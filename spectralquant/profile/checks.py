"""Tensors of a profile that comes from outside: every shape, kind and range that a codec relies on."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.errors import ProfileError
from spectralquant.models.schema import ModelIdentity
from spectralquant.profile.shapes import head_shapes
from spectralquant.profile.tensors import ColdTier, FixedTier, HeadSpectra, SplitTier, StoredBasis, flatten

CLASSES, SYMBOLS, MOST_TABLES = 9, 32, 256
HOT_BITS = (2, 4, 6, 8)


def check_tensors(
    model: ModelIdentity, heads: HeadSpectra, tiers: dict[str, ColdTier | FixedTier | SplitTier], where: str
) -> None:
    """Raise `ProfileError`, naming the tensor, unless all fit the model and each other."""
    for name, shape in head_shapes(model).items():
        require_tensor(where, f"heads.{name}", getattr(heads, name), shape)
    layer = model.kv_heads * model.head_dim
    for name, whole in tiers.items():
        for layers, tier in _parts(where, name, whole, model.layers):
            for kind in ("key", "value"):
                _check_basis(where, f"{name}.{kind}", getattr(tier, kind), layers * layer)
            if isinstance(tier, ColdTier):
                _check_cold(where, tier, layers * model.heads)
            else:
                _check_fixed(where, name, tier, layer, model.head_dim)
    parts = {"heads": heads, **tiers}
    for name, tensor in ((n, t) for part, held in parts.items() for n, t in flatten(part, held).items()):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise damaged(where, name, "holds NaN or infinity")


def _check_basis(where: str, name: str, basis: StoredBasis, width: int) -> None:
    rank, span = basis.analysis.shape if basis.analysis.dim() == 2 else (-1, -1)
    if span < 1 or width % span:
        raise damaged(where, f"{name}.analysis", f"does not fit a model of width {width}")
    for part, shape in (
        ("analysis", (rank, span)),
        ("synthesis", (rank, span)),
        ("gain", (rank,)),
        ("back", (rank,)),
        ("variance", (rank,)),
        ("mean", (width,)),
        ("predictor", (basis.predictor.shape[0] if basis.predictor.dim() else -1, width)),
    ):
        require_tensor(where, f"{name}.{part}", getattr(basis, part), shape)
    ranks = basis.ranks
    require_tensor(where, f"{name}.ranks", ranks, (width // span,), torch.int64)
    if int(ranks.min()) < 0 or int(ranks.max()) > span or int(ranks.sum()) != rank:
        raise damaged(where, f"{name}.ranks", "does not add up to the basis")


def _parts(
    where: str, name: str, tier: ColdTier | FixedTier | SplitTier, layers: int
) -> list[tuple[int, ColdTier | FixedTier]]:
    """A tier's parts, each with the number of layers that it codes."""
    if not isinstance(tier, SplitTier):
        return [(layers, tier)]
    named = [layer for part in tier.layers for layer in part]
    if len(set(named)) < len(named) or not all(tier.layers) or not all(0 <= layer < layers for layer in named):
        raise damaged(where, name, "does not name each layer once")
    return list(zip(map(len, tier.layers), tier.parts, strict=True))


def _check_cold(where: str, tier: ColdTier, heads: int) -> None:
    tables = tier.tables.shape[0] if tier.tables.dim() else -1
    require_tensor(where, "cold.tables", tier.tables, (tables, SYMBOLS))
    require_tensor(where, "cold.class_tables", tier.class_tables, (2, CLASSES))
    if not 1 <= tables <= MOST_TABLES:
        raise damaged(where, "cold.tables", f"holds {tables} tables, not 1 to {MOST_TABLES}")
    for name, held in (("cold.tables", tier.tables), ("cold.class_tables", tier.class_tables)):
        if bool((held < 0).any()) or not bool((held.sum(1) > 0).all()):
            raise damaged(where, name, "is no table of probabilities")
    for kind in ("key", "value"):
        rank = getattr(tier, kind).analysis.shape[0]
        choice = getattr(tier, f"{kind}_choice")
        require_tensor(where, f"cold.{kind}_centroid", getattr(tier, f"{kind}_centroid"), (rank,))
        rows = CLASSES + 1 if len(choice) == CLASSES + 1 else CLASSES  # profiles since 2026 have one for tokens unseen
        require_tensor(where, f"cold.{kind}_choice", choice, (rows, rank), torch.uint8)
        if choice.numel() and int(choice.max()) >= tables:
            raise damaged(where, f"cold.{kind}_choice", "names a table that is not there")
    features = heads + 2
    if tier.leading is not None:
        leading = tier.leading.shape[1] if tier.leading.dim() == 2 else -1
        require_tensor(where, "cold.leading", tier.leading, (2, leading), torch.int64)
        ranks = torch.tensor([[len(tier.key.gain)], [len(tier.value.gain)]])
        if not bool(((tier.leading >= 0) & (tier.leading < ranks)).all()):
            raise damaged(where, "cold.leading", "names components that are not there")
        features = 4 * leading + 2
    require_tensor(where, "cold.importance_weight", tier.importance_weight, (features, 2))
    require_tensor(where, "cold.importance_bias", tier.importance_bias, (2,))
    if tier.embedding_projection.dim() != 2 or not tier.embedding_projection.is_floating_point():
        raise damaged(where, "cold.embedding_projection", "is no matrix")


def _check_fixed(where: str, name: str, tier: FixedTier, layer: int, head: int) -> None:
    for kind in ("key", "value"):
        rank, span = getattr(tier, kind).analysis.shape
        bits = getattr(tier, f"{kind}_bits")
        require_tensor(where, f"{name}.{kind}_bits", bits, (rank,), torch.uint8)
        known = set(bits.tolist())
        if known - set(HOT_BITS if name == "hot" else range(9)):
            raise damaged(where, f"{name}.{kind}_bits", "holds numbers of bits that no code has")
        require_tensor(
            where, f"{name}.{kind}_codebooks", getattr(tier, f"{kind}_codebooks"), (int((2 ** bits.long()).sum()),)
        )
        if layer % span or (name == "hot" and span != head):
            raise damaged(where, f"{name}.{kind}.analysis", "is no basis of a layer (warm) or head (hot)")


def require_tensor(
    where: str, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> None:
    """Raise `ProfileError` unless a tensor of the file `where` has this shape and dtype (any float dtype by default)."""
    fits = (
        tensor.dtype == dtype if dtype is not None else tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)
    )
    if tuple(tensor.shape) != shape or not fits:
        raise damaged(where, name, f"has shape {tuple(tensor.shape)} and kind {tensor.dtype}, expected {shape}")


def damaged(where: str, name: str, why: str) -> ProfileError:
    """The error that a tensor of the file `where` makes."""
    return ProfileError(f"{where} is damaged: {name} {why}. Calibrate again.")
