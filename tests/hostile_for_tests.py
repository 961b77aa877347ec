"""Hostile files, made from real ones by a short list of edits, with every checksum made right again.

An input is a few bytes: which file, then edits. The same inputs serve property tests, a coverage-guided fuzzer
(`tests/fuzz.py`) and the corpus it left behind (`tests/corpus/`). `run` reads the file in every way there is and lets only
this library's own errors pass.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import io
import json
import struct
import tempfile
import zlib
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes
from transformers import AutoConfig, AutoModelForCausalLM, ByT5Tokenizer

from spectralquant.cache.persist.prompt import pack_prompt, unpack_cache
from spectralquant.cache.persist.snapshot_file import content_sha256
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import TIERS, CalibrationSettings
from spectralquant.codec.packet import CHECK, HEADER, HEADER_SIZE, INDEX_ENTRY, SpectralPacket
from spectralquant.errors import InputError, PacketError, ProfileError, UnsupportedModelError
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.view import ProfileView
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

OWN = (PacketError, ProfileError, InputError, UnsupportedModelError)
KINDS = ("packet", "snapshot", "profile", "raw packet", "raw snapshot", "raw profile")
TOKENS = 700
NUMBERS = (
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    256,
    1023,
    1024,
    1025,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
VALUES = (
    *(None, True, False, -1, 0, 1, 2, 3, 4, 127, 128, 129, 512, 4096, 2**31, 2**63, 10**30, 0.5, -0.0, 1e30, 1e308),
    *(
        "",
        "x",
        "cold",
        "warm",
        "hot",
        "exact",
        "auto",
        "spectral",
        "model",
        "F32",
        "F64",
        "F16",
        "BF16",
        "U8",
        "I64",
        "F8_E4M3",
    ),
    *("BOOL", "../../x", "\ud800", "[/red]", "0" * 64, [], [0], [1, 2], [[]], {}, {"a": 1}),
)


@functools.cache
def material(sliding: bool = False) -> Material:
    """Model, profile and files; made once."""
    return Material(sliding)


class Material:
    """A two-layer model (with `sliding` one of them reads 300 tokens only), its profile with all tiers, and one genuine file
    of every kind."""

    def __init__(self, sliding: bool = False) -> None:
        torch.manual_seed(0)
        windows = {"sliding_window": 300, "query_pre_attn_scalar": 16} if sliding else {}
        config = AutoConfig.for_model(
            "gemma2" if sliding else "llama",
            vocab_size=384,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=4096,
            **windows,
        )
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(4.0)
        self.loaded = LoadedModel("hostile", model, ByT5Tokenizer(), probe_geometry(model))
        text = tokenize(self.loaded.tokenizer, load_text("builtin:pydoc"), 6000)
        settings = CalibrationSettings(steps=4, window=512, tiers=TIERS, held_out_windows=1, held_out_window=512)
        self._kept = tempfile.TemporaryDirectory(prefix="hostile-")  # deleted with this object
        self.folder = Path(self._kept.name)
        self.profile = calibrate_model(self.loaded, text, settings, out=self.folder / "genuine")
        self.ids = text.windows(TOKENS)[:1]
        self.packet = bytes(pack_prompt(model, self.profile, self.ids)[0].data)
        cache = SpectralCache(model, self.profile, tier="hot", ages={"warm": 256, "cold": 384}, background=False)
        with torch.no_grad():
            for part in self.ids.split(128, dim=1):
                model(input_ids=part, past_key_values=cache)
        cache.save(self.folder / "genuine.cache")
        self.snapshot = (self.folder / "genuine.cache").read_bytes()
        self.sidecar = (self.folder / "genuine.json").read_bytes()
        self.tensors = (self.folder / "genuine.safetensors").read_bytes()


def run(data: bytes) -> Exception | None:
    """Make the file that `data` describes and read it in every way; returns the error of ours that ended it, or None.

    Anything else that is raised, is a fault.
    """
    if not data:
        return None
    sliding, kind, edits = data[0] // len(KINDS) % 2, KINDS[data[0] % len(KINDS)], data[1:]
    m = material(True) if sliding else material()
    try:
        with tempfile.TemporaryDirectory(dir=m.folder) as folder:
            if kind.endswith("packet"):
                read_packet(
                    m, Path(folder), edits if kind.startswith("raw") else sealed_packet(edited(m.packet, edits))
                )
            elif kind.endswith("snapshot"):
                read_snapshot(
                    m, Path(folder), edited(m.snapshot, edits) if kind.startswith("raw") else sealed_snapshot(m, edits)
                )
            elif kind.startswith("raw"):
                read_profile(m, Path(folder), edited(m.sidecar, edits), m.tensors)
            else:
                read_profile(m, Path(folder), *sealed_profile(m, edits))
    except OWN as error:
        return error
    return None


# Reading


def read_packet(m: Material, folder: Path, data: bytes) -> None:
    (folder / "x.sqkv").write_bytes(data)
    inspect(folder / "x.sqkv")
    packet = SpectralPacket.open(folder / "x.sqkv")
    with contextlib.suppress(*OWN):  # it holds coded blocks, which need the profile
        use(m, SpectralCache.unpack(m.loaded.model, None, packet))
    found: list[Exception] = []
    for read in (
        lambda: unpack_cache(m.loaded.model, m.profile, packet),
        lambda: use(m, SpectralCache.unpack(m.loaded.model, m.profile, packet, step_scale=packet.header.step_scale)),
    ):
        try:
            read()
        except OWN as error:
            found.append(error)
    if found:
        raise found[0]


def read_snapshot(m: Material, folder: Path, data: bytes) -> None:
    (folder / "x.cache").write_bytes(data)
    use(m, SpectralCache.load(folder / "x.cache", m.loaded.model, m.profile))


def read_profile(m: Material, folder: Path, sidecar: bytes, tensors: bytes) -> None:
    (folder / "x.json").write_bytes(sidecar)
    (folder / "x.safetensors").write_bytes(tensors)
    inspect(folder / "x.json")
    show(folder / "x.json", page=not zlib.crc32(sidecar) % 16)
    profile = CalibrationProfile.load(folder / "x")
    for tier in profile.tiers:
        cache = SpectralCache(m.loaded.model, profile, tier=tier, background=False)
        with torch.no_grad():
            m.loaded.model(input_ids=m.ids[:, :300], past_key_values=cache)
        use(m, cache)


def use(m: Material, cache: SpectralCache) -> None:
    """Everything a caller does with a cache."""
    for layer in range(2):
        cache.view(layer).dense()
    cache.stats()
    copy.deepcopy(cache)
    if cache.batch_size == 1:
        with torch.no_grad():
            m.loaded.model(input_ids=m.ids[:, :1], past_key_values=cache)
    with contextlib.suppress(InputError):  # sliding layers may have let go of what would be read next
        cache.crop(-min(200, cache.get_seq_length()))
    if cache.get_seq_length():
        cache.pack()
    cache.reset()


def inspect(file: Path) -> None:
    """`sq inspect`."""
    from sqcli.commands.inspect import inspect as command

    with contextlib.redirect_stdout(io.StringIO()):
        command(file, json=str(file.with_suffix(".report.json")), svg=None, quiet=True)


def show(file: Path, page: bool) -> None:
    """`sq show`, with its page (which takes much longer than all the rest) where wanted."""
    from sqcli.commands.show import show as command

    ProfileView.load(file)
    html = file.with_suffix(".html") if page else None
    with contextlib.redirect_stdout(io.StringIO()):
        command(None, file, layer=None, head=None, diff=None, html=html, json=None, csv=None, svg=None, quiet=True)


# Edits: operation, position (two bytes), value


def edited(data: bytes, edits: bytes) -> bytes:
    """Bytes changed, numbers set, parts cut, repeated or moved."""
    out = bytearray(data)
    for at in range(0, len(edits) - 3, 4):
        op, where, value = edits[at], int.from_bytes(edits[at + 1 : at + 3], "little"), edits[at + 3]
        where %= max(1, len(out) if op & 8 else min(len(out), 512))
        if op % 8 == 0:
            out[where : where + 1] = bytes([value])
        elif op % 8 in (1, 2, 3):
            size = (2, 4, 8)[op % 8 - 1]
            out[where : where + size] = (NUMBERS[value % len(NUMBERS)] % 256**size).to_bytes(size, "little")
        elif op % 8 == 4:
            del out[where : where + value + 1]
        elif op % 8 == 5:
            out[where:where] = out[where : where + value + 1]
        elif op % 8 == 6:
            out[where : where + 4] = struct.pack("<f", (0.0, -1.0, 1e30, float("inf"), float("nan"), 1e-30)[value % 6])
        else:
            del out[where:]
    return bytes(out)


def edited_json(value: object, edits: bytes) -> object:
    """Leaves and branches of a JSON value replaced, removed or doubled."""
    value = copy.deepcopy(value)
    for at in range(0, len(edits) - 3, 4):
        op, where, new = edits[at], int.from_bytes(edits[at + 1 : at + 3], "little"), edits[at + 3]
        places = list(_places(value))
        if not places:
            return value
        holder, key = places[where % len(places)]
        if op % 4 == 0 and isinstance(holder, dict):
            del holder[key]
        elif op % 4 == 1 and isinstance(holder, list):
            holder.append(holder[key])
        elif op % 4 == 2 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = holder[key] + (1, -1, 127, -129)[new % 4]
        else:
            holder[key] = copy.deepcopy(VALUES[new % len(VALUES)])
    return value


def _places(value: object):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(items):
        yield value, key
        yield from _places(part)


def sealed_packet(data: bytes) -> bytes:
    """All checksums, and the length, made right where the header can be read at all."""
    if len(data) < HEADER_SIZE:
        return data
    out = bytearray(data)
    fields = list(HEADER.unpack_from(out))
    start = HEADER_SIZE + fields[9] * (4 + -(-fields[2] // 8))
    end = start + INDEX_ENTRY.size * fields[10]
    if end <= len(out):
        for at in range(start, end, INDEX_ENTRY.size):
            offset, length = struct.unpack_from("<QI", out, at)
            if length <= len(out):
                struct.pack_into("<I", out, at + INDEX_ENTRY.size - 4, zlib.crc32(out[offset : offset + length]))
    fields[13] = len(out)
    head = HEADER.pack(*fields)[: -CHECK.size]
    head += CHECK.pack(zlib.crc32(out[HEADER_SIZE:end], zlib.crc32(head)))
    out[:HEADER_SIZE] = head + CHECK.pack(zlib.crc32(head))
    return bytes(out)


def sealed_tensors(data: bytes, edits: bytes) -> tuple[bytes, bytes]:
    """A safetensors file with its header and data edited, and the edits that are left for others."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    first = 4 * (edits[0] % 4) if edits else 0
    rest = edits[1:]
    names = {k: v for k, v in header.items() if k != "__metadata__"}
    names = edited_json(names, rest[:first])
    meta = {"__metadata__": header["__metadata__"]} if "__metadata__" in header else {}
    text = json.dumps(meta | names).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    second = 4 * (edits[0] // 4 % 4) if edits else 0
    body = edited(body, bytes(b | 8 if i % 4 == 0 else b for i, b in enumerate(rest[first : first + second])))
    return len(text).to_bytes(8, "little") + text + body, rest[first + second :]


def sealed_profile(m: Material, edits: bytes) -> tuple[bytes, bytes]:
    """Sidecar and tensors, edited, with the hash and size that the sidecar names."""
    tensors, rest = sealed_tensors(m.tensors, edits)
    sidecar = json.loads(m.sidecar)
    sidecar |= {
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
        "tensor_bytes": len(tensors),
        "sidecar_sha256": "",
    }
    return json.dumps(edited_json(sidecar, rest)).encode("utf-8", "surrogatepass"), tensors


def sealed_snapshot(m: Material, edits: bytes) -> bytes:
    """A saved cache whose facts or tensors are edited, with a right checksum."""
    from safetensors import safe_open

    with safe_open(m.folder / "genuine.cache", framework="pt") as handle:
        meta = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    facts = edits[0] % 4 if edits else 0
    text = json.dumps(edited_json(json.loads(meta["facts"]), edits[1 : 1 + 4 * facts]))
    rest = edits[1 + 4 * facts :]
    for at in range(0, len(rest) - 3, 4):
        tensors = _edited_tensors(tensors, *rest[at : at + 4])
    meta = {"format": meta["format"], "facts": text, "sha256": content_sha256(text, tensors)}
    return safetensors_bytes({k: t.contiguous() for k, t in tensors.items()}, metadata=meta)


def _edited_tensors(tensors: dict[str, torch.Tensor], op: int, which: int, place: int, value: int):
    names = sorted(tensors)
    if not names:
        return tensors
    name = names[which % len(names)]
    held = tensors[name]
    flat = held.clone().view(-1)
    if op % 6 == 0:
        return {k: t for k, t in tensors.items() if k != name}
    if op % 6 == 1:
        return tensors | {names[value % len(names)]: held.clone()}
    if op % 6 == 2 and held.dim():
        return tensors | {name: held.narrow(place % held.dim(), 0, held.shape[place % held.dim()] // 2).clone()}
    if op % 6 == 3:
        kinds = (torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool)
        return tensors | {name: held.to(kinds[value % 5])}
    if op % 6 == 4 and held.dim() and held.numel() < 1 << 18:
        return tensors | {name: torch.cat([held, held], dim=place % held.dim())}
    if len(flat):
        raw = flat.view(torch.uint8).clone()
        raw[(place * 257) % min(len(raw), 4096)] = value
        return tensors | {name: raw.view(held.dtype).view(held.shape)}
    return tensors


def bomb(sections: int, tokens: int = 1024) -> bytes:
    """A packet of a few thousand bytes whose sections announce `tokens` tokens each, all checksums right."""
    genuine = SpectralPacket(material().packet)
    body = struct.pack("<BBHII", 0, 0, tokens, 0, 0)
    parts = [(i * tokens, tokens, 0, body) for i in range(sections)]
    header = dataclasses.replace(genuine.header, tokens=sections * tokens, block=tokens, sinks=0)
    return bytes(SpectralPacket.build(header, parts).data)
