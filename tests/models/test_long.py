"""Long clips through towers by segments, long texts by sentences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.models import pann, segments, zoo
from clap_jax.models.segments import Segments
from clap_jax.models.spec import Spec
from clap_jax.models.tower import Sound, Tower, complete
from tests.models.weights import fill

FRAMES, MELS = 32, 16
TINY = {
    "frontend.mels": MELS,
    "frontend.clip_seconds": 0.62,
    "audio.options": {"widths": (4, 8), "groups": 2, "dropout": 0.0},
    "text.options": {"width": 8, "heads": 2, "depth": 1, "mlp": 8, "dropout": 0.0},
    "embed_dim": 8,
    "vocab_size": 20,
    "text_length": 12,
}
LONG = {"temporal": {"heads": 2, "sentences": 3, "hop_seconds": 0.5}}


@functools.cache
def model(long=True, **compute):
    spec = zoo.get_spec("small_conv", TINY | (LONG if long else {}))
    return zoo.build(spec, **compute)


def weights(long):
    return fill(Tower(lambda key, _: long.init(key), long.encode_audio), None, std=0.3)


@pytest.fixture(scope="module")
def variables():
    return weights(model())


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    mel = jnp.asarray(rng.normal(-40, 20, (2, 6, FRAMES, MELS)), jnp.float32)
    begin = jnp.arange(6.0) * 0.5
    seconds = jnp.stack([jnp.stack([begin, begin + 0.62], -1)] * 2)
    heard = jnp.arange(6) < jnp.array([[6], [4]])
    return Segments(mel, jnp.where(heard[..., None], seconds, 0.0), heard)


@pytest.fixture(scope="module")
def texts():
    ids = jnp.asarray(np.random.default_rng(1).integers(3, 20, (3, 12)), jnp.int32)
    mask = jnp.arange(12) < jnp.array([[12], [7], [5]])
    spans = jnp.array(
        [[[1, 5], [5, 9], [9, 11]], [[1, 4], [4, 6], [0, 0]], [[1, 4], [0, 0], [0, 0]]]
    )
    return ids, mask, spans


def encode_audio(long, variables, clips, **compute):
    (song, aux), state = jax.jit(model(long, **compute).encode_audio)(variables, clips)
    return song, aux, state


def test_one_window_is_the_plain_model(variables, clips, texts):
    """A mel, and a clip of one segment: the same embeddings, the same score."""
    ids, mask, spans = texts
    mel = clips.sound[:, 0]
    plain, long = model(False), model()
    (za, _), _ = jax.jit(plain.encode_audio)(variables, mel)
    (zt, _), _ = jax.jit(plain.encode_text)(variables, ids, mask)
    (story, _), _ = jax.jit(long.encode_text)(variables, ids, mask, spans)
    one = jax.tree.map(lambda x: x[:, :1], clips)
    want = jax.jit(plain.score)(variables["params"], za, zt)
    for audio in (mel, one):
        song, *_ = encode_audio(True, variables, audio)
        np.testing.assert_array_equal(song.whole, za)
        np.testing.assert_array_equal(song.segments[:, 0], za)
        found = jax.jit(long.score)(variables["params"], song, story)
        np.testing.assert_array_equal(found, want)


def test_segments_are_windows(variables, clips):
    """Each is what the plain model makes of it; the whole is the mean of those heard."""
    plain = jax.jit(model(False).encode_audio)
    song, aux, _ = encode_audio(True, variables, clips)
    assert aux["embedding"].shape == (2, 6, 8)
    for i in range(6):
        (za, _), _ = plain(variables, clips.sound[:, i])
        np.testing.assert_allclose(song.segments[:, i], za, atol=1e-6)
    for row, count in enumerate((6, 4)):
        want = np.asarray(aux["projection"][row, :count]).mean(0)
        want /= np.linalg.norm(want)
        np.testing.assert_allclose(song.whole[row], want, atol=1e-6)


def test_silence_throughout_is_heard(variables, clips):
    """But for padding, which has no seconds."""
    silent = clips._replace(heard=jnp.zeros((2, 6), bool))
    want, found = (encode_audio(True, variables, x)[0] for x in (clips, silent))
    np.testing.assert_array_equal(found.heard, clips.heard)
    np.testing.assert_array_equal(found.whole, want.whole)


def test_chunks_change_nothing(variables, clips):
    """Two or four of six at a time, or all: values and gradients in training."""

    def run(long):
        def total(params):
            given = {"params": params, "state": variables["state"]}
            (song, _), _ = long.encode_audio(
                given, clips, train=True, key=jax.random.key(0)
            )
            return (song.whole[:, :3] * song.segments[:, 1, :3]).sum()

        params = variables["params"]
        sides = {name: params[name] for name in ("audio", "audio_projection")}
        return jax.jit(jax.value_and_grad(lambda part: total(params | part)))(sides)

    every, want = run(model(segment_chunk=6))
    for chunk in (2, 4):
        few, slopes = run(model(segment_chunk=chunk))
        np.testing.assert_allclose(few, every, rtol=1e-5)
        for x, y in zip(*map(jax.tree.leaves, (slopes, want)), strict=True):
            assert np.abs(y).max() > 1e-6
            np.testing.assert_allclose(x, y, atol=1e-4 * np.abs(y).max())


def test_a_prime_number_of_segments_is_cut():
    """The last three of (0 1 2) (3 4 5) (6 0 1)."""
    sizes = [segments.chunks(*sizes) for sizes in ((12, 5), (7, 4), (3, 8), (30, 30))]
    assert sizes == [(3, 4), (2, 4), (1, 3), (1, 30)]
    shapes = []

    def apply(variables, sound, *, train, key):
        shapes.append(sound.mel.shape)
        return (sound.mel.sum((1, 2))[:, None] * variables["params"], {}), 0

    run = segments.over(Tower(None, apply), 3)
    mel = jnp.arange(2 * 7 * 4 * 5, dtype=jnp.float32).reshape(2, 7, 4, 5)
    found, _ = run({"params": 2.0, "state": 0}, Sound(mel))
    np.testing.assert_array_equal(found[..., 0], 2 * mel.sum((2, 3)))
    assert set(shapes) == {(6, 4, 5)}


def test_running_statistics_go_from_chunk_to_chunk():
    options = complete("pann", {"widths": (4, 8)}, pann.DEFAULTS)
    tower = pann.tower(options)
    rng = np.random.default_rng(0)
    mel = jnp.asarray(rng.normal(-40, 20, (2, 3, 64, 64)), jnp.float32)
    variables = fill(tower, mel[:, 0])
    run = jax.jit(functools.partial(segments.over(tower, 1), train=True))
    _, state = run(variables, Sound(mel), key=jax.random.key(0))
    mean = variables["state"]["bn0"]["mean"]
    for i in range(3):
        mean = 0.9 * mean + 0.1 * mel[:, i].mean((0, 1))
    np.testing.assert_allclose(state["bn0"]["mean"], mean, rtol=1e-5)


def test_memory_is_that_of_a_chunk():
    """Of eight segments at a time, whether there are 16 or 64."""
    long = model(segment_chunk=8)
    variables = jax.eval_shape(long.init, jax.random.key(0))

    def temporary_bytes(count):
        def slopes(variables, clips):
            def total(params):
                given = {"params": params, "state": variables["state"]}
                (song, _), _ = long.encode_audio(
                    given, clips, train=True, key=jax.random.key(0)
                )
                return song.whole.sum()

            return jax.grad(total)(variables["params"])

        shape = jax.ShapeDtypeStruct
        clips = Segments(
            shape((4, count, 128, MELS), jnp.float32),
            shape((4, count, 2), jnp.float32),
            shape((4, count), jnp.bool_),
        )
        compiled = jax.jit(slopes).lower(variables, clips).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(16), temporary_bytes(64)
    mels = 4 * 48 * 128 * MELS * 4
    # The mels that are more are kept in another order once.
    assert many - few < 2 * mels < few


def test_sentences(variables, texts):
    ids, mask, spans = texts
    encode = jax.jit(model().encode_text)
    (story, aux), _ = encode(variables, ids, mask, spans)
    np.testing.assert_array_equal(
        story.said, [[True] * 3, [True, True, False], [True, False, False]]
    )
    head = variables["params"]["sentence_projection"]["linear"]
    states = np.asarray(aux["hidden"][1, 1:4]).mean(0)
    want = states @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(
        story.sentences[1, 0], want / np.linalg.norm(want), atol=1e-5
    )
    # Without spans, the text is its only sentence.
    (alone, _), _ = encode(variables, ids, mask)
    np.testing.assert_array_equal(alone.whole, story.whole)
    np.testing.assert_array_equal(alone.sentences[:, 0], story.whole)
    assert alone.said.shape == (3, 1) and alone.said.all()


def test_the_spec():
    spec = zoo.get_spec("small_conv", TINY | LONG)
    assert spec.temporal.sentences == 3 and spec.temporal.monotone is False
    assert Spec.from_json(spec.to_json()) == spec
    plain = zoo.get_spec("small_conv")
    assert plain.temporal is None and Spec.from_json(plain.to_json()) == plain
    # Files that were written before there was such a key.
    old = plain.to_json().replace(',\n  "temporal": null', "")
    assert "temporal" not in old and Spec.from_json(old) == plain
    without = {"temporal": {"sentences": 0}}
    shapes = jax.eval_shape(
        zoo.build(zoo.get_spec("small_conv", TINY | without)).init, jax.random.key(0)
    )
    assert "temporal" in shapes["params"]
    assert "sentence_projection" not in shapes["params"]


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        ({"temporal.heads": 3}, "embed_dim 8 is not divisible by the 3 heads"),
        ({"temporal.head": 2}, "unknown key of a spec 'temporal.head'.*temporal.heads"),
        ({"temporal": 3}, "temporal must be a table, got 3"),
    ],
)
def test_errors(overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        zoo.get_spec("small_conv", TINY | overrides)


def test_errors_of_compute():
    spec = zoo.get_spec("small_conv", TINY | LONG)
    with pytest.raises(ValueError, match="segments at a time: 0, expected 1 or more"):
        zoo.build(spec, segment_chunk=0)
    with pytest.raises(ValueError, match="token_drop is 0.5, expected 0"):
        zoo.build(spec, token_drop=0.5)
