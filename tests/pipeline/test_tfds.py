"""The source of what TFDS prepared: clips, splits, captions, what is wrong."""

import gzip
import json
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clap_jax.audio import io
from clap_jax.pipeline import tfds
from clap_jax.pipeline.loader import train_dataset
from clap_jax.pipeline.ops import Clips, Prepare
from clap_jax.pipeline.sources import build_source, section
from clap_jax.pipeline.tfds import TfdsError, TfdsSource
from data.datasets import builder
from data.datasets.row import Clip, DataSet
from tests.pipeline.clips import FRONTEND, make_tokenizer
from tests.pipeline.shards import sound

TRAIN, TEST = 12, 4


def clip(split: str, number: int) -> Clip:
    """Even clips have captions, every third has two labels, the others one."""
    captions = (f"number {number}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}\r\nlate")
    return Clip(
        split,
        f"clip{number}",
        lambda: sound(number),
        captions if number % 2 == 0 else (),
        ("Dog_bark", "rain") if number % 3 == 0 else ("rain",),
        fold=str(number % 4),
    )


def row(name: str = "tiny", configs: dict | None = None) -> DataSet:
    def read(folder, config, splits):
        yield from (clip("train", number) for number in range(TRAIN))
        yield from (clip("test", TRAIN + number) for number in range(TEST))

    text = {"title": "t", "homepage": "h", "licence": "l", "citation": "c", "get": ""}
    splits = {"train": TRAIN, "test": TEST}
    options = {"splits": splits, "configs": configs or {}, "keep_order": True}
    return DataSet(name=name, read=read, **text, **options)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Where `tiny` is, and `both` with two configs."""
    folder = tmp_path_factory.mktemp("tfds")
    builder.make(row(), data_dir=folder).download_and_prepare()
    for config in ("one", "two"):
        both = row("both", {"one": None, "two": None})
        builder.make(both, config, data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture
def own(data_dir, tmp_path) -> Path:
    """A copy of `tiny` to be spoilt."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for path in (data_dir / "tiny" / "1.0.0").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_clips_are_what_was_prepared(data_dir):
    source = build_source("tfds", "x", {"dataset": "tiny", "data_dir": str(data_dir)})
    assert len(source) == TRAIN
    for index in range(TRAIN):
        expected = clip("train", index)
        example = source[index]
        assert example["audio"] == sound(index)
        assert example["id"] == source.id(index) == f"clip{index}"
        assert example["tags"] == source.tags(index) == list(expected.tags)
        assert example["captions"] == source.captions(index)
        if index % 2 == 0:
            assert example["captions"] == list(expected.captions)
            assert example["group"] == source.group(index) == f"clip{index}"
        else:
            names = {"Dog_bark": "dog bark", "rain": "rain"}
            assert example["captions"] == [names[tag] for tag in expected.tags]
            assert example["group"] == source.group(index) == "|".join(expected.tags)
        assert source.fold(index) == str(index % 4)
    (file,) = source.audio_files()[1:]
    assert "-train.array_record" in file and Path(file).is_file()
    assert source.read([5, 0, 5]) == [source[5], source[0], source[5]]
    assert source.description() == (
        f"x: 12 clips, train of {data_dir / 'tiny' / '1.0.0'}"
    )
    with pytest.raises(IndexError, match="x has 12 clips, no 12"):
        source[12]


def test_captions_are_made_from_labels_when_asked_for(data_dir):
    options = {"dataset": "tiny", "data_dir": data_dir, "templates": ("a {}", "{}!")}
    tags = TfdsSource(**options, captions_from="tags")
    assert tags.captions(0) == ["a dog bark", "dog bark!", "a rain", "rain!"]
    assert tags.group(0) == "Dog_bark|rain"
    captions = TfdsSource(**options, captions_from="captions")
    assert captions.captions(1) == [""] and captions.captions(0)[0] == "number 0"
    with pytest.raises(ValueError, match="captions_from is 'labels', expected one of"):
        TfdsSource("tiny", data_dir=data_dir, captions_from="labels")
    with pytest.raises(ValueError, match="must have {} in it exactly once"):
        TfdsSource("tiny", data_dir=data_dir, templates=("no place",))


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("test", range(12, 16)),
        ("train[:25%]", range(3)),
        ("train[10:]", (10, 11)),
        ("test+train[:2]", (12, 13, 14, 15, 0, 1)),
        ("train[2:4]+train[7:8]", (2, 3, 7)),
        ("all", range(16)),
    ],
)
def test_splits_are_written_as_tfds_writes_them(data_dir, split, numbers):
    source = TfdsSource("tiny", split, data_dir)
    ids = [f"clip{number}" for number in numbers]
    assert [source.id(index) for index in range(len(source))] == ids
    assert [source[index]["id"] for index in range(len(source))] == ids


@pytest.mark.parametrize("split", ["valid", "train[", "train[:-200%]", ""])
def test_splits_that_are_not_there(data_dir, split):
    with pytest.raises(TfdsError, match=r"cannot read the split .*train 12, test 4"):
        TfdsSource("tiny", split, data_dir)


def test_places_of_a_data_set(data_dir, monkeypatch):
    folder = data_dir / "tiny" / "1.0.0"
    for dataset in ("tiny", "tiny/1.0.0", "tiny/"):
        assert tfds.find(dataset, data_dir) == str(folder)
    assert tfds.find(folder) == tfds.find(folder.parent) == str(folder)
    assert section(str(folder)) == {"kind": "tfds", "dataset": str(folder)}
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert tfds.find("tiny") == str(folder)
    # The first config is the one that is meant when none is named.
    assert tfds.find("both") == str(data_dir / "both" / "one" / "1.0.0")
    assert tfds.find("both/two") == str(data_dir / "both" / "two" / "1.0.0")


def test_the_newest_version_is_taken(own, tmp_path):
    for version in ("1.9.0", "1.10.0", "2.0.0"):
        (tmp_path / "set" / version).mkdir(parents=True)
        if version != "2.0.0":  # whole ones only
            (tmp_path / "set" / version / tfds.INFO).touch()
    assert tfds.find("set", tmp_path) == str(tmp_path / "set" / "1.10.0")


def test_a_set_that_is_not_prepared_says_how(data_dir, tmp_path):
    with pytest.raises(TfdsError) as caught:
        TfdsSource("esc50", "fold1", tmp_path)
    assert str(caught.value) == (
        f"esc50 is not prepared in {tmp_path}: run `python -m data.prepare esc50 "
        f"--data_dir={tmp_path}` from the repository (`--help` says what it needs), or "
        "set data_dir"
    )
    (data_dir / "both" / ".config" / "metadata.json").rename(tmp_path / "aside")
    with pytest.raises(TfdsError, match="both is prepared as both/one, both/two in"):
        TfdsSource("both", data_dir=data_dir)
    (tmp_path / "aside").rename(data_dir / "both" / ".config" / "metadata.json")


def test_urls_are_refused(data_dir):
    for place in ({"dataset": "gs://b/x"}, {"dataset": "x", "data_dir": "s3://b"}):
        with pytest.raises(TfdsError, match="is a URL: .* mount it, or copy it"):
            TfdsSource(**place)


def test_folders_that_are_not_ours_or_not_whole(own):
    index = own / tfds.INDEX.format("train")
    lines = gzip.decompress(index.read_bytes())
    whole = index.read_bytes()
    index.write_bytes(whole[:-20])
    with pytest.raises(TfdsError, match="clips-train.jsonl.gz is damaged"):
        TfdsSource(own)
    index.write_bytes(gzip.compress(lines[: lines.index(b"\n") + 1]))
    with pytest.raises(TfdsError, match="index of train has 1 clips where the rec"):
        TfdsSource(own)
    index.unlink()
    with pytest.raises(TfdsError, match="was not written by data.prepare"):
        TfdsSource(own)
    assert len(TfdsSource(own, "test")) == TEST
    index.write_bytes(whole)
    next(own.glob("tiny-train.array_record*")).unlink()
    with pytest.raises(TfdsError, match="-00000-of-00001 is missing: prepare the data"):
        TfdsSource(own)


def test_a_record_of_another_clip_is_a_bad_clip(own):
    index = own / tfds.INDEX.format("train")
    lines = gzip.decompress(index.read_bytes()).replace(b'"clip3"', b'"clipX"')
    index.write_bytes(gzip.compress(lines))
    source = TfdsSource(own)
    with pytest.raises(io.AudioError, match="clip clipX: .*'clip3' is in its place"):
        source[3]
    assert isinstance(source.read([2, 3])[1], io.AudioError)
    clips = Clips(source, Prepare(FRONTEND))
    assert [clips.fetch(i).index for i in range(2, 5)] == [2, 4, 4]


def test_a_damaged_record_is_a_bad_clip(own):
    (path,) = own.glob("tiny-test.array_record*")
    content = bytearray(path.read_bytes())
    places = [found.start() for found in re.finditer(b"fLaC", content)]
    content[places[2] + 200 : places[2] + 500] = bytes(300)
    path.write_bytes(content)
    source = TfdsSource(own, "test")
    found = source.read(range(TEST))
    bad = [i for i, example in enumerate(found) if isinstance(example, io.AudioError)]
    assert bad == [2] and "clip clip14: damaged record" in str(found[2])


def test_it_can_be_pickled_and_read_by_threads(data_dir):
    source = TfdsSource("tiny", "train", data_dir)
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        examples = list(pool.map(copy.__getitem__, list(range(TRAIN)) * 5))
    assert examples == [source[index] for index in range(TRAIN)] * 5


def test_captions_do_not_touch_the_records(data_dir, monkeypatch):
    source = TfdsSource("tiny", "train", data_dir)
    monkeypatch.setattr(source, "_records", None)
    assert source.captions(2)[0] == "number 2"
    assert source.digest()


def test_digest_tells_data_apart(data_dir, own):
    digests = [
        TfdsSource("tiny", "train", data_dir).digest(),
        TfdsSource("tiny", "test", data_dir).digest(),
        TfdsSource("tiny", "train[1:]", data_dir).digest(),
        TfdsSource("tiny", "train", data_dir, captions_from="tags").digest(),
        TfdsSource("tiny", "train", data_dir, templates=("the {}",)).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert TfdsSource(own).digest() == digests[0]


def test_batches_are_made_of_it(data_dir):
    sources = [(TfdsSource("tiny", "all", data_dir), None)]
    prepare, tokenizer = Prepare(FRONTEND, mel="host"), make_tokenizer()
    batches = []
    for together in (1, 4):
        options = {"batch_size": 8, "seed": 3, "threads": 2, "prefetch": 2}
        iterator = iter(
            train_dataset(
                sources, prepare, tokenizer, read_together=together, **options
            )
        )
        batches.append([next(iterator) for _ in range(2)])
        iterator.close()
    for batch in (batch for own in batches for batch in own):
        assert batch["mel"].shape == (8, 26, 16) and not batch["bad"].any()
        assert np.isfinite(batch["mel"]).all() and batch["mask"].any(axis=1).all()


def test_it_needs_neither_jax_nor_tensorflow(data_dir):
    code = (
        "import sys\n"
        "from clap_jax.pipeline.tfds import TfdsSource\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"source = TfdsSource('tiny', 'train', {str(data_dir)!r})\n"
        "assert len(source[3]['audio'])\n"
        "print([m for m in ('jax', 'tensorflow', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_index_is_text_that_others_can_read(data_dir):
    path = data_dir / "tiny" / "1.0.0" / tfds.INDEX.format("test")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert len(lines) == TEST
    assert json.loads(lines[1]) == {
        "id": "clip13",
        "captions": [],
        "tags": ["rain"],
        "group": "rain",
        "fold": "1",
    }
