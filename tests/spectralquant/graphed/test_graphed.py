"""`GraphedModel`: the same tokens as a growing cache of hot codes, at any length, and refusals of what it cannot do."""

import copy

import pytest
import torch
from conftest import profile_of
from transformers import DynamicCache

import spectralquant as sq
from spectralquant.errors import InputError
from spectralquant.graphed.greedy import Greedy
from spectralquant.graphed.lengths import Lengths

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def setting(architecture="llama"):
    loaded, profile = profile_of(architecture)
    return copy.deepcopy(loaded.model).to(DEVICE), profile


def tokens(batch, count):
    return torch.randint(5, 500, (batch, count), generator=torch.Generator().manual_seed(count)).to(DEVICE)


def stepped(graphed, ids, prompt):
    graphed.prefill(ids[:, :prompt])
    return torch.cat([graphed.step(ids[:, i : i + 1]).clone() for i in range(prompt, ids.shape[1])], dim=1)


@torch.no_grad()
def growing(model, profile, ids, prompt, **options):
    cache = DynamicCache() if profile is None else sq.SpectralCache(model, profile, tier="hot", **options)
    model(input_ids=ids[:, :prompt], past_key_values=cache)
    steps = range(prompt, ids.shape[1])
    return torch.cat([model(input_ids=ids[:, i : i + 1], past_key_values=cache).logits for i in steps], dim=1)


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3_text"])
def test_steps_are_as_far_from_dense_as_a_growing_cache(architecture):
    """Blocks begin at other tokens, so codes differ; their error does not. 160 steps cross two codings of a block."""
    model, profile = setting(architecture)
    ids = tokens(1, 660)
    dense = growing(model, None, ids, 500)
    graphed = stepped(sq.GraphedModel(model, profile, max_tokens=660), ids, 500)
    spectral = growing(model, profile, ids, 500)
    assert 1e-4 < apart(graphed, dense) < 1.3 * apart(spectral, dense)


def test_before_the_first_block_steps_are_exact():
    model, profile = setting()
    ids = tokens(2, 140)
    graphed = stepped(sq.GraphedModel(model, profile, max_tokens=256), ids, 3)
    assert apart(graphed, growing(model, None, ids, 3)) < 1e-4


def test_sequences_of_different_lengths_do_not_see_each_other():
    """After 96 and 99 steps a block of the longer ones is coded."""
    model, profile = setting()
    lengths, longest = (3, 290, 421), 421
    prompts = [tokens(1, n) for n in lengths]
    more = tokens(3, 110)
    ids = torch.cat([torch.nn.functional.pad(p, (longest - p.shape[1], 0)) for p in prompts])
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths], device=DEVICE)
    graphed = sq.GraphedModel(model, profile, max_tokens=700, batch=3)
    graphed.prefill(ids, mask)
    together = torch.cat([graphed.step(more[:, i : i + 1]).clone() for i in range(110)], dim=1)
    for row, prompt in enumerate(prompts):
        alone = stepped(graphed, torch.cat([prompt, more[row : row + 1]], dim=1), prompt.shape[1])
        assert apart(together[row], alone[0]) < 1e-3


def test_generate_gives_what_generate_gives():
    model, profile = setting()
    ids = tokens(2, 40)
    graphed = sq.GraphedModel(model, profile, max_tokens=128, batch=2)
    options = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    ours = graphed.generate(ids, attention_mask=torch.ones_like(ids), output_logits=True, **options)
    theirs = model.generate(ids, attention_mask=torch.ones_like(ids), output_logits=True, **options)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert "forward" not in vars(model)
    longer = torch.cat([ours.sequences, tokens(2, 5)], dim=1)
    resumed = graphed.generate(longer, attention_mask=torch.ones_like(longer), resume=True, **options)
    assert torch.equal(
        resumed.sequences, model.generate(longer, attention_mask=torch.ones_like(longer), **options).sequences
    )
    with pytest.raises(InputError, match="go on after"):
        graphed.generate(ids, resume=True, **options)
    rest = {k: v for k, v in options.items() if k != "do_sample"}
    again = graphed.generate(
        ids[:1], attention_mask=torch.ones_like(ids[:1]), do_sample=True, top_k=1, num_return_sequences=3, **rest
    )
    assert again.sequences.shape[0] == 3 and torch.equal(again.sequences[0, :50], ours.sequences[0, :50])


@pytest.mark.parametrize("lengths", [(40, 40), (40, 17)])
def test_greedy_decoding_without_waits_gives_the_same_tokens(lengths):
    """Padding, the end of a sequence and what follows it as `model.generate` has them; what is more goes through it."""
    model, profile = setting()
    ids = tokens(2, 40)
    mask = torch.tensor([[0] * (40 - n) + [1] * n for n in lengths], device=DEVICE)
    ids = torch.where(mask.bool(), ids, 0)
    options = {
        "attention_mask": mask,
        "max_new_tokens": 40,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    graphed = sq.GraphedModel(model, profile, max_tokens=128, batch=2)
    free = model.generate(ids, **options)
    for ends in ([1], [int(free[0, 45])], [int(free[0, 45]), int(free[1, 60])]):
        theirs = model.generate(ids, **options | {"eos_token_id": ends})
        assert torch.equal(graphed.generate(ids, **options | {"eos_token_id": ends}), theirs)
    assert Greedy.of(model, options, 40) is not None
    for more in ({"repetition_penalty": 1.2}, {"do_sample": True}, {"logits_processor": []}, {"min_new_tokens": 3}):
        assert Greedy.of(model, options | more, 40) is None


def test_a_selection_of_everything_is_everything():
    model, profile = setting()
    ids = tokens(1, 420)
    whole = stepped(sq.GraphedModel(model, profile, max_tokens=420), ids, 400)
    all_selected = stepped(sq.GraphedModel(model, profile, max_tokens=420, select=0.9999), ids, 400)
    few = stepped(sq.GraphedModel(model, profile, max_tokens=420, select=0.1), ids, 400)
    assert apart(all_selected, whole) < 1e-3 < apart(few, whole)
    layers = len(model.model.layers)
    some = stepped(sq.GraphedModel(model, profile, max_tokens=420, select=[None] * (layers - 1) + [0.1]), ids, 400)
    assert 1e-3 < apart(some, whole) < apart(few, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "must be positive"),
        ({"max_tokens": 10**9}, "positions"),
        ({"max_tokens": 256, "window": 100}, "multiple of the block size"),
        ({"max_tokens": 256, "select": 1.5}, "must be a share"),
        ({"max_tokens": 256, "select": [0.1] * 9}, "select has 9 parts"),
        ({"max_tokens": 256, "batch": 0}, "must be positive"),
    ],
)
def test_wrong_constructions_are_refused(options, message):
    model, profile = setting()
    with pytest.raises(InputError, match=message):
        sq.GraphedModel(model, profile, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"prompt_lookup_num_tokens": 3}, "prompt lookup"),
        ({"output_attentions": True}, "attention weights"),
        ({"past_key_values": DynamicCache()}, "a cache of the caller's"),
        ({"use_cache": False}, "without a cache"),
        ({"max_new_tokens": 400}, "do not fit"),
    ],
)
def test_what_generate_cannot_do_is_refused_before_the_prompt(options, message):
    model, profile = setting()
    graphed = sq.GraphedModel(model, profile, max_tokens=256)
    with pytest.raises(InputError, match=message):
        graphed.generate(tokens(1, 20), **options)
    assert "forward" not in vars(model)


def test_steps_beyond_the_room_and_padding_on_the_right_are_refused():
    model, profile = setting()
    graphed = sq.GraphedModel(model, profile, max_tokens=21)
    graphed.prefill(tokens(1, 20))
    graphed.step(tokens(1, 1))
    with pytest.raises(InputError, match="larger max_tokens"):
        graphed.step(tokens(1, 1))
    with pytest.raises(InputError, match="padded on the left"):
        graphed.prefill(tokens(1, 4), torch.tensor([[1, 1, 1, 0]], device=DEVICE))


def test_counters_on_host_and_device_agree():
    lengths = Lengths(3, 2000, 128, torch.device("cpu"))
    lengths.start([2, 131, 259])
    for _ in range(700):
        if lengths.full:
            lengths.compressed()
            lengths.note_compressed()
        lengths.advance()
        lengths.note_step()
        assert lengths.total.tolist() == lengths.host and lengths.exact.tolist() == lengths._exact
        assert torch.equal(lengths.coded + lengths.exact, lengths.total)
        pairs = zip(lengths.host, lengths.coded.tolist(), strict=True)
        assert all(lengths.coded_of(n) in (c, c + 128) for n, c in pairs)
        assert int(lengths.exact.max()) <= lengths.room


def test_models_whose_scores_the_kernels_do_not_compute_are_refused():
    model, profile = setting("gemma2")
    with pytest.raises(InputError, match="soft-caps"):
        sq.GraphedModel(model, profile, max_tokens=64)
