"""MS-CLAP 2022 (msclap 1.3.4: Cnn14, BERT, residual heads) on random weights."""

from types import SimpleNamespace

import numpy as np
import pytest

from clap_jax.audio import frontend, mel
from clap_jax.convert import msclap, trees
from clap_jax.models import zoo
from tests.parity import pann_dual


@pytest.fixture(scope="module")
def model(parity):
    """Four clips: short ones repeated to 5 s, a long one cropped."""
    check = parity("msclap_2022")
    spec = zoo.get_spec("msclap2022", {"audio.options.classes": 527})
    table = msclap.table(spec)
    variables, extra = pann_dual.check_round_trip(check, table, trees.shapes(spec))
    waves = pann_dual.prepared_waves(check.reference, spec.frontend)
    sounds = frontend.log_mel(waves, spec.frontend)
    texts = pann_dual.texts(check.reference)
    outputs = pann_dual.encode(spec, variables, sounds, *texts)
    exact = pann_dual.exact_log_mel(extra, waves, spec.frontend)
    trained = pann_dual.loss_and_gradients(spec, variables, exact, *texts)
    return SimpleNamespace(
        check=check,
        spec=spec,
        table=table,
        variables=variables,
        extra=extra,
        waves=waves,
        mel=sounds,
        trained=trained,
        **vars(outputs),
    )


def test_waveform_and_log_mel(model):
    model.check.check("mel", "in/prepared_wave", model.waves, 0.0)
    pann_dual.check_log_mel(model.check, model.mel)
    want = model.check.reference.io["audio/logmel_clip0_full"]
    error = np.abs(model.mel[0] - want)[want > pann_dual.LOUD_DB]
    assert np.sqrt(np.mean(error**2)) <= 5e-4


def test_bank(model):
    """The file's bank is the formula's for 44.1 kHz and 50 to 14000 Hz."""
    stored = model.extra["audio_encoder.base.logmel_extractor.melW"]
    np.testing.assert_array_equal(mel.mel_bank(model.spec.frontend), stored)


def test_audio(model):
    """Projections are not normalised by the reference, nor by what its API returns."""
    pann_dual.check_map(model.check, "audio/bn0", model.audio["bn0"])
    model.check.check("tower", "audio/clipwise", model.audio["clipwise"], 5e-5)
    names = ("embedding", "proj")
    pann_dual.check_embedding(model.check, "audio", model.audio, names, 5e-5)
    model.check.check("embedding", "api/audio_embed", model.audio["proj"], 5e-5)


def test_text(model):
    """The first token's state; the pooler in the file is not asked."""
    names = ("hidden", "pooled", "proj")
    pann_dual.check_embedding(model.check, "text", model.text, names, 1e-5)


def test_logits(model):
    """exp(logit_scale) times the cosine, [audio, text]."""
    model.check.check("logits", "logits_per_audio", model.logits, 5e-5)


def test_loss_and_gradients(model):
    state = model.variables["state"]
    pann_dual.check_trained(model.check, model.table, state, model.trained)


def test_buffers(model):
    buffers = msclap.buffers(model.spec)
    pann_dual.check_buffers(model.check, model.table, buffers)
