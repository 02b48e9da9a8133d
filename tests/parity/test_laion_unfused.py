"""LAION-CLAP (laion-clap 1.1.7, HTSAT tiny and base with RoBERTa) on random weights.

Differences are relative: largest absolute difference over largest absolute value.
The reference's own float32 is 3.5e-6 from its float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.audio import crop, frontend
from clap_jax.models import zoo
from tests.parity import laion
from tests.parity.conftest import difference

MODELS = {
    "laion_tiny_unfused": "laion_htsat_tiny_roberta",
    "laion_base_unfused": "laion_htsat_base_roberta",
}


def prepared_waves(reference, front) -> np.ndarray:
    """The four clips, short ones repeated and padded, the long one cropped."""
    waves = []
    for name, wave in reference.inputs().items():
        start = reference.spec["crop_start"].get(name, 0)
        wave = wave[start : start + front.clip_samples]
        waves.append(crop.fill(wave, front.clip_samples, front.fill))
    return np.stack(waves)


@pytest.fixture(scope="module", params=list(MODELS))
def model(request, parity):
    """One family member: its weights, outputs and gradients, computed once."""
    check = parity(request.param)
    spec = zoo.get_spec(MODELS[request.param], {"audio.options.classes": 527})
    waves = prepared_waves(check.reference, spec.frontend)
    mel = frontend.log_mel(waves, spec.frontend)
    found = laion.run(check, spec, mel)
    found.waves, found.mel = waves, mel
    return found


def test_waveform_and_log_mel(model):
    reference = model.check.reference
    model.check.check("mel", "in/prepared_wave", model.waves, 0.0)
    want = reference.io["audio/logmel"]
    error = np.abs(reference.take(model.mel, "audio/logmel") - want)
    # The reference's float32 is up to 1.1e-3 dB from its float64 in quiet cells.
    assert np.median(error) < 1e-5
    assert error[want > -60].max() < 2e-3
    model.check.note("mel", error[want > -60].max() / np.abs(want).max())


def test_stages(model):
    # The mel of near-silent cells limits these; compare the next test.
    for key in ("bn0", *laion.STAGES):
        model.check.check("tower", f"audio/{key}", model.audio[key], 1e-4)


@pytest.mark.parametrize("model", ["laion_tiny_unfused"], indirect=True)
def test_stages_on_the_reference_mel(model):
    """The one mel that is stored whole: what follows agrees to rounding."""
    reference = model.check.reference
    mel = reference.io["audio/logmel_clip0_full"][None]
    encode = jax.jit(lambda variables, mel: model.dual.encode_audio(variables, mel))
    (_, aux), _ = encode(model.variables, jnp.asarray(mel))
    for key in ("bn0", *laion.STAGES):
        want = reference.io[f"audio/{key}"][:1]
        got = reference.take(aux[key], f"audio/{key}")
        assert difference(got, want) <= 5e-6, key


def test_audio(model):
    laion.check_time(model.check, model.audio)
    laion.check_embedding(model, "audio", ("embedding", "proj", "embed"))


def test_text(model):
    model.check.check("tower", "text/hidden", model.text["hidden"], 1e-5)
    laion.check_embedding(model, "text", ("pooled", "proj", "embed"))


def test_logits_loss_and_gradients(model):
    laion.check_loss(model)
