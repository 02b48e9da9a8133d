"""Labels and sections from a table beside the clips."""

import json

import pytest

from clap_jax.pipeline.sources import build_source
from clap_jax.pipeline.tables import ManifestError

PIECES = {"examples": 4, "seconds": (24, 26), "sections": 4, "split": "test"}


def build(table, **options):
    annotations = {"table": str(table), **options}
    return build_source("pieces", "songs", PIECES | {"annotations": annotations})


@pytest.fixture
def write(tmp_path):
    def writer(text, name="table.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return writer


def ids():
    source = build_source("pieces", "songs", PIECES)
    return [source.id(index) for index in range(4)]


def test_labels_of_some_clips(write):
    one, two, three, _ = ids()
    table = write(
        f"id,tempo,key\n{two},fast,A\n{one},slow,B\n{three},,C\nother,slow,D\n"
    )
    source = build(table, label="tempo")
    assert [source.id(index) for index in range(len(source))] == [one, two]
    assert [source.tags(index) for index in range(2)] == [["slow"], ["fast"]]
    # Its sections are still known, and what it is besides.
    assert len(source.sections(0)) == 4 and source.captions(1)
    assert "the 2 with tempo in" in source.description()
    keys = build(table, label="key")
    assert len(keys) == 3 and keys.digest() != source.digest()
    several = build(write(f"path,label\n{one},a;b\n{one},c\n"), separator=";")
    assert several.tags(0) == ["a", "b", "c"]


def test_sections_a_row_or_a_clip(write):
    one, two = ids()[:2]
    rows = write(
        f"id,start,end,label\n{one},9.5,20,b\n{one},0,9.5,a\n{two},0,3,\nother,0,1,c\n"
    )
    source = build(rows)
    assert source.sections(0) == [(0, 9.5, "a"), (9.5, 20, "b")]
    assert source.sections(1) == [(0, 3, "")]
    assert source.tags(0)  # the source's own
    said = [
        {"id": one, "sections": [[0, 9.5, "a"], [9.5, 20, "b"]]},
        {"id": two, "sections": [{"begin": 0, "end": 3}]},
    ]
    lines = write("\n".join(map(json.dumps, said)), "table.jsonl")
    again = build(lines)
    assert [again.sections(i) for i in (0, 1)] == [source.sections(i) for i in (0, 1)]
    assert again.digest() == source.digest()
    cell = json.dumps([[0, 9.5, "a"], [9.5, 20, "b"]]).replace('"', '""')
    table = write(f'id,sections\n{one},"{cell}"\n', "cells.csv")
    assert build(table).sections(0) == source.sections(0)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("id,labels\nx,a\n", {}, "no such column"),
        ("name,label\nx,a\n", {}, "no column id or path"),
        ("id,label\nx,a\n", {}, "no row names a clip of source 'songs'"),
        ("id,begin\nx,0\n", {}, "no such column"),
        (
            "id,begin,end\nONE,5,5\n",
            {},
            "line 2, .*'begin': no sections.*from 5.0 to 5.0",
        ),
        ("id,begin,end\nONE,0,soon\n", {}, "line 2, .*'begin': no sections.*soon"),
        ("id,sections\nONE,[[1]]\n", {}, "line 2, .*'sections': no sections"),
    ],
)
def test_tables_that_cannot_be_used(write, text, options, message):
    with pytest.raises(ManifestError, match=message):
        build(write(text.replace("ONE", ids()[0])), **options)


def test_options_that_cannot_be():
    with pytest.raises(ValueError, match="did you mean 'table'"):
        build_source("pieces", "songs", PIECES | {"annotations": {"tables": "x.csv"}})
    with pytest.raises(ValueError, match="table is missing"):
        build_source("pieces", "songs", PIECES | {"annotations": {"label": "x"}})
