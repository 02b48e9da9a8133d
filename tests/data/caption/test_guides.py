"""Files of tags, and tags as captioners take them."""

import json

import numpy as np
import pytest
from pyarrow import Table, parquet

from clap_jax.pipeline.tables import ManifestError
from clap_jax.pipeline.tags import TagRule
from data.caption.guides import Columns, TagFile, Tagged, chosen

RULE = TagRule.parse("0.3_top2")
CLIPS = {
    "a.wav": {"dog": 0.9, "rain": 0.3, "wind": 0.31},
    "b.wav": {"dog": 0.29, "rain": 0.0, "wind": 0.2},
}
LIKELY = Tagged(("dog", "wind"), (0.9, 0.31), "file")


def test_probabilities_of_all_layouts(tmp_path):
    tags = list(CLIPS["a.wav"])
    wide = [",".join(["id", *tags])]
    wide += [",".join([name, *map(str, own.values())]) for name, own in CLIPS.items()]
    quoted = ["file,probabilities"]
    quoted += [
        name + ',"' + json.dumps(own).replace('"', '""') + '"'
        for name, own in CLIPS.items()
    ]
    lines = [json.dumps({"id": name, "tags": own}) for name, own in CLIPS.items()]
    for name, rows in (("w.csv", wide), ("q.csv", quoted), ("l.jsonl", lines)):
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    # Parquet gives each row the keys of all, with nothing in them.
    sparse = [
        {"id": "a.wav", "tags": CLIPS["a.wav"]},
        {"id": "b.wav", "tags": {"fog": 0.1}},
    ]
    parquet.write_table(Table.from_pylist(sparse), tmp_path / "p.parquet")
    rows = np.array([list(own.values()) for own in CLIPS.values()])
    np.savez(tmp_path / "n.npz", id=list(CLIPS), names=tags, probabilities=rows)
    for name in ("w.csv", "q.csv", "l.jsonl", "p.parquet", "n.npz"):
        found = TagFile(str(tmp_path / name), RULE)
        assert len(found) == 2 and found.is_there and len(found.digest) == 16, name
        assert found["a.wav"] == LIKELY, name
        assert found["b.wav"] == Tagged((), (), "file"), name
        assert "c.wav" not in found


def test_names(tmp_path):
    path = tmp_path / "tags.csv"
    path.write_text('id,tags\na.wav,dog;rain;dog\nb.wav,\n"c.wav","[""x"", ""y""]"\n')
    found = TagFile(str(path), RULE, ";")
    assert found["a.wav"] == Tagged(("dog", "rain"), (), "file")
    assert found["b.wav"] == Tagged((), (), "file")
    assert found["c.wav"].names == ("x", "y")


def test_a_file_that_is_not_there(tmp_path):
    found = TagFile(str(tmp_path / "no.csv"), RULE)
    assert not found.is_there and len(found) == 0 and "a.wav" not in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,dog\na.wav,1\n", "no column id among name, dog"),
        ("id\na.wav\n", "no column of tags beside the ids"),
        ("id,dog\na.wav,1.5\n", "line 2: dog is '1.5', expected a probability, 0 to 1"),
        ("id,dog\na.wav,loud\n", "line 2: dog is 'loud', expected a probability"),
        ("id,dog\na.wav,1\na.wav,1\n", "line 3, column 'id': 'a.wav' is there already"),
        ("id,tags\na.wav,{broken\n", "line 2, column 'tags'"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "tags.csv"
    path.write_text(text)
    with pytest.raises(ManifestError) as caught:
        TagFile(str(path), RULE)
    assert message in str(caught.value)


def test_what_a_rule_chooses():
    assert chosen(("a", "b", "c"), [0.2, 0.4, 0.3], RULE, "tagger") == Tagged(
        ("b", "c"), (0.4, 0.3), "tagger"
    )
    assert chosen((), [], RULE, "file") == Tagged((), (), "file")


def test_columns():
    names = ("Dog", "Church bell", "rain")
    tagged = Tagged(("church_bell", "rain", "unicorn"), (0.5, 0.75, 0.9), "tagger")
    row, unknown = Columns(names)(tagged)
    assert row.dtype == np.float32 and row.tolist() == [0, 1, 1]
    assert unknown == ("unicorn",)
    assert Columns(names, soft=True)(tagged)[0].tolist() == [0, 0.5, 0.75]
    assert Columns(names)(Tagged(("Dog",)))[0].tolist() == [1, 0, 0]
