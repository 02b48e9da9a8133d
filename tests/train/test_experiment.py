"""From a config to a run of the models that need the mel of whole clips."""

import dataclasses

import pytest

from clap_jax import config as config_lib
from clap_jax.train import experiment, loop
from tests.train.test_loop import lines, small_config
from tests.whole_mel_models import FUSED, WHOLE

MODELS = {"laion_htsat_tiny_fusion_roberta": FUSED, "blat": WHOLE}


def config(name, **changes):
    """`small_config` with the row `name` of the zoo, made small."""
    found = small_config(**{"data__mel": "auto", "train__total_steps": 2} | changes)
    found.model = name
    tree = dataclasses.asdict(MODELS[name])
    del tree["name"]
    found.model_overrides = tree
    found.checkpoint.every_steps = 100
    found.evals.kinds.every_steps = 0
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_run_with_whole_mels(name, tmp_path):
    """Scenes of 2.56 s are longer than the window of 0.64 s."""
    results = loop.train(config(name), tmp_path)
    assert 0 <= results["kinds"].metrics["zeroshot_acc"] <= 1
    assert [line["step"] for line in lines(tmp_path) if "train/loss" in line] == [1, 2]


@pytest.mark.parametrize("name", MODELS)
def test_the_device_cannot_make_these_mels(name, tmp_path):
    with pytest.raises(config_lib.ConfigError, match="expected 'host' or 'auto'"):
        experiment.build(config(name, data__mel="device"), tmp_path)


def test_random_crops_at_evaluation_are_an_option_of_it(tmp_path):
    settings = config("laion_htsat_tiny_fusion_roberta")
    settings.evals.again = settings.evals.kinds.copy_and_resolve_references()
    settings.evals.again.crop_seed = 3
    built = experiment.build(settings, tmp_path)
    seeds = {
        name: found.encoder._crop_seed for name, found in built.evaluations.items()
    }
    assert seeds == {"kinds": None, "again": 3}
