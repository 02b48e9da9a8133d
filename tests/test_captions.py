"""Captions from Python: `load(path).caption(...)`."""

import jax
import numpy as np
import pytest
import soundfile

import clap_jax
from clap_jax import convert
from clap_jax.audio import io
from clap_jax.evals import hear
from clap_jax.models import captioner
from tests import small_models

KINDS = ("guided", "prefix")


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    """Captioners with random weights, whose choices are no ties, by kind."""
    folder = tmp_path_factory.mktemp("captioners")
    for kind in KINDS:
        small_models.save_captioner(kind, folder / kind)
    return {kind: clap_jax.load(folder / kind, batch_size=4) for kind in KINDS}


@pytest.fixture(scope="module")
def sounds():
    return [small_models.sound(1 + i, 16_000, seed=i) for i in range(6)]


def texts(captions):
    return [[caption.text for caption in own] for own in captions]


def scores(captions):
    return [caption.score for own in captions for caption in own]


@pytest.mark.parametrize("kind", KINDS)
def test_captions_of_one_and_of_many(writers, sounds, kind, tmp_path):
    """Six clips fill one batch of four and half of another; one alone has its own."""
    writer = writers[kind]
    found = writer.caption(sounds, n=2)
    assert [len(own) for own in found] == [2] * 6
    assert all(own[0].score >= own[1].score for own in found)
    assert len({own[0].text for own in found}) > 2  # they are about the sounds
    alone = [writer.caption(sound, n=2)[0] for sound in sounds]
    assert texts(alone) == texts(found)
    np.testing.assert_allclose(scores(alone), scores(found), atol=1e-4)
    wave, rate_hz = sounds[2]
    soundfile.write(tmp_path / "2.wav", wave, rate_hz, subtype="FLOAT")
    path = tmp_path / "2.wav"
    assert texts(writer.caption([path, path.read_bytes()], n=2)) == 2 * texts(
        [found[2]]
    )
    assert writer.caption([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_what_the_model_writes(writers, sounds, kind):
    """Against the model itself: sound, tags, decoding, and the end of the text."""
    writer = writers[kind]
    (own,) = writer.caption(sounds[0], method="greedy", min_length=3)
    model, spec = captioner.build(writer.spec), writer.spec
    words = writer.tokenizer.found
    options = captioner.decoding(
        spec, "greedy", end_id=2, pad_id=words.pad_id, options={"min_length": 3}
    )
    heard = writer._encoder.hear(sounds[0])
    tags = np.zeros((1, 3), np.float32) if kind == "guided" else None

    @jax.jit
    def write(variables, pieces):
        mel = hear.sound(pieces, spec.frontend)
        (z, _), _ = model.encode_audio(variables, mel, tags=tags)
        return model.caption(variables, z, options)

    want = write(writer.variables, heard.pieces)
    ids = np.asarray(want.ids[0, 0, : int(want.lengths[0, 0])])
    assert own[0].text == words.text(ids[ids != 2]).strip()
    np.testing.assert_allclose(own[0].score, want.scores[0, 0], atol=1e-4)


def test_sampling_by_seeds(writers, sounds):
    """By the clip's own seed, whatever is beside it; else by its position."""
    writer = writers["guided"]
    options = {"n": 3, "method": "sample", "top_p": 0.9, "temperature": 2.0}
    seeds = [7, 8, 9, 7, 8, 9]
    found = texts(writer.caption(sounds, seeds=seeds, **options))
    again = texts(writer.caption(sounds[::-1], seeds=seeds[::-1], **options))
    assert again[::-1] == found
    assert texts(writer.caption(sounds[4], seeds=[8], **options)) == [found[4]]
    assert texts(writer.caption(sounds[4], seeds=[9], **options)) != [found[4]]
    assert any(len(set(own)) > 1 for own in found)
    one = texts(writer.caption(sounds[:4], seed=1, **options))
    assert texts(writer.caption(sounds[:4], seed=1, **options)) == one
    assert texts(writer.caption(sounds[:4], seed=2, **options)) != one
    same = texts(writer.caption([sounds[0]] * 4, seed=1, **options))
    assert len({tuple(own) for own in same}) > 1


def test_tags_guide(writers, sounds):
    writer = writers["guided"]
    none = writer.caption(sounds[:3])
    assert scores(writer.caption(sounds[:3], tags=[[], (), None])) == scores(none)
    named = writer.caption(sounds[:3], tags=[["dog"], [], ["rain", "church bell"]])
    assert named[1] == none[1]
    assert abs(named[0][0].score - none[0][0].score) > 1e-3
    rows = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 1]], np.float32)
    assert scores(writer.caption(sounds[:3], tags=rows)) == scores(named)


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        ("guided", {"tags": [["dgo"]]}, "unknown tag 'dgo'.*did you mean 'dog'"),
        ("guided", {"tags": ["dog"]}, "tags are 'dog', expected a list of names"),
        ("guided", {"tags": [["dog"]] * 2}, "2 tags for 1 clips"),
        ("guided", {"tags": [[0.5, 0.5]]}, r"shape \(2,\), expected \(3,\)"),
        ("guided", {"tags": [[0.5, -1, 0]]}, "tags are not all finite and 0 or more"),
        ("prefix", {"tags": [["dog"]]}, "has tags given, but none guide it"),
        ("guided", {"seeds": [-1], "method": "sample"}, "a seed is -1, expected 0"),
        ("guided", {"method": "best"}, "unknown method of decoding 'best'"),
        ("prefix", {"beam": 4}, "did you mean 'beams'"),
        ("guided", {"n": 2, "method": "greedy"}, "count is 2, expected at most 1"),
    ],
)
def test_what_makes_no_sense(writers, sounds, kind, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        writers[kind].caption(sounds[0], **arguments)


def test_the_middle_of_a_long_clip_is_heard(writers):
    writer = writers["guided"]
    wave, rate_hz = small_models.sound(9, 16_000)
    window = writer.spec.frontend.clip_samples
    start = (len(wave) - window) // 2
    middle = wave[start : start + window]
    whole, part = writer.caption([(wave, rate_hz), (middle, rate_hz)])
    np.testing.assert_allclose(scores([whole]), scores([part]), atol=1e-4)
    first = writer.caption((wave[:window], rate_hz))
    assert np.abs(np.subtract(scores(first), scores([whole]))).max() > 1e-4


def test_clips_that_cannot_be_read(writers, sounds, tmp_path):
    """A call ends with the first; a stream goes on."""
    writer, broken = writers["guided"], tmp_path / "notes.wav"
    broken.write_text("not a sound")
    with pytest.raises(io.AudioError, match=r"notes\.wav"):
        writer.caption([sounds[0], broken])
    clips = [sounds[0], broken, *sounds[1:]]
    tags = [["dog"], [], ["dgo"], [], [], [], []]
    rows = list(writer.stream_captions(clips, n=2, tags=tags, threads=2))
    assert [bool(row.error) for row in rows] == [False, True, True, *[False] * 4]
    assert rows[1].error.startswith("not decodable") and not rows[1].captions
    assert "'dgo'" in rows[2].error
    assert rows[3].seconds == 3
    want = writer.caption([sounds[0], *sounds[2:]], n=2, tags=[["dog"], *[[]] * 4])
    good = [row.captions for row in rows if not row.error]
    assert texts(good) == texts(want)
    with pytest.raises(ValueError, match="fewer tags than clips"):
        list(writer.stream_captions(sounds, tags=[[]]))


def test_whole_clips_of_any_length(tmp_path):
    """By length; up to five minutes, of more the middle."""
    small_models.save_captioner("guided", tmp_path / "whole", "blat")
    writer = clap_jax.load(tmp_path / "whole", batch_size=1)
    short, long, other = (
        small_models.sound(seconds, 8_000, seed=int(seconds))
        for seconds in (0.3, 9, 0.4)
    )
    found = writer.caption([short, long, other], method="greedy")
    again = writer.caption([other, short, long], method="greedy")
    assert again == [found[2], found[0], found[1]]
    assert len(set(scores(found))) == 3
    pieces = writer._encoder.hear_middle(small_models.sound(310, 8_000)).pieces
    frames = writer.spec.frontend.frames(300 * writer.spec.frontend.rate_hz)
    assert pieces["frames"] == [frames] and pieces["mel"].shape[0] == 1


def test_saved_and_loaded_it_writes_the_same(writers, sounds, tmp_path):
    writer = writers["guided"]
    writer.save(tmp_path / "again")
    again = clap_jax.load(tmp_path / "again", batch_size=4)
    assert again.caption(sounds[0], n=2) == writer.caption(sounds[0], n=2)
    assert again.digest() == writer.digest()


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_sounds(writers, sounds, kind):
    writer = writers[kind]
    vectors = writer.embed_audio(sounds[:3])
    assert vectors.shape == (3, writer.width)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    streamed = [row.vector for row in writer.stream(sounds[:3])]
    np.testing.assert_allclose(streamed, vectors, atol=1e-6)


def test_a_pair_of_towers_writes_nothing(tmp_path):
    small_models.save("small_conv", tmp_path / "pair")
    with pytest.raises(ValueError, match="small_conv writes no captions"):
        clap_jax.load(tmp_path / "pair").caption("dog.wav")


def test_without_a_tokenizer(writers, sounds, tmp_path):
    spec, variables = writers["prefix"].spec, writers["prefix"].variables
    convert.write(convert.Converted(spec, variables), tmp_path / "bare")
    bare = clap_jax.load(tmp_path / "bare")
    assert bare.embed_audio(sounds[0]).shape == (1, 16)
    with pytest.raises(ValueError, match="small_prefix came without a tokenizer"):
        bare.caption(sounds[0])
