"""What guides a captioner: labels of clips, or a tagger's probabilities in files."""

import json

import numpy as np
import pytest
from absl import logging

from clap_jax.pipeline import tag_files
from clap_jax.pipeline.guides import Captioned, Guides
from clap_jax.pipeline.tags import TagRule
from clap_jax.text.answers import Writer
from tests import small_models
from tests.evals.fakes import FakeSource

TAGS = [["dog", "rain"], [], ["bell"], ["dog", "dog"]]
NAMES = ("bell", "dog", "rain")


class Clips(FakeSource):
    """Clips with ids."""

    def id(self, index):
        return f"{self.name}/{index}.wav"


@pytest.fixture
def source():
    return Clips([["a"], ["b"], ["c"], ["d"]], TAGS)


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    lines = []
    for name in ("info", "warning"):
        monkeypatch.setattr(logging, name, lambda text, *a: lines.append(text % a))
    return lines


def lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def probabilities(source):
    """Of all clips but the last."""
    rows = [[0.9, 0.4, 0.2], [0.1, 0.2, 0.0], [0.0, 1.0, 0.35]]
    return [(source.id(i), row) for i, row in enumerate(rows)]


def test_labels_of_clips(source, said):
    found = Guides("source", sources=[source])
    assert found.names == NAMES
    rows = [found.of(source, clip).tolist() for clip in range(4)]
    assert rows == [[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]]
    found.report(source)
    assert said == ["fake: 3 of 4 clips have tags, of 3"]


def test_labels_that_are_no_tags_are_left_out_and_named(source, said):
    found = Guides("source", ("dog", "siren"))
    assert found.of(source, 0).tolist() == [1, 0]
    found.report(source)
    assert "fake: 2 labels are no tags that the captioner knows" in said[1]
    assert "rain (1)" in said[1] and "bell (1)" in said[1]


def test_no_tags(source):
    found = Guides("none", NAMES)
    assert found.of(source, 0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["npz", "jsonl"])
def test_files_of_probabilities(source, tmp_path, kind, said):
    """Chosen by the rule; a clip that is not there has none."""
    ids, rows = zip(*probabilities(source))
    path = tmp_path / f"tags.{kind}"
    if kind == "npz":
        np.savez(path, id=ids, names=NAMES, probabilities=rows)
    else:
        known = [dict(zip(NAMES, row)) for row in rows]
        lines(
            path,
            [{"path": one, "probabilities": own} for one, own in zip(ids, known)],
        )
    found = Guides(str(path), rule=TagRule.parse("0.3_top5"))
    assert found.names == NAMES
    assert [found.of(source, clip).tolist() for clip in range(4)] == [
        *([1, 1, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0])
    ]
    soft = Guides(str(path), ("rain", "dog"), rule=TagRule(0.3, 1), soft=True)
    np.testing.assert_allclose(soft.of(source, 2), [0, 1])
    np.testing.assert_allclose(soft.of(source, 0), [0, 0.4])
    found.report(source)
    assert said[0].startswith("fake: 3 of 4 clips are in the file")
    with pytest.raises(ValueError, match="no clip of source 'other' is in the file"):
        found.report(Clips([["a"]], name="other"))


def test_several_files(source, tmp_path):
    (first, row), (second, other), _ = probabilities(source)
    one = lines(
        tmp_path / "1.jsonl", [{"id": first, "probabilities": dict(zip(NAMES, row))}]
    )
    turned = dict(zip(NAMES[::-1], other[::-1]))
    two = lines(tmp_path / "2.jsonl", [{"id": second, "probabilities": turned}])
    table = tag_files.read([one, two])
    np.testing.assert_allclose(table.of(second), other)
    assert table.of("x") is None
    three = lines(tmp_path / "3.jsonl", [{"id": "x", "probabilities": {"cat": 0.5}}])
    with pytest.raises(ValueError, match="3.jsonl has other tags than .*1.jsonl: bell"):
        tag_files.read([one, three])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.npz", None, "there is no file of tag probabilities .*none.npz"),
        ("a.jsonl", '{"id": "a"}', r"a.jsonl:1 is .*expected"),
        ("a.jsonl", '{"id": "a", "probabilities": ["dog"]}', r"a.jsonl:1 is"),
        ("a.jsonl", "dog 0.5", r"a.jsonl:1 is dog 0.5, expected"),
        ("a.jsonl", "", "a.jsonl has no clip"),
        ("a.jsonl", '{"id": "a", "probabilities": {"dog": 1.5}}', "clip a has 1.5"),
        ("a.npz", "text", "a.npz is no file of tag probabilities"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        tag_files.read(tmp_path / name)


def test_tags_that_a_file_lacks(source, tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"id": "a", "probabilities": {"dog": 0.5}}])
    with pytest.raises(ValueError, match="no probabilities of 1 tags .*: bell"):
        Guides(str(path), ("dog", "bell"))


def test_rows_of_a_batch(source):
    """Caption and tags; some are dropped, by the generator alone."""
    writer = Writer(small_models.tokenizer("plain", 12))
    found = Guides("source", sources=[source])
    rows = Captioned(1, writer, 12, found, tags=3, drop=0.5)
    assert set(rows.fields) == {"ids", "mask", "answer", "tags"}
    rng = np.random.default_rng(0)
    assert rows.draw(0, source, 2, rng) == ("", "c")
    drawn = [rows.beside(source, 0, rng)["tags"] for _ in range(200)]
    means = np.mean(drawn, axis=0)
    assert means[0] == 0 and (abs(means[1:] - 0.5) < 0.12).all()
    again = rows.beside(source, 0, np.random.default_rng(5))["tags"]
    np.testing.assert_array_equal(
        again, rows.beside(source, 0, np.random.default_rng(5))["tags"]
    )
    plain = Captioned(1, writer, 12)
    assert plain.beside(source, 0, rng) == {} and "tags" not in plain.fields
    whole = Captioned(1, writer, 12, found, tags=3, untagged=1.0)
    assert not whole.beside(source, 0, rng)["tags"].any()
