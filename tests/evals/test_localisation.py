"""When sentences are heard: by hand-made attention, and through whole models."""

import types

import jax
import numpy as np
import pytest

from clap_jax.evals import Localisation, build_evaluator, report
from clap_jax.evals.encode import ModelEncoder
from clap_jax.models import zoo
from clap_jax.models.temporal import Song
from clap_jax.pipeline import feature_files
from clap_jax.pipeline.features import Features
from clap_jax.pipeline.pieces import PiecesSource
from clap_jax.pipeline.sources import build_source
from clap_jax.text import tokenize
from tests.evals.fakes import FakeSource

SECTIONS = [(0.0, 4.0, "A drum."), (4.0, 6.0, "A bell."), (6.0, 10.0, "Rain falls.")]
CAPTION = "All in all. A drum. A bell. Rain falls. It ends."


class Source(FakeSource):
    """Clips of 10 s with three sections each."""

    def __init__(self, captions, known=None):
        super().__init__(captions)
        self._known = known or [SECTIONS] * len(captions)

    def sections(self, index):
        return self._known[index]

    def id(self, index):
        return f"clip {index}"

    def digest(self):
        return "d"


class Listener:
    """Ten segments of a second. attention: [clips, sentences, 10]."""

    hears_segments = True
    spec = types.SimpleNamespace(temporal=types.SimpleNamespace(sentences=8))

    def __init__(self, attention, bad=()):
        self.by_clip, self.bad = np.array(attention, float), list(bad)
        self.asked = []

    def source_songs(self, source):
        begin = np.arange(10.0)
        seconds = np.stack([begin, begin + 1], axis=-1)[None].repeat(len(source), 0)
        kept = np.ones(len(source), bool)
        seconds[self.bad], kept[self.bad] = 0, False
        whole = np.arange(len(source), dtype=float)[:, None]
        heard = (seconds[..., 1] > 0) & (begin != 9)
        return Song(whole, whole[:, None], seconds, heard), kept

    def sentences(self, text):
        return [part.strip() + "." for part in text.split(".") if part.strip()]

    def stories(self, texts):
        self.asked += texts
        return None

    def attention(self, song, story):
        return self.by_clip[song.whole[:, 0].astype(int)]


def at(*rows):
    """Rows [sentences, 10] of attention: segments -> weights."""
    found = np.zeros((len(rows), 10))
    for row, weights_of in zip(found, rows, strict=True):
        for segment, weight in weights_of.items():
            row[segment] = weight
    return found


EVENLY = dict.fromkeys(range(10), 0.1)


def test_centres_and_peaks_by_hand():
    first = at(EVENLY, {0: 0.6, 3: 0.4}, {4: 0.5, 5: 0.5}, {9: 0.6, 0: 0.4}, EVENLY)
    # Centres 1.7 and 5.0 lie inside, 5.9 does not; the peak of the last does.
    second = at(EVENLY, {4: 1}, {3: 1}, {7: 1}, EVENLY)
    encoder = Listener([first, second])
    source = Source([[CAPTION], ["Nothing of it.", CAPTION]])
    result = Localisation(source, draws=50).run(encoder)
    assert encoder.asked == [CAPTION, CAPTION]
    assert result.metrics == {
        "localisation_centre": 3 / 6,
        "localisation_peak": 4 / 6,
        "bad_clips": 0,
    }
    np.testing.assert_array_equal(
        result.per_clip["localisation_centre"], [[2, 3], [1, 3]]
    )
    low, high = result.intervals["localisation_centre"]
    assert low == pytest.approx(1 / 3) and high == pytest.approx(2 / 3)
    assert result.protocol["sentences"] == 6
    # The middle, 5 s, is in the second section; of 9 heard segments 4, 2 and 3 are.
    chance = result.protocol["chance"]
    assert chance["middle of the clip"] == pytest.approx(1 / 3)
    assert chance["any segment"] == pytest.approx((4 + 2 + 3) / 9 / 3)


def test_what_is_about_several_sections_does_not_count():
    known = [(0.0, 5.0, "A drum."), (5.0, 10.0, "A drum."), (5.0, 9.0, "A bell.")]
    source = Source([["A drum. A bell. A bell too."]], [known])
    attention = at(EVENLY, {6: 1}, EVENLY)
    result = Localisation(source, draws=0).run(Listener([attention]))
    assert result.protocol["sentences"] == 1
    assert result.metrics["localisation_centre"] == 1


def test_a_clip_that_cannot_be_read_is_left_out():
    attention = at(*[EVENLY] * 5)
    encoder = Listener([attention] * 2, bad=[0])
    result = Localisation(Source([[CAPTION]] * 2), draws=0).run(encoder)
    assert result.metrics["bad_clips"] == 1 and list(result.clips) == [1]
    assert result.metrics["localisation_centre"] == 1 / 3


def test_captions_that_say_when():
    timed = "From 0:00 to 0:04 a drum. From 0:04 to 0:10 a bell."
    source = FakeSource([[timed]])
    source.id, source.digest = str, lambda: "d"
    encoder = Listener([at({1: 1}, {2: 1})])
    result = Localisation(source, draws=0).run(encoder)
    assert result.metrics["localisation_centre"] == 0.5


def test_mistakes_get_a_sentence():
    with pytest.raises(ValueError, match="'fake' has no clips"):
        Localisation(FakeSource([]))
    with pytest.raises(
        ValueError, match="clip clip 1 of source 'fake' has no captions"
    ):
        Localisation(Source([[CAPTION], []]))
    source = Source([["Another."]])
    with pytest.raises(ValueError, match="no clip with a sentence that is about one"):
        Localisation(source).run(Listener([at(EVENLY)]))
    plain = Listener([])
    plain.hears_segments = False
    with pytest.raises(ValueError, match="compares no sentences with segments"):
        Localisation(source).run(plain)
    late = Source([[CAPTION]], [[(0.0, 4.0, "A drum."), (4.0, 60.0, "A bell.")]])
    with pytest.raises(ValueError, match="localisation: clip clip 0 has .* to 60 s"):
        Localisation(late).run(Listener([at(EVENLY)]))


def test_features_keep_the_sections_of_pieces(tmp_path):
    """And a model that hears these features is asked when; the page opens."""
    pieces = PiecesSource("test", 3, seconds=(47, 48), sections=(4, 4))
    rng = np.random.default_rng(0)
    begin = np.arange(24, dtype=np.float32) * 2
    seconds = np.stack([begin, begin + 2], axis=-1)

    def features(clip):
        audio = Features(rng.normal(size=(24, 8)), seconds, np.ones(24, bool))
        return pieces[clip] | {"audio": audio, "sections": pieces.sections(clip)}

    path = tmp_path / "pieces.array_record"
    feature_files.write_features(path, map(features, range(3)))
    source = build_source("features", "pieces", {"path": str(path), "part": "1/1"})
    assert source.sections(1) == pieces.sections(1)
    tokenizer = tokenize.train([pieces.captions(i)[0] for i in range(3)], 600, 400)
    spec = zoo.get_spec(
        "small_conv",
        {
            "frontend.clip_seconds": 2.0,
            "audio": {"kind": "features", "options": {"width": 8}},
            "text.options": {"width": 8, "heads": 2, "depth": 1, "mlp": 8},
            "text.options.position_table": 512,
            "embed_dim": 8,
            "text_length": 400,
            "vocab_size": tokenizer.vocab_size,
            "temporal": {"heads": 2, "sentences": 8, "hop_seconds": 2.0},
        },
    )
    model = zoo.build(spec)
    encoder = ModelEncoder(spec, model, tokenizer, batch_size=8)
    encoder = encoder.using(model.init(jax.random.key(0)))
    result = build_evaluator("localisation", source, {"draws": 20}).run(encoder)
    assert result.protocol["sentences"] == 12
    assert 0 <= result.metrics["localisation_peak"] <= 1
    page = report.write_report(tmp_path, {"when": result}).read_text()
    assert "When sentences are heard" in page and "centre inside" in page
