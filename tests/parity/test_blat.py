"""BLAT (wsntxxn/BLAT 7bd3c69: Cnn14, BERT-medium, linear heads) on random weights.

Its batches zero-pad the wave, mask only the pooling over time (length_mask "pool"), and
so give a short clip another embedding than the clip gets alone. Ours mask every layer,
which gives in one batch what BLAT gives for single clips.
"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clap_jax.audio import frontend
from clap_jax.convert import blat, trees
from clap_jax.models import zoo
from clap_jax.models.tower import Sound
from tests.parity import pann_dual


@pytest.fixture(scope="module")
def model(parity):
    """BLAT's own batch of four clips of unequal lengths."""
    check = parity("blat")
    spec = zoo.get_spec("blat", {"audio.options.length_mask": "pool"})
    table = blat.table(spec)
    variables, extra = pann_dual.check_round_trip(check, table, trees.shapes(spec))
    waves = list(check.reference.inputs().values())
    lengths = [len(wave) for wave in waves]
    np.testing.assert_array_equal(lengths, check.reference.io["in/wave_length"])
    padded = np.stack([np.pad(wave, (0, max(lengths) - len(wave))) for wave in waves])
    frames = np.array([spec.frontend.frames(n) for n in lengths], np.int32)
    sound = Sound(frontend.log_mel(padded, spec.frontend), frames=frames)
    texts = pann_dual.texts(check.reference)
    outputs = pann_dual.encode(spec, variables, sound, *texts)
    exact = Sound(pann_dual.exact_log_mel(extra, padded, spec.frontend), frames=frames)
    trained = pann_dual.loss_and_gradients(spec, variables, exact, *texts)
    return SimpleNamespace(
        check=check,
        table=table,
        variables=variables,
        waves=waves,
        sound=sound,
        trained=trained,
        **vars(outputs),
    )


def test_log_mel(model):
    pann_dual.check_log_mel(model.check, model.sound.mel)
    first = model.sound.mel[0, :300]
    want = model.check.reference.io["audio/logmel_clip0_first300"]
    assert np.abs(first - want).max() <= 1e-3


def test_audio(model):
    pann_dual.check_stages(model.check, model.audio, 6)
    model.check.check("tower", "audio/time_emb", model.audio["time"], 5e-5)
    names = ("embedding", "proj", "embed")
    pann_dual.check_embedding(model.check, "audio", model.audio, names, 5e-5)


def test_text(model):
    """The first token's state; the pooler in the file is not asked."""
    names = ("hidden", "pooled", "proj", "embed")
    pann_dual.check_embedding(model.check, "text", model.text, names, 1e-5)


def test_similarity(model):
    """The reference's is the cosine, without the scale."""
    scale = np.exp(model.variables["params"]["logit_scale_a"])
    model.check.check("logits", "similarity", model.logits / scale, 5e-5)


def test_loss_and_gradients(model):
    state = model.variables["state"]
    pann_dual.check_trained(model.check, model.table, state, model.trained)


def test_buffers(model):
    pann_dual.check_buffers(model.check, model.table, blat.buffers(zoo.BLAT))


def test_clips_of_a_batch_come_out_as_alone(model):
    """length_mask "every_layer", the default: the mel of each clip at its own length."""
    encode = jax.jit(zoo.build(zoo.BLAT).encode_audio)
    mels = [frontend.log_mel(wave, zoo.BLAT.frontend) for wave in model.waves]
    frames = np.array([len(mel) for mel in mels], np.int32)
    batch = np.full((len(mels), max(frames), 64), 1e4, np.float32)
    for row, mel in zip(batch, mels, strict=True):
        row[: len(mel)] = mel
    (together, _), _ = encode(model.variables, Sound(batch, frames=frames))
    model.check.check("embedding", "audio/embed_single", np.asarray(together), 5e-5)
    shortest = int(np.argmin(frames))
    (alone, _), _ = encode(model.variables, mels[shortest][None])
    error = np.abs(np.asarray(alone)[0] - np.asarray(together)[shortest]).max()
    assert error <= 1e-6
    # BLAT's own batch is another result: the mask is what makes them equal.
    assert np.abs(model.audio["embed"] - together).max() > 1e-3
