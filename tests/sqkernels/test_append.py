"""A token of every sequence into buffers in one launch."""

import pytest
import torch

from sqkernels.append import append

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("heads", "dim"), [(2, 64), (3, 96)])
def test_only_the_place_of_the_token_is_written(heads, dim, dtype, backend):
    generator = torch.Generator(device=DEVICE).manual_seed(0)
    rooms = [torch.full((3, heads, 5, dim), float("nan"), dtype=dtype, device=DEVICE) for _ in range(2)]
    new = [torch.randn(3, 1, heads, dim, generator=generator, device=DEVICE).to(dtype) for _ in range(2)]
    new = [new[0].transpose(1, 2), new[1].transpose(1, 2)[..., :dim]]
    places = torch.tensor([0, 4, 13], device=DEVICE)
    append(*new, places, *rooms, backend=backend)
    for room, x in zip(rooms, new, strict=True):
        for b, place in enumerate((0, 4, 3)):
            assert torch.equal(room[b, :, place], x[b, :, 0])
            assert bool(room[b, :, [p for p in range(5) if p != place]].isnan().all())


def test_what_disagrees_is_refused():
    room, token, places = torch.zeros(2, 2, 5, 8), torch.zeros(2, 2, 1, 8), torch.zeros(2, dtype=torch.int64)
    other = (
        (token[:1], token, places, room, room),
        (token, token.half(), places, room, room),
        (token, token, places.int(), room, room),
        (token, token, places, room, room[:, :, :4]),
        (token, token, places, room.transpose(0, 1), room.transpose(0, 1)),
    )
    for bad in other:
        with pytest.raises(ValueError, match="disagree"):
            append(*bad)
