"""What `sq serve-check` refuses before an engine is started: each start takes the best part of a minute."""

from __future__ import annotations

from pathlib import Path

from spectralquant.errors import InputError

BATCH_TOKENS = 664
"""Of each sequence that is decoded in a batch: its prompt and what is generated."""


def require_able(codec_device: str, keep: Path | None) -> None:
    """Judge options that need neither a model nor an engine.

    Raises:
        InputError: no GPU for `codec_device`, or `keep` is no folder of its own and cannot become one.
    """
    if keep == Path():
        raise InputError(
            "--keep is empty, or the folder that sq runs in, which stores and logs would fill. Give another folder."
        )
    for place in () if keep is None else (keep, *keep.parents):
        if place.is_file():
            raise InputError(f"--keep {keep} cannot be a folder: {place} is a file. Give another folder.")
    if codec_device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("--codec-device cuda needs a GPU, and this machine shows none. Leave it out (cpu).")


def fetched(model: str) -> Path | None:
    """The folder of a built-in model if it lies here already: nothing is fetched to judge an option."""
    from spectralquant.errors import SourceError
    from spectralquant.models.builtin.folder import builtin_folder

    try:
        return builtin_folder(model, offline=True, report=lambda _: None)
    except SourceError:
        return None


def longest(prefix: int, own: int, new_tokens: int, long: tuple[int, ...], batch: int) -> tuple[int, str]:
    """Tokens of the longest sequence that will be served, prompt and answer, and the option that asks for it."""
    wanted = {"--prefix": prefix + own + new_tokens, "--long": max(long, default=0)}
    if batch:
        wanted["--batch"] = BATCH_TOKENS
    option = max(wanted, key=lambda name: wanted[name])
    return wanted[option], option


def require_room(needed: tuple[int, str], max_model_len: int | None, folder: Path | None) -> None:
    """What is served must fit what the engine and the model take. folder: of the model, where it is there already.

    Raises:
        InputError: it does not.
    """
    tokens, option = needed
    if max_model_len is not None and tokens > max_model_len:
        raise InputError(
            f"{option} needs sequences of {tokens:,} tokens, and --max-model-len is {max_model_len:,}. Make the one smaller or the other larger."
        )
    positions = None if folder is None else _positions(folder)
    if positions is None:
        return
    if tokens > positions:
        raise InputError(
            f"{option} needs sequences of {tokens:,} tokens, and the model has {positions:,} positions. Make it smaller."
        )
    if max_model_len is not None and max_model_len > positions:
        raise InputError(
            f"--max-model-len {max_model_len:,} is beyond the model's {positions:,} positions. Make it smaller."
        )


def within(tokens: int, folder: Path) -> int:
    """The engine's longest sequence where none is given: with room to spare, but no more than the model has positions."""
    return min(tokens, _positions(folder) or tokens)


def _positions(folder: Path) -> int | None:
    from spectralquant.hooks.decoder import position_limit_of
    from spectralquant.models.config import load_config

    return position_limit_of(load_config(str(folder), offline=True).get_text_config())
