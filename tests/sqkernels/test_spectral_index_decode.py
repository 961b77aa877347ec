"""Index scan, selection and attention against the oracle."""

import pytest
import torch
from codes_for_tests import exact_for, matrices_for, pages_for, query_for, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from sqkernels.common.runtime import variants
from sqkernels.spectral_decode import spectral_decode
from sqkernels.spectral_index_decode import reference, select_tokens, spectral_index_decode
from sqkernels.spectral_index_decode.budget import LEVELS, cell_budgets
from sqkernels.spectral_index_decode.reference import index_scores

KERNELS = ("triton", *variants("spectral_index_decode"))
SHAPES = {
    "dim64-rank16": (64, [4] * 64, 2, 3, 16),
    "dim64-ranks-by-head": (64, [([8, 8, *[4] * 30], [4] * 20), ([4] * 60, [*[4] * 40, *[2] * 11])], 2, 2, 16),
    "dim128-rank32": (128, [4] * 128, 1, 8, 32),
    "dim96-rank16": (96, [3] * 96, 1, 4, 16),
}


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("budget", [0, 1, 37, 0.25, 1.0, 10_000], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_attention_over_the_selection(name, budget, backend):
    dim, bits, kv, group, rank = SHAPES[name]
    matrices = matrices_for(kv, dim, bits, index=rank)
    tokens = [700, 5, 513]
    pages = pages_for(matrices, tokens, first=3)
    exact = exact_for(matrices, 3, 4, [37, 1, 60])
    query = query_for(matrices, 3, group)
    selected = select_tokens(query, pages, exact, budget, backend="triton")
    for row, heads in enumerate(selected):
        wanted = tokens[row] * budget if isinstance(budget, float) else budget
        for chosen in heads:
            assert len(chosen) == min(tokens[row], int(-(-wanted // 1)))
            assert torch.equal(chosen, chosen.unique()) and (not len(chosen) or int(chosen.max()) < tokens[row])
    want = reference.attend_selected(query.double(), pages, exact, selected, dim**-0.5, torch.float64)
    got = spectral_index_decode(query, pages, exact, budget, backend=backend)
    assert relative_error(got, want) < 2e-3


def test_selection_is_the_oracles_up_to_scores_on_the_border_of_a_bin():
    matrices = matrices_for(2, 64, [4] * 64, index=16)
    pages, exact = pages_for(matrices, [3000], first=3), exact_for(matrices, 1, 4, 9)
    query = query_for(matrices, 1, 3)
    found = select_tokens(query, pages, exact, 200, backend="triton")[0]
    wanted = select_tokens(query, pages, exact, 200, backend="reference")[0]
    for a, b in zip(found, wanted, strict=True):
        assert len(set(a.tolist()) & set(b.tolist())) >= 196


def test_selection_is_nearly_the_global_top():
    matrices = matrices_for(2, 64, [4] * 64, index=16)
    pages, exact = pages_for(matrices, [3000], first=3), exact_for(matrices, 1, 4, 9)
    query = query_for(matrices, 1, 3)
    scores, weights = index_scores(query, pages, 0)
    span = 15 * weights.abs().sum(-1)
    for h, chosen in enumerate(select_tokens(query, pages, exact, 200, backend="triton")[0]):
        best = scores[h].topk(200)
        assert float(scores[h][chosen].sum()) >= float(best.values.sum()) - 2 * float(span[h]) / LEVELS
        assert len(set(chosen.tolist()) & set(best.indices.tolist())) >= 180


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), min_size=32, max_size=32), min_size=1, max_size=6), st.integers(0, 6000))
def test_cell_budgets_add_up_and_fit(counts, budget):
    levels = torch.tensor(counts)
    budget = min(budget, int(levels.sum()))
    parts = cell_budgets(levels, torch.tensor(budget))
    assert int(parts.sum()) == budget
    assert bool((parts >= 0).all()) and bool((parts <= levels.sum(-1)).all())


def test_equal_scores_fill_the_budget_in_token_order():
    matrices = matrices_for(1, 64, [4] * 64, index=16)
    pages, exact = pages_for(matrices, [400]), exact_for(matrices, 1, 4, 9)
    query = torch.zeros_like(query_for(matrices, 1, 3))
    chosen = select_tokens(query, pages, exact, 150, backend="triton")[0][0]
    assert torch.equal(chosen.cpu(), torch.arange(150))
    assert torch.equal(select_tokens(query, pages, exact, 150, backend="reference")[0][0].cpu(), torch.arange(150))


def test_all_tokens_selected_is_dense_attention():
    matrices = matrices_for(2, 64, [4] * 64, index=16)
    pages, exact, query = pages_for(matrices, [260]), exact_for(matrices, 1, 4, 9), query_for(matrices, 1, 3)
    everything = spectral_index_decode(query, pages, exact, 1.0, backend="triton")
    assert relative_error(everything, spectral_decode(query, pages, exact, backend="triton")) < 1e-3


def test_budget_by_head():
    matrices = matrices_for(2, 64, [4] * 64, index=16)
    pages, exact, query = pages_for(matrices, [260, 130]), exact_for(matrices, 2, 4, 9), query_for(matrices, 2, 3)
    budget = torch.tensor([[3, 70], [200, 0]], dtype=torch.int32, device=query.device)
    found = select_tokens(query, pages, exact, budget, backend="triton")
    assert [[len(h) for h in row] for row in found] == [[3, 70], [130, 0]]


def test_wrong_budgets_are_refused():
    matrices = matrices_for(2, 64, [4] * 64, index=16)
    pages, exact, query = pages_for(matrices, [260]), exact_for(matrices, 1, 4, 9), query_for(matrices, 1, 3)
    with pytest.raises(ValueError, match="must lie between"):
        spectral_index_decode(query, pages, exact, 1.5)
    with pytest.raises(ValueError, match="negative"):
        spectral_index_decode(query, pages, exact, -1)
    with pytest.raises(ValueError, match="int32"):
        spectral_index_decode(query, pages, exact, torch.zeros(3, dtype=torch.int32))
    plain = matrices_for(2, 64, [4] * 64)
    with pytest.raises(ValueError, match="have no index"):
        spectral_index_decode(query, pages_for(plain, [260]), exact, 3)
