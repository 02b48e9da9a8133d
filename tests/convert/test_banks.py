"""The front end that MS-CLAP and BLAT files bring along."""

import dataclasses

import numpy as np
import pytest

from clap_jax.audio import mel
from clap_jax.convert import banks, blat, msclap
from tests.convert import small

# What papers, configs and code of MS-CLAP say of one and the same front end.
SAID = {
    "32 kHz, 50 to 14000 Hz": {"bank_rate_hz": 32_000},
    "44.1 kHz, 50 to 8000 Hz": {"fmax_hz": 8000.0},
    "44.1 kHz, 50 to 14000 Hz": {},
}


@pytest.mark.parametrize("name", ["msclap2022", "msclap2023"])
@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_which_bank_it_is(name, said, dtype):
    base = mel.FRONTENDS[name]
    front = dataclasses.replace(base, bank_rate_hz=None, fmax_hz=14_000.0)
    front = dataclasses.replace(front, **SAID[said])
    state = dict(small.state_dict(name))
    key = next(key for key in state if key.endswith("melW"))
    state[key] = mel.mel_bank(front)
    spec, notes = msclap.spec(small.cast(state, dtype))
    assert spec.frontend == front
    assert any(f"the file's is slaney, {said} (difference" in note for note in notes)


def test_a_bank_of_the_wrong_size_says_what_it_is():
    state = dict(small.state_dict("msclap2023"))
    key = next(key for key in state if key.endswith("melW"))
    base = mel.FRONTENDS["msclap2023"]
    wide = dataclasses.replace(base, n_fft=2048, window_samples=2048, mels=128)
    state[key] = mel.mel_bank(wide)
    spec, notes = msclap.spec(state)
    assert spec.frontend == wide
    assert "the file has no window; assumed Hann's" in notes


def test_a_bank_that_is_none():
    base = mel.FRONTENDS["msclap2023"]
    for bank, words in (
        (None, "the file has no mel filter bank; assumed slaney, 32 kHz"),
        (np.zeros(64, np.float32), "the file has a bank of (64,); assumed"),
    ):
        front, notes = banks.frontend_of(base, bank, None)
        assert front == base
        assert notes[0].startswith(words)


def test_nan_in_a_bank_matches_nothing():
    base = mel.FRONTENDS["msclap2023"]
    bank = mel.mel_bank(base).copy()
    bank[3, 3] = np.nan
    front, notes = banks.frontend_of(base, bank, mel.window(base))
    assert front.bank == "stored"
    assert "no known formula" in notes[0]


def test_torchaudios_bank_is_the_formula(oracle):
    """It is computed in float32 there: 1.3e-6 of the largest value apart."""
    stored = dict(np.load(oracle("blat")._path.parent / "stored.npz"))
    bank = next(x for x in stored.values() if x.shape == (513, 64))
    formula = mel.mel_bank(mel.FRONTENDS["blat"])
    assert np.abs(bank - formula).max() > 1e-6 * formula.max()
    state = dict(small.state_dict("blat"))
    state["audio_encoder.melspec_extractor.mel_scale.fb"] = bank
    spec, _ = blat.spec(state)
    assert spec.frontend == mel.FRONTENDS["blat"]
    changed = state["audio_encoder.melspec_extractor.spectrogram.window"] ** 2
    state["audio_encoder.melspec_extractor.spectrogram.window"] = changed
    spec, notes = blat.spec(state)
    np.testing.assert_array_equal(mel.window(spec.frontend), changed)
    assert any("differs from Hann's" in note for note in notes)


@pytest.mark.parametrize("name", ["msclap_2022", "msclap_2023"])
def test_the_banks_of_the_references(name, oracle):
    stored = dict(np.load(oracle(name)._path.parent / "stored.npz"))
    row = name.replace("_", "")
    state = dict(small.state_dict(row))
    key = next(key for key in state if key.endswith("melW"))
    state[key] = next(x for x in stored.values() if x.shape == (513, 64))
    spec, notes = msclap.spec(state)
    assert spec.frontend == mel.FRONTENDS[row]
    rate = {"msclap_2022": "44.1 kHz", "msclap_2023": "32 kHz"}[name]
    assert any(f"slaney, {rate}, 50 to 14000 Hz" in note for note in notes)
