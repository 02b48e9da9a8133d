"""Probes of clips over time: what becomes of segments, and whose they are."""

import numpy as np
import pytest

from clap_jax.evals import over_time, report
from clap_jax.evals.probe import Probe
from clap_jax.pipeline import feature_files
from clap_jax.pipeline.feature_files import FeaturesSource
from clap_jax.pipeline.features import Features
from tests.evals.pages import Page
from tests.evals.test_songs import Songs, encoder

CLASSES = ("fast", "slow")
ONE = {"strengths": (0.1,)}


def clip(index):
    """Segments whose deviation over time, and nothing else, says the class."""
    rng = np.random.default_rng(index)
    rows = rng.normal(0, (2.0, 0.5)[index % 2], (12, 3)).astype(np.float32)
    rows -= rows.mean(0)
    begin = np.arange(12, dtype=np.float32)
    return Features(rows, np.stack([begin, begin + 1], 1), np.ones(12, bool))


@pytest.fixture
def source(tmp_path):
    examples = (
        {
            "id": f"{i}.wav",
            "audio": clip(i),
            "captions": [],
            "tags": [CLASSES[i % 2]],
            "group": str(i),
        }
        for i in range(24)
    )
    feature_files.write_features(tmp_path / "all.array_record", examples, "float32")
    return FeaturesSource(tmp_path)


def test_mean_and_deviation_of_what_is_heard():
    found = clip(0)
    heard = np.arange(12) < 5
    pooled = over_time.pooled(found._replace(heard=heard))
    own = found.features[:5]
    np.testing.assert_allclose(
        pooled, np.concatenate([own.mean(0), own.std(0)]), atol=1e-6
    )
    silent = over_time.pooled(found._replace(heard=np.zeros(12, bool)))
    np.testing.assert_array_equal(silent, over_time.pooled(found))


def test_variation_over_time_is_found(source, tmp_path):
    result = Probe({"all": source}, folds=3, options=ONE, features="segments").run(None)
    assert result.metrics["probe_acc"] == 1
    assert result.metrics["bad_clips"] == 0
    assert result.protocol["chance"] == {"accuracy of the commonest class": 0.5}
    assert "standard deviation" in result.protocol["pooling"]
    Page(report.write_report(tmp_path / "page", {"tempo": result}).read_text())
    for number in range(24):
        np.testing.assert_array_equal(
            over_time.vectors(None, source)[0][number], over_time.pooled(clip(number))
        )


def test_segments_of_a_model_that_hears_them():
    own, _ = encoder(16)
    found, kept = over_time.vectors(own, Songs(5))
    song, read = own.source_songs(Songs(5))
    np.testing.assert_array_equal(kept, read)
    heard = song.segments[1][[0, 2, 3, 4]]  # one is silent
    np.testing.assert_allclose(
        found[1], np.concatenate([heard.mean(0), heard.std(0)]), atol=1e-6
    )
    with pytest.raises(ValueError, match="'songs' has no features of segments"):
        source = Songs(5)
        source.name = "songs"
        over_time.vectors(None, source)


def test_a_damaged_clip_is_left_out(source, monkeypatch):
    original = FeaturesSource._example

    def damaged(self, index, record):
        return original(self, index, b"no clip" if index == 2 else record)

    monkeypatch.setattr(FeaturesSource, "_example", damaged)
    probe = Probe({"all": source}, (), "", 3, options=ONE, features="segments", draws=0)
    result = probe.run(None)
    assert result.metrics["bad_clips"] == 1 and 2 not in result.clips
