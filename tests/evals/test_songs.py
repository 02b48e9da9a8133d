"""Long clips and texts in evaluations: as the model has them, whatever the batches."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from clap_jax.evals import hear, retrieval, scores, zeroshot
from clap_jax.evals.base import Remembering
from clap_jax.evals.encode import ModelEncoder
from clap_jax.models import temporal, zoo
from clap_jax.models.segments import Segments
from clap_jax.pipeline.ops import Prepare
from clap_jax.text.sentences import Sentences
from tests.models.test_long import weights
from tests.pipeline.clips import TinySource, make_tokenizer

SPEC = zoo.get_spec(
    "small_conv",
    {
        "frontend.rate_hz": 8000,
        "frontend.fmax_hz": 4000.0,
        "frontend.clip_seconds": 0.5,
        "audio.options": {"widths": (4, 8), "groups": 2, "dropout": 0.0},
        "text.options": {"width": 8, "heads": 2, "depth": 1, "mlp": 8},
        "embed_dim": 8,
        "text_length": 24,
        "vocab_size": 400,
        "temporal": {
            "heads": 2,
            "sentences": 3,
            "hop_seconds": 0.5,
            "longest_seconds": 5.0,
        },
    },
)
TEXTS = ["clip one. Then more. Tiny clip 3.", "tiny clip", "More. And more."]


class Songs(TinySource):
    """Clips of 0.3 to 6 seconds, the fourth damaged; one caption each."""

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        seconds = (0.3, 2.2, 6.0, 1.0, 1.6)[index % 5]
        wave = 0.1 * rng.normal(size=round(8000 * seconds)).astype(np.float32)
        if index == 1:
            wave[4000:8000] = 0  # its second segment
        if index == 3:
            wave[:] = np.nan
        return {**super().__getitem__(index), "audio": (wave, 8000)}

    def captions(self, index):
        words = (
            "number one. A tiny clip.",
            "clip. Then tiny.",
            "tiny. The sound of it.",
        )
        return [words[index % 3] + " clip" * index]


@functools.cache
def encoder(batch_size):
    tokenizer = make_tokenizer(SPEC.text_length)
    spec = dataclasses.replace(SPEC, vocab_size=tokenizer.vocab_size)
    model = zoo.build(spec)
    made = ModelEncoder(spec, model, tokenizer, batch_size=batch_size, threads=2)
    variables = weights(model)
    params = variables["params"]
    params["logit_scale_a"] = np.float32(np.log(100))
    params["temporal"]["mix"] = np.float32(3)
    return made.using(variables), model


@pytest.fixture(scope="module")
def songs():
    return encoder(16)[0].source_songs(Songs(5))


def test_a_song_is_what_the_model_makes_of_it(songs):
    song, kept = songs
    assert kept.tolist() == [True, True, True, False, True]
    assert song.heard.sum(1).tolist() == [1, 4, 10, 0, 4]
    assert song.heard[1].tolist()[:5] == [True, False, True, True, True]
    own, model = encoder(16)
    prepare = Prepare(
        SPEC.frontend, "exact", random_crop=False, segmenter=hear.segmenter(SPEC)
    )
    encode = jax.jit(lambda variables, clip: model.encode_audio(variables, clip)[0][0])
    for number in (1, 2):
        clip = prepare.example(prepare(Songs(5)[number]["audio"]))
        mel = hear.sound({"wave": clip["wave"]}, SPEC.frontend).mel
        clip = Segments(mel, clip["seconds"], clip["heard"])
        wanted = encode(own._variables, jax.tree.map(lambda x: x[None], clip))
        count = len(clip.heard)
        for name in ("whole", "segments", "seconds", "heard"):
            found = getattr(song, name)[number]
            found = found if name == "whole" else found[:count]
            np.testing.assert_allclose(found, getattr(wanted, name)[0], atol=2e-6)


def test_the_batch_does_not_matter(songs):
    again, _ = encoder(8)[0].source_songs(Songs(5))
    for x, y in zip(songs[0], again, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    own = encoder(8)[0]
    clips = [own.hear(Songs(5)[number]["audio"]) for number in (0, 1, 4)]
    np.testing.assert_allclose(own.clips(clips), songs[0].whole[[0, 1, 4]], atol=1e-6)
    # Alone, a clip of any length is heard whole.
    assert len(own.hear(Songs(5)[2]["audio"]).seconds) == 12


def test_scores_in_blocks(songs, monkeypatch):
    own, model = encoder(16)
    story = own.stories(TEXTS)
    rows = Sentences(own.tokenizer, 3)(TEXTS)
    (wanted, _), _ = jax.jit(model.encode_text)(own._variables, *rows)
    for x, y in zip(story, wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    params = own._variables["params"]
    dense = jax.jit(model.score)(params, songs[0], story)
    np.testing.assert_allclose(own.compare(songs[0], story), dense, atol=1e-4)
    monkeypatch.setattr("clap_jax.evals.songs.NUMBERS_AT_A_TIME", 300)
    np.testing.assert_allclose(own.compare(songs[0], story), dense, atol=1e-4)
    weights_in_time = own.attention(temporal.Song(*(x[:3] for x in songs[0])), story)
    assert weights_in_time.shape == (3, 3, 10)
    np.testing.assert_allclose(weights_in_time[0].sum(-1), 1, atol=1e-6)


def test_retrieval_goes_by_the_fused_score(songs):
    own, _ = encoder(16)
    source = Songs(5)
    result = retrieval.Retrieval(source, draws=0).run(Remembering(own))
    kept = np.array([0, 1, 2, 4])
    story = own.stories([source.captions(number)[0] for number in kept])
    song = temporal.Song(*(x[kept] for x in songs[0]))
    fused = own.compare(song, story)
    plain = own.score(song.whole, story.whole)
    assert np.abs(fused - plain).max() > 1e-3
    ranks = (fused >= np.diag(fused)).sum(0)  # of each text, by clip
    assert result.metrics["t2a_R@1"] == pytest.approx((ranks == 1).mean())
    assert result.metrics["bad_clips"] == 1
    assert "segments of 0.5 s every 0.5 s" in own.protocol()["clip"]


def test_zero_shot_goes_by_the_mean_fused_score(songs):
    """Of each class's sentences, which are not averaged before."""
    own, _ = encoder(16)
    tags = [["clip"], ["one"], ["clip"], ["clip"], ["tiny", "one"]]
    source = Songs(5)
    source.tags = tags.__getitem__
    templates = ("{}. Then more.", "the sound of {}")
    labels = ["clip", "one", "tiny"]
    result = zeroshot.ZeroShot(source, templates, draws=0).run(own)
    kept = np.array([0, 1, 2, 4])
    song = temporal.Song(*(x[kept] for x in songs[0]))
    story = own.stories([t.replace("{}", x) for x in labels for t in templates])
    fused = own.compare(song, story).reshape(4, 3, 2).mean(2)
    targets = np.array([[x in tags[clip] for x in labels] for clip in kept])
    wanted = scores.mean_average_precision(fused, targets)
    assert result.metrics["zeroshot_mAP"] == pytest.approx(wanted)
    assert result.metrics["bad_clips"] == 1
    for miss in result.misses:
        row, column = kept.tolist().index(miss.clip), labels.index(miss.found)
        found = fused[row, column] / own.scale
        assert miss.found_similarity == pytest.approx(found, rel=1e-4)
        assert miss.score == "fused score"
    assert "attention over segments" in result.protocol["score"]
    assert result.protocol["prompts"] == "mean of the scores of 2 sentences a class"
    alone = own.compare(song, own.stories([f"{x}. Then more." for x in labels]))
    wanted = scores.mean_average_precision(alone, targets)
    place = result.labels["prompts"].index("{}. Then more.")
    assert result.arrays["prompt_scores"][place] == pytest.approx(wanted)
