"""Embedding jobs: stopped anywhere, they go on and end with the same bytes."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

from clap_jax.embed import job, parts, stores
from clap_jax.embed.ahead import Embedded

SETTINGS = {"kind": "path", "embed_dim": 3, "weights": "abc"}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "ITEMS", 4)


@pytest.fixture
def files(tmp_path):
    """Twelve files; "bad" stands in three of them."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number in range(12):
        text = "bad" if number % 5 == 1 else str(number)
        (folder / f"{number:02d}.wav").write_text(text)
    return [str(path) for path in sorted(folder.iterdir())]


class Model:
    """Vectors from the content of files; stops after `limit` of them."""

    def __init__(self, limit=None, error=KeyboardInterrupt):
        self.seen, self.limit, self.error = [], limit, error

    def __call__(self, left):
        for path in left:
            if len(self.seen) == self.limit:
                raise self.error("stopped")
            self.seen.append(path)
            with open(path) as file:
                text = file.read()
            if text == "bad":
                yield Embedded(path, None, error=f"{path}: not a sound")
            else:
                vector = np.array([float(text), 1, 0], np.float32)
                yield Embedded(path, vector, float(text))


def contents(out):
    if out.is_dir():
        return {path.name: path.read_bytes() for path in sorted(out.iterdir())}
    return out.read_bytes()


@pytest.mark.parametrize("name", ["v.npz", "v.parquet", "v"])
def test_a_job(tmp_path, files, name):
    said = []
    out = tmp_path / "new" / "folder" / name
    summary = job.run(
        files, Model(), out, SETTINGS, lambda *a: said.append(a), note="the model"
    )
    assert summary == (9, 3, 0 + 2 + 3 + 4 + 5 + 7 + 8 + 9 + 10, False)
    rows, metadata = stores.read(out)
    good = [path for number, path in enumerate(files) if number % 5 != 1]
    assert rows.items == good
    assert rows.embedding[:, 0].tolist() == [0, 2, 3, 4, 5, 7, 8, 9, 10]
    assert rows.seconds.tolist() == [0, 2, 3, 4, 5, 7, 8, 9, 10]
    assert metadata["model"] == "the model"
    assert metadata["weights"] == "abc"
    assert said[0] == (0, 0, 12)
    assert said[-1] == (12, 3, 12)
    with (out.parent / f"{name}.bad.csv").open() as file:
        bad = list(csv.reader(file))
    assert bad[0] == ["path", "reason"]
    assert bad[1:] == [[files[i], f"{files[i]}: not a sound"] for i in (1, 6, 11)]
    assert len(list(out.parent.iterdir())) == 2


@pytest.mark.parametrize("name", ["v.npz", "v.parquet", "v"])
@pytest.mark.parametrize("limit", [0, 3, 4, 9, 11])
def test_a_stopped_job_goes_on(tmp_path, files, name, limit):
    whole, out = tmp_path / "whole" / name, tmp_path / name
    job.run(files, Model(), whole, SETTINGS)
    with pytest.raises(job.Interrupted, match=f"{limit // 4 * 4} of 12 are done"):
        job.run(files, Model(limit), out, SETTINGS)
    assert not out.exists()
    rest = Model()
    job.run(files, rest, out, SETTINGS)
    assert rest.seen == files[limit // 4 * 4 :]
    assert contents(out) == contents(whole)
    bad = tmp_path / f"{name}.bad.csv"
    assert bad.read_text() == (tmp_path / "whole" / bad.name).read_text()


def test_any_other_failure_keeps_what_is_done(tmp_path, files):
    out = tmp_path / "v.npz"
    with pytest.raises(RuntimeError, match="stopped"):
        job.run(files, Model(6, RuntimeError), out, SETTINGS)
    rest = Model()
    job.run(files, rest, out, SETTINGS)
    assert rest.seen == files[4:]


KILLED = """
import sys, time
from clap_jax.embed import job, parts
from tests.embed.test_job import Model, SETTINGS
parts.ITEMS = 4

class Slow(Model):
    def __call__(self, left):
        for number, row in enumerate(super().__call__(left)):
            if number == 6:
                print("here", flush=True)
                time.sleep(60)
            yield row

job.run(sys.argv[2:], Slow(), sys.argv[1], SETTINGS)
"""


def test_a_killed_job_goes_on(tmp_path, files):
    whole, out = tmp_path / "whole.npz", tmp_path / "v.npz"
    job.run(files, Model(), whole, SETTINGS)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out), *files], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"here\n"
    with pytest.raises(parts.PartsError, match="another process"):
        job.run(files, Model(), out, SETTINGS)
    process.kill()
    process.wait()
    process.stdout.close()
    rest = Model()
    job.run(files, rest, out, SETTINGS)
    assert rest.seen == files[4:]
    assert out.read_bytes() == whole.read_bytes()


def test_killed_between_the_result_and_the_end(tmp_path, files, monkeypatch):
    out = tmp_path / "v.npz"
    monkeypatch.setattr(parts.Parts, "remove", lambda self: self.close())
    job.run(files, Model(), out, SETTINGS)
    monkeypatch.undo()
    assert (tmp_path / "v.npz.parts").is_dir()
    assert job.run(files, Model(0), out, SETTINGS).was_there
    assert not (tmp_path / "v.npz.parts").exists()


def test_a_damaged_part_is_done_again(tmp_path, files):
    out = tmp_path / "v.npz"
    with pytest.raises(job.Interrupted):
        job.run(files, Model(9), out, SETTINGS)
    part = tmp_path / "v.npz.parts" / "000000.npz"
    part.write_bytes(part.read_bytes()[:100])
    rest = Model()
    job.run(files, rest, out, SETTINGS)
    assert rest.seen == files[:4] + files[8:]
    assert stores.read(out)[0].embedding[:, 0].tolist() == [0, 2, 3, 4, 5, 7, 8, 9, 10]


def test_a_file_that_changed_is_done_again(tmp_path, files):
    out = tmp_path / "v.npz"
    with pytest.raises(job.Interrupted):
        job.run(files, Model(8), out, SETTINGS)
    for number, text in ((1, "100"), (2, "200")):
        with open(files[number], "w") as file:
            file.write(text)
        os.utime(files[number], ns=(1, 1))
    rest = Model()
    summary = job.run(files, rest, out, SETTINGS)
    assert rest.seen == [files[1], files[2], *files[8:]]
    assert summary.bad == 2
    assert stores.read(out)[0].embedding[:4, 0].tolist() == [0, 100, 200, 3]


def test_files_that_came_and_went(tmp_path, files):
    out = tmp_path / "v.npz"
    with pytest.raises(job.Interrupted):
        job.run(files[::2], Model(4), out, SETTINGS)
    rest = Model()
    job.run(files[1:], rest, out, SETTINGS)
    assert rest.seen == [files[i] for i in (1, 3, 5, 7, 8, 9, 10, 11)]
    assert stores.read(out)[0].embedding[:, 0].tolist() == [2, 3, 4, 5, 7, 8, 9, 10]


def test_the_same_command_again_does_nothing(tmp_path, files):
    out = tmp_path / "v.npz"
    first = job.run(files, Model(), out, SETTINGS)
    again = job.run(files, Model(0), out, SETTINGS)
    assert again == first._replace(was_there=True)


@pytest.mark.parametrize(
    ("changes", "count", "message"),
    [
        ({"weights": "other"}, 12, "made from other weights"),
        ({}, 11, "made from other items"),
        ({"weights": "x", "embed_dim": 4}, 12, "made from other embed_dim, weights"),
    ],
)
def test_another_result_is_not_replaced(tmp_path, files, changes, count, message):
    out = tmp_path / "v.npz"
    job.run(files, Model(), out, SETTINGS)
    with pytest.raises(stores.StoreError, match=message):
        job.run(files[:count], Model(), out, SETTINGS | changes)


def test_parts_of_another_model_are_refused(tmp_path, files):
    out = tmp_path / "v.npz"
    with pytest.raises(job.Interrupted):
        job.run(files, Model(5), out, SETTINGS)
    message = "other settings .weights 'abc' there, 'other' now.*remove it to begin"
    with pytest.raises(parts.PartsError, match=message):
        job.run(files, Model(), out, SETTINGS | {"weights": "other"})
    rest = Model()
    job.run(files, rest, out, SETTINGS)
    assert rest.seen == files[4:]


def test_something_else_is_not_overwritten(tmp_path, files):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "thesis.tex").write_text("x")
    with pytest.raises(stores.StoreError, match="not written by clap-jax embed"):
        job.run(files, Model(), tmp_path / "v", SETTINGS)


def test_nothing_but_bad_files(tmp_path, files):
    out = tmp_path / "v.npz"
    bad = [files[i] for i in (1, 6)] + [str(tmp_path / "gone.wav")]

    def embed(left):
        return (Embedded(path, None, error="no") for path in left)

    assert job.run(bad, embed, out, SETTINGS) == (0, 3, 0, False)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [
        "v.npz.bad.csv"
    ]


def test_texts_may_repeat(tmp_path):
    def embed(left):
        for text in left:
            yield Embedded(text, np.array([len(text), 0, 0], np.float32))

    texts = ["a", "bb", "a", "ccc", "bb", "dddd"]
    out = tmp_path / "v.npz"
    settings = SETTINGS | {"kind": "text"}
    assert job.run(texts, embed, out, settings).count == 6
    rows, _ = stores.read(out)
    assert rows.items == texts
    assert rows.embedding[:, 0].tolist() == [1, 2, 1, 3, 2, 4]


def test_large_jobs_are_written_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "BLOCK_ROWS", 7)
    monkeypatch.setattr(stores, "SHARD_ROWS", 10)
    texts = [str(number) for number in range(50)]

    def embed(left):
        for text in left:
            yield Embedded(text, np.array([int(text), 0, 0], np.float32))

    for name in ("v.npz", "v.parquet", "v"):
        job.run(texts, embed, tmp_path / name, SETTINGS | {"kind": "text"})
        rows, _ = stores.read(tmp_path / name)
        assert rows.items == texts
        assert rows.embedding[:, 0].tolist() == list(range(50))
