"""Features of segments: bytes both ways, their source, and what is wrong with them."""

import io
import pickle

import numpy as np
import pytest

from clap_jax.audio.io import AudioError
from clap_jax.pipeline import array_record, feature_files, ops
from clap_jax.pipeline.array_record import ArrayRecordError
from clap_jax.pipeline.feature_files import FeaturesSource
from clap_jax.pipeline.features import Features
from clap_jax.pipeline.sources import build_source
from tests.pipeline.clips import RATE_HZ, wave


def clip(segments=5, width=4, seed=0):
    begin = np.arange(segments, dtype=np.float32) * 10
    rng = np.random.default_rng(seed)
    heard = np.ones(segments, bool)
    heard[-1] = segments == 1
    return Features(
        rng.standard_normal((segments, width)).astype(np.float32),
        np.stack([begin, begin + 10], 1),
        heard,
    )


def example(number, **more):
    return {
        "id": f"{number}.wav",
        "captions": [f"song {number}"],
        "tags": ["rock"],
        "group": f"{number}",
        "audio": clip(1 + number, seed=number),
        **more,
    }


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Two shards of three and two clips, float32."""
    folder = tmp_path_factory.mktemp("features")
    for shard, numbers in enumerate(((0, 1, 2), (3, 4))):
        path = folder / f"songs-{shard:05d}-of-00002.array_record"
        feature_files.write_features(path, map(example, numbers), "float32")
    return folder


def test_bytes_both_ways():
    there = clip()
    for dtype, exact in (("float32", True), ("float16", False)):
        data = there.to_bytes(dtype)
        assert data == there.to_bytes(dtype)
        back = Features.from_bytes(data)
        assert back.features.dtype == back.seconds.dtype == np.float32
        assert np.array_equal(back.features, there.features) == exact
        np.testing.assert_allclose(back.features, there.features, rtol=2**-11)
        np.testing.assert_array_equal(back.seconds, there.seconds)
        np.testing.assert_array_equal(back.heard, there.heard)
    assert len(clip(500, 64).to_bytes()) < 0.7 * len(clip(500, 64).to_bytes("float32"))


def test_part_begins_at_zero():
    part = clip().part(1, 3)
    np.testing.assert_array_equal(part.features, clip().features[1:4])
    np.testing.assert_array_equal(part.seconds, [[0, 10], [10, 20], [20, 30]])
    assert part.heard.tolist() == [True, True, True] and part.width == 4


def test_source(packed):
    source = build_source("features", "songs", {"path": str(packed)})
    assert source.features_width == 4
    assert source.description() == (
        f"songs: 5 clips as features of 4 numbers in 2 files ({packed})"
    )
    copy = pickle.loads(pickle.dumps(source))
    rows = source.read([4, 0, 2])
    for index, row in zip((4, 0, 2), rows):
        wanted = example(index)
        for found in (row, source[index], copy[index]):
            for field, array in wanted["audio"]._asdict().items():
                np.testing.assert_array_equal(getattr(found["audio"], field), array)
            for key in ("id", "captions", "tags", "group"):
                assert found[key] == wanted[key]
    assert source.captions(3) == ["song 3"] and source.tags(3) == ["rock"]
    assert source.id(3) == "3.wav" and source.group(3) == "3"


def test_parts_of_a_source(packed):
    parts = [
        build_source("features", "songs", {"path": str(packed), "part": f"{n}/2"})
        for n in (1, 2)
    ]
    ids = [part.id(i) for part in parts for i in range(len(part))]
    assert sorted(ids) == [f"{n}.wav" for n in range(5)] and min(map(len, parts)) > 0
    assert parts[0].features_width == 4
    assert len({part.digest() for part in parts}) == 2


def test_captions_may_come_later(tmp_path):
    path = tmp_path / "songs.array_record"
    feature_files.write_features(
        path, [example(0, captions=[]), example(1, captions=[])]
    )
    source = FeaturesSource(path)
    with pytest.raises(ValueError, match=r"features: clip 0\.wav has no captions"):
        ops.draw_caption(source, 0, np.random.default_rng(0))
    later = tmp_path / "captions.jsonl"
    line = '{"id": "1.wav", "caption": "a song", "origin": {"kind": "t5"}}\n'
    later.write_text(line)
    options = {"path": str(path), "generated": str(later), "captions": "only"}
    source = build_source("features", "songs", options)
    assert len(source) == 1 and source.captions(0) == ["a song"]
    assert source.features_width == 4 and len(source[0]["audio"].features) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features": np.zeros((5,), np.float32)},
            r"features: float32 \[5\], expected",
        ),
        ({"features": np.zeros((0, 4), np.float32)}, "S and D 1 or more"),
        ({"features": np.zeros((5, 4), np.int16)}, r"features: int16 \[5, 4\]"),
        ({"seconds": np.zeros((4, 2), np.float32)}, r"seconds: \[4, 2\], expected \[5"),
        ({"seconds": np.zeros((5, 2), np.float32)}, "segment 0 goes from 0 to 0"),
        ({"seconds": clip().seconds[::-1]}, "not in the order"),
        ({"heard": np.ones(5, np.float32)}, r"heard: float32 \[5\], expected bool"),
        ({"features": np.full((5, 4), np.nan)}, "20 of 20 numbers are not finite"),
        ({"features": np.full((5, 4), 1e6)}, r"1e\+06 is too large for float16"),
    ],
)
def test_what_is_wrong_with_a_clip(change, message, tmp_path):
    path = tmp_path / "songs.array_record"
    wrong = example(4, audio=clip()._replace(**change))
    with pytest.raises(ValueError, match=rf"clip '4\.wav': .*{message}"):
        feature_files.write_features(path, [wrong])
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_a_file(tmp_path):
    path = tmp_path / "clips.array_record"
    array_record.write_array_record(path, [example(0, audio=(wave(1), RATE_HZ))])
    with pytest.raises(ArrayRecordError, match=r"clip 0\.wav: no features of segments"):
        FeaturesSource(path)

    feature_files.write_features(
        path, [example(0), example(1, audio=clip(2, 8)), example(2)]
    )
    source = FeaturesSource(path)
    with pytest.raises(AudioError, match=r"clip 1\.wav: features of 8 .* expected 4"):
        source[1]
    good, wrong, other = source.read([0, 1, 2])
    assert isinstance(wrong, AudioError)
    assert good["id"] == "0.wav" and other["id"] == "2.wav"


def test_no_pickle_is_read():
    file = io.BytesIO()
    objects = np.array([print], object)
    np.savez(file, features=objects, seconds=objects, heard=objects)
    with pytest.raises(AudioError, match="no features of segments.*allow_pickle"):
        Features.from_bytes(file.getvalue())
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        clip().to_bytes("int8")
