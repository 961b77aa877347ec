"""Every kind of file that holds the same rows gives the same documents; what cannot be read names itself and its row."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import threading

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from spectralquant.errors import InputError, SourceError
from spectralquant.text.read import load_text

WORDS = ["Straße, déjà vu\nand a second line", "007", "NA", 'say "hello"; then go\t!']
ROWS = [{"id": i, "text": text} for i, text in enumerate(WORDS)]
LINES = "\n".join(json.dumps(row) for row in ROWS).encode()


def table(separator: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "text"], delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def feather() -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


FORMS = {
    "t.jsonl": LINES,
    "T.JSONL": LINES,
    "t.ndjson": LINES.replace(b"\n", b"\r\n\r\n"),
    "t.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "objects.json": b"\n".join(json.dumps(row, indent=2).encode() for row in ROWS),
    "t.csv": table(","),
    "excel.csv": b"\xef\xbb\xbf" + table(";"),
    "utf16.csv": table(",").decode().encode("utf-16"),
    "t.tsv": table("\t"),
    "t.parquet": parquet(ROWS),
    "T.PARQUET": parquet(ROWS),
    "no_suffix": parquet(ROWS),
    "bytes.parquet": parquet([{"text": text.encode()} for text in WORDS]),
    "t.feather": feather(),
    "t.jsonl.gz": gzip.compress(LINES),
    "t.JSONL.GZ": gzip.compress(LINES),
    "members.jsonl.gz": gzip.compress(LINES[: LINES.index(b"\n") + 1]) + gzip.compress(LINES[LINES.index(b"\n") + 1 :]),
    "t.jsonl.zst": zstd(LINES),
    "t.csv.zst": zstd(table(",")),
    "t.jsonl.bz2": bz2.compress(LINES),
    "t.json.xz": lzma.compress(json.dumps(ROWS).encode()),
    "packed_without_saying.jsonl": gzip.compress(LINES),
    "utf16.jsonl": LINES.decode().encode("utf-16"),
    "utf16_unmarked.jsonl": LINES.decode().encode("utf-16-le"),
    "marked.jsonl": b"\xef\xbb\xbf" + LINES,
    "column.jsonl:text": LINES,
    "column.parquet:text": parquet(ROWS),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_same_rows_in_every_form(tmp_path, name):
    (tmp_path / name.partition(":")[0]).write_bytes(FORMS[name])
    assert list(load_text(f"file:{tmp_path / name}")) == WORDS


GOOD = b'{"text": "a"}\n'
FAULTS = {
    "late.jsonl": (GOOD * 1000 + b'{"text": broken', r"row 1,001 cannot be read as JSON"),
    "blank_lines.jsonl": (b"\n" + GOOD + b"\n{", r"row 2 \(line 4\)"),
    "late_kind.jsonl": (GOOD * 70 + b'{"text": 5}', r"row 71: column text holds a number \(5\)"),
    "late_column.jsonl": (GOOD * 70 + b'{"txt": "a"}', r"row 71: there is no text column .*it has txt"),
    "late_latin.jsonl": (GOOD * 70 + b'{"text": "caf\xe9"}', r"not UTF-8 text \(line 71.*iconv"),
    "late_bytes.parquet": (parquet([{"text": b"a"}] * 300 + [{"text": b"\xff\xfe\xfa"}]), r"row 301: .*not UTF-8"),
    "array.json": (b'[{"text":"a"},{"text":"b"},{"text":c}]', r"row 3 cannot be read as JSON"),
    "cut_off.json": (b'[{"text":"a"}, {"text":"b"}', r"after row 2: it is cut off"),
    "cut_within.json": (b'[{"text":"a"}, {"text":"b', r"row 2 cannot be read as JSON"),
    "cells.csv": (b"id,text\n1,a\n2,b,c\n", r"row 2 \(line 3\) has 3 cells, the header has 2"),
    "twice.csv": (b"text,text\n1,a\n", "two columns 'text'"),
    "packed.tar.gz": (gzip.compress(b"x" * 257 + b"ustar" + b"\0" * 99), "a tar archive; unpack it"),
    "quote.csv": (b'id,text\n1,a\n2,"b\n', r"row 2 .*cannot be read as CSV"),
    "columns.csv": (b"id,words\n1,a\n", r"row 1 .*there is no text column .*it has id, words"),
    "broken.jsonl.gz": (gzip.compress(os.urandom(999) + GOOD)[:-9], "damaged: it cannot be unpacked"),
    "broken.jsonl.zst": (zstd(os.urandom(999).hex().encode())[:-9], "cannot be read"),
    "broken.parquet": (parquet(ROWS)[:-9], "cannot be read as parquet"),
    "text.parquet": (b"just text", "cannot be read as parquet"),
    "latin.txt": ("Straße".encode("latin-1"), r"not UTF-8 text \(byte 4, line 1\).*iconv"),
    "late_latin.txt": (b"good line\n" * 300_000 + b"caf\xe9", r"byte 3,000,003, line 300,001"),
    "noise.txt": (bytes(range(256)) * 9, "not text but a binary file"),
    "zero.txt": (b"some text\0more text", "not text but a binary file"),
    "image.txt": (b"\x89PNG\r\n\x1a\n", "PNG image"),
    "page.pdf": (b"%PDF-1.7 words", "PDF document; export it as text"),
    "sheet.xlsx": (b"PK\x03\x04words", "zip archive or an office document"),
    "dump.pkl": (b"\x80\x04\x95words", "Python pickle"),
    "empty.txt": (b"", "is empty"),
    "empty.csv": (b"id,text\n", "text is empty"),
    "empty.json": (b"[]", "text is empty"),
    "blank.txt": (b" \n\n ", "text is empty"),
    "mark.txt": (b"\xef\xbb\xbf", "text is empty"),
    "none.jsonl": (b'{"text": null}\n{"text": ""}', "text is empty"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_read_says_why_and_where(tmp_path, name):
    data, message = FAULTS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        list(load_text(f"file:{tmp_path / name}"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_plain_text_in_encodings_that_are_certain(tmp_path, encoding):
    text = "The pump stopped; Straße, déjà vu.\r\nSecond line."
    (tmp_path / "t.txt").write_bytes(text.encode(encoding))
    assert "".join(load_text(f"file:{tmp_path / 't.txt'}")) == text.replace("\r\n", "\n")


def test_folders_globs_and_bare_paths(tmp_path):
    for name, data in (
        ("a.txt", b"one"),
        ("b.jsonl", b'{"text": "two"}'),
        ("c/d.md", b"three"),
        (".hidden/x", b"no"),
        ("e.png", b"\x89PNG\r\n"),
        ("f.txt", b""),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.warns(UserWarning, match=r"left out files that are not text: e.png \(a PNG image\), f.txt \(empty\)"):
        assert list(load_text(f"file:{tmp_path}")) == ["one", "two", "three"]
    assert list(load_text(f"file:{tmp_path}/*.jsonl:text")) == ["two"]
    assert list(load_text(f"file:{tmp_path}/**/*.md")) == ["three"]
    assert list(load_text(str(tmp_path / "b.jsonl"))) == ["two"]
    with pytest.raises(SourceError, match="no file"):
        load_text(f"file:{tmp_path}/*.nothing")
    with pytest.raises(SourceError, match="plain text and has no columns"):
        load_text(f"file:{tmp_path}/a.txt:text")
    assert list(load_text(tmp_path / "b.jsonl")) == ["two"]
    with pytest.raises(InputError, match="names no file"):
        load_text("file:")
    with pytest.raises(InputError, match="there is no such file"):
        load_text("tickets.jsonl")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SourceError, match="holds no files"):
        load_text(f"file:{tmp_path}/nothing")


def test_colons_and_equal_signs_in_names_are_names(tmp_path):
    (tmp_path / "a:text").write_text("colon")
    assert list(load_text(f"file:{tmp_path}/a:text")) == ["colon"]


def test_a_pipe_is_read_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(gzip.compress(b"through a pipe"),))
    writer.start()
    assert list(load_text(f"file:{pipe}")) == ["through a pipe"]
    writer.join()


def test_a_folder_that_datasets_saved(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    assert list(load_text(f"file:{tmp_path / 'one'}")) == WORDS
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(SourceError, match=r"several splits. Pass one: .*test, .*train"):
        load_text(f"file:{tmp_path / 'two'}")


def test_json_read_as_plain_text_is_said(tmp_path):
    for name, data in (("t.log", LINES), ("t.ipynb", b'{\n "cells": []\n}'), ("t", FORMS["pretty.json"])):
        (tmp_path / name).write_bytes(data)
        with pytest.warns(UserWarning, match="looks like JSON and is read as plain text; name it .jsonl"):
            list(load_text(f"file:{tmp_path / name}"))
