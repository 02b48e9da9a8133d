"""The encoder: the same clip gives the same vector, wherever and however it is asked."""

import dataclasses
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from clap_jax import sharding
from clap_jax.api import Clap
from clap_jax.audio import crop, frontend, io, views
from clap_jax.audio.mel import FRONTENDS
from clap_jax.evals import encode, hear
from clap_jax.models import zoo
from clap_jax.models.tower import Sound
from clap_jax.pipeline import buckets
from tests.pipeline.clips import RATE_HZ, make_tokenizer, wave
from tests.whole_mel_models import (
    FUSED,
    SECONDS,
    SPECS,
    WHOLE,
    UnequalSource,
    random_variables,
)

WINDOWS = dataclasses.replace(
    zoo.get_spec(
        "small_transformer", {"audio.options.depth": 1, "text.options.depth": 1}
    ),
    name="windows",
    vocab_size=64,
)
KINDS = SPECS | {"windows": WINDOWS}


class Model:
    """A spec with random variables, and its encoders."""

    def __init__(self, spec):
        tokenizer = make_tokenizer(spec.text_length)
        self.spec = spec = dataclasses.replace(spec, vocab_size=tokenizer.vocab_size)
        self.dual, self.tokenizer = zoo.build(spec), tokenizer
        self.variables = random_variables(self.dual)
        self.clap = Clap(spec, self.variables, tokenizer, batch_size=4)

    def encoder(self, **options):
        encoder = encode.ModelEncoder(self.spec, self.dual, self.tokenizer, **options)
        return encoder.using(self.variables)

    def expected(self, mel, **known):
        """The embedding by the definition: of this one sound, at its own length."""
        known = {name: np.array([value]) for name, value in known.items()}
        forward = jax.jit(self.dual.encode_audio)
        (za, _), _ = forward(self.variables, Sound(np.asarray(mel)[None], **known))
        return np.asarray(za)[0]


@pytest.fixture(scope="module")
def models():
    return {kind: Model(spec) for kind, spec in KINDS.items()}


@pytest.fixture(scope="module", params=list(KINDS))
def model(request, models):
    return models[request.param]


@pytest.fixture(scope="module", params=list(SPECS))
def whole_model(request, models):
    """Models that need the mel of the whole clip."""
    return models[request.param]


SOURCE = UnequalSource()
CLIPS = [(SOURCE.wave(i), RATE_HZ) for i in range(len(SOURCE))]


def test_same_vector_alone_or_in_any_batch(model):
    together = model.clap.embed_audio(CLIPS)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    # Clips are told apart, so that equality means something.
    cosines = together @ together.T - np.eye(len(CLIPS))
    assert cosines.max() < 0.9999
    alone = np.concatenate([model.clap.embed_audio([clip]) for clip in CLIPS])
    assert np.abs(together - alone).max() <= 1e-6
    for order in (range(7, -1, -1), [4, 4, 0, 4, 2], [5, 3, 1, 7, 6]):
        order = list(order)
        found = model.clap.embed_audio([CLIPS[i] for i in order])
        assert np.abs(found - together[order]).max() <= 1e-6


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_evaluation_hears_what_the_api_hears(whole_model, batch_size):
    """On eight devices, with more rows than clips or fewer."""
    expected = whole_model.clap.embed_audio(CLIPS)
    embeddings, kept = whole_model.encoder(batch_size=batch_size).audio(SOURCE)
    assert kept.all()
    assert np.abs(embeddings - expected).max() <= 1e-6
    one = sharding.make_mesh(devices=jax.devices()[:1])
    single, _ = whole_model.encoder(batch_size=batch_size, mesh=one).audio(SOURCE)
    assert np.abs(single - expected).max() <= 1e-6


def test_the_digest_tells_precisions_apart(models):
    made = models["windows"]
    known = made.encoder().digest()
    assert made.encoder(precision="float32").digest() == known
    assert made.encoder(precision="bfloat16").digest() != known
    with jax.default_matmul_precision("highest"):
        assert made.encoder().digest() != known


def test_damaged_clips_are_left_out(whole_model):
    class Damaged(UnequalSource):
        def wave(self, index):
            return np.zeros(0) if index in (1, 6) else super().wave(index)

    encoder = whole_model.encoder(batch_size=8)
    embeddings, kept = encoder.audio(Damaged())
    assert kept.tolist() == [i not in (1, 6) for i in range(8)]
    expected, _ = encoder.audio(SOURCE)
    assert np.abs(embeddings - expected)[kept].max() <= 1e-6
    assert not embeddings[~kept].any()


TWO_HOSTS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from tests.evals.test_encode import KINDS, SOURCE, Model
assert jax.process_count() == 2 and len(jax.devices()) == 4
found = {}
for kind in ("whole", "windows"):
    model = Model(KINDS[kind])
    vectors, kept = model.encoder(batch_size=4).audio(SOURCE)
    assert kept.all()
    # On the devices of one host, which does not wait for the other.
    if jax.process_index() == 0:
        wave, rate_hz = SOURCE[4]["audio"]
        alone = model.clap.embed_audio([(wave, rate_hz)])[0]
        assert kind == "windows" or np.abs(alone - vectors[4]).max() <= 1e-6
    found[kind] = vectors
np.savez(sys.argv[3], **found)
"""


def test_two_hosts_hear_the_same(models, tmp_path, request):
    """Each reads half of the clips, and both get all vectors."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    files = [tmp_path / f"{host}.npz" for host in (0, 1)]
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_HOSTS, address, str(host), str(files[host])],
            cwd=request.config.rootpath,
        )
        for host in (0, 1)
    ]
    assert [host.wait(timeout=300) for host in hosts] == [0, 0]
    for kind in ("whole", "windows"):
        expected, _ = models[kind].encoder(batch_size=4).audio(SOURCE)
        for file in files:
            assert np.abs(np.load(file)[kind] - expected).max() <= 1e-6


def test_a_fused_model_hears_one_sound_of_four_views(models):
    """However long: the reference's semantics with fixed windows, float32 mels."""
    model = models["fused"]
    front = model.spec.frontend
    for audio, rate_hz in CLIPS[:6]:
        filled = crop.fill(io.quantise(audio), front.clip_samples, "repeatpad")
        mel, longer = views.views(frontend.log_mel(filled, front), front.clip_frames)
        found = model.clap.embed_audio([(audio, rate_hz)])[0]
        expected = model.expected(mel, longer=longer)
        assert np.abs(found - expected).max() <= 1e-6


def test_a_whole_clip_is_heard_at_its_own_length(models):
    """Padding to a static length changes nothing."""
    model = models["whole"]
    for audio, rate_hz in CLIPS[:5]:
        mel = frontend.log_mel(audio, model.spec.frontend)
        found = model.clap.embed_audio([(audio, rate_hz)])[0]
        expected = model.expected(mel, frames=np.int32(len(mel)))
        assert np.abs(found - expected).max() <= 1e-6


def test_very_long_clips_are_cut_in_equal_parts(models, monkeypatch):
    monkeypatch.setattr(hear, "MAX_WHOLE_SECONDS", 1.0)
    model = models["whole"]
    audio = wave(0, 3.3)
    vectors, weights = [], []
    for part in np.array_split(frontend.log_mel(audio, model.spec.frontend), 4):
        vectors.append(model.expected(part, frames=np.int32(len(part))))
        weights.append(len(part))
    assert weights == [83, 83, 83, 82]
    mean = np.average(vectors, axis=0, weights=weights)
    expected = mean / np.linalg.norm(mean)
    found = model.clap.embed_audio([CLIPS[0], (audio, RATE_HZ), CLIPS[1]])[1]
    assert np.abs(found - expected).max() <= 1e-6
    heard = model.encoder().hear((audio, RATE_HZ))
    assert heard.pieces["mel"].shape == (4, 96, 16)
    assert heard.seconds.sum() == pytest.approx(3.3)


def test_long_clips_take_smaller_batches(models):
    """Memory is that of a batch of clips of `clip_seconds`, or of one clip."""
    encoder = models["whole"].encoder(batch_size=64)
    one = models["whole"].encoder(
        batch_size=16, mesh=sharding.make_mesh(devices=jax.devices()[:1])
    )
    # 65 frames are padded to 80.
    assert encoder._sizes(80) == [64, 16, 8] and one._sizes(80) == [16, 4, 1]
    assert encoder._sizes(160) == [16, 8] and one._sizes(384) == [1]
    assert encoder._sizes(100_000) == [8]


def test_few_shapes_are_compiled(models):
    """Forty lengths are a few programs."""
    model = models["whole"]
    encoder = model.encoder(
        batch_size=4, mesh=sharding.make_mesh(devices=jax.devices()[:1])
    )
    rng = np.random.default_rng(0)
    heard = [encoder.hear((wave(i, rng.uniform(0.3, 2)), RATE_HZ)) for i in range(40)]
    encoder.clips(heard)
    lengths = {clip.pieces["mel"].shape[1] for clip in heard}
    assert len(lengths) <= 11
    assert encoder._encode_audio._cache_size() <= 2 * len(lengths)


TEXTS = [
    *("clip", "clip number 3", "tiny 4", "the sound of the clip number 17", "tiny"),
    *(" ".join(["clip"] * 40), "tiny clip number 5 and clip number 6"),
]


@pytest.fixture(scope="module")
def texts_of(models):
    """Vectors of texts in buckets, the encoder, and the lengths that it encoded."""
    model, lengths = models["windows"], []
    encoder = model.encoder(
        batch_size=4,
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
        text_tokens=(6, 14),
    )
    encode_text = encoder._encode_text

    def seen(variables, ids, mask):
        lengths.append(ids.shape)
        return encode_text(variables, ids, mask)

    encoder._encode_text = seen
    return encoder.text(TEXTS), encoder, lengths


def test_a_text_has_one_vector_in_any_company(models, texts_of):
    """And the one that it has at full length."""
    together, encoder, _ = texts_of
    one_length = models["windows"].encoder(batch_size=4, text_tokens=())
    assert np.abs(together - one_length.text(TEXTS)).max() <= 1e-6
    cosines = together @ together.T - np.eye(len(TEXTS))
    assert cosines.max() < 0.9999
    order = [5, 0, 3, 3, 6]
    found = encoder.text([TEXTS[i] for i in order])
    assert np.abs(found - together[order]).max() <= 1e-6
    for text, vector in zip(TEXTS, together, strict=True):
        assert np.abs(encoder.text([text])[0] - vector).max() <= 1e-6
    assert encoder.text([]).shape == (0, models["windows"].spec.embed_dim)


def test_texts_of_one_length_go_together(models, texts_of):
    """Short ones do not pay for long ones: batches of 4 rows, or of 1, of each length."""
    counts = models["windows"].tokenizer(TEXTS)[1].sum(1)
    assert [buckets.shortest((6, 14, 24), n) for n in counts] == [
        6,
        6,
        6,
        24,
        6,
        24,
        14,
    ]
    _, _, shapes = texts_of
    assert shapes[:3] == [(4, 6), (1, 14), (4, 24)]


def test_a_tower_that_hears_padding_has_one_length(models):
    spec = zoo.get_spec("laion_pann14_bart", {"text.options.pool": "mean_all"})
    encoder = encode.ModelEncoder(spec, models["windows"].dual, None)
    assert encoder._text_tokens == ()
    assert models["windows"].encoder()._text_tokens == (16, 32)


def test_clips_in_all_lengths_of_seconds(models):
    """`Heard.seconds` is what the clip lasted, for all kinds of models."""
    for model in models.values():
        for seconds in SECONDS:
            rate_hz = model.spec.frontend.rate_hz
            heard = model.encoder().hear((wave(0, seconds, rate_hz), rate_hz))
            assert heard.seconds.sum() == pytest.approx(seconds, abs=1e-3)
            assert heard.seconds.dtype == np.float32


def test_random_views_are_an_option(models):
    """The reference's behaviour: other views of longer clips, another vector."""
    model = models["fused"]
    fixed, _ = model.encoder(batch_size=8).audio(SOURCE)
    one, again, other = (
        model.encoder(batch_size=8, crop_seed=seed).audio(SOURCE)[0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    longer = np.array(SECONDS) > 0.65
    changed = np.abs(one - other).max(axis=1) > 1e-4
    np.testing.assert_array_equal(changed, longer)
    assert np.abs(one - fixed)[~longer].max() <= 1e-6
    with pytest.raises(ValueError, match="crop_seed is 0, expected none"):
        encode.ModelEncoder(WHOLE, models["whole"].dual, None, crop_seed=0)


def test_nothing_in_nothing_out(model):
    assert model.clap.embed_audio([]).shape == (0, model.spec.embed_dim)
    assert model.encoder().clips([]).shape == (0, model.spec.embed_dim)


def test_a_bad_clip_is_named(whole_model):
    with pytest.raises(io.AudioError, match="clip 1"):
        whole_model.clap.embed_audio([CLIPS[0], (np.full(4000, np.nan), RATE_HZ)])


def test_what_is_heard_is_said():
    assert hear.hearing(FRONTENDS["laion_unfused"]) == (
        "10.0 s at 48000 Hz, the middle of longer, shorter repeated whole, then silence"
    )
    cropped = hear.hearing(FRONTENDS["laion_unfused"], crop_seed=2)
    assert "a random window of longer (seed 2)" in cropped
    assert "three random windows (seed 2)" in hear.hearing(FUSED.frontend, 2)
    assert hear.front_end(FRONTENDS["laion_unfused"]) == (
        "64 slaney mel bands 50-14000 Hz, window 1024, hop 480, FFT 1024, samples "
        "through int16"
    )
    assert "three fixed windows" in hear.hearing(FUSED.frontend)
    assert hear.hearing(WHOLE.frontend) == (
        "whole clips at 8000 Hz, above 300 s in equal parts"
    )
