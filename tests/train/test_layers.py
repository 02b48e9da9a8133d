"""Layer-wise rates: the depth of every part of every tower is known."""

import jax
import pytest

from clap_jax import sharding
from clap_jax.models import zoo
from clap_jax.train import layers, optim
from tests.train.test_step import settings

SHALLOW = {"depths": (1, 1, 2, 1)}
# Every kind of tower, with every part that options can add.
TOWERS = {
    "small_conv": {},
    "small_transformer": {},
    "laion_htsat_tiny_fusion_roberta": SHALLOW,
    "laion_pann14_clip": {"classes": 3},
    "msclap2023": SHALLOW,
    "laion_htsat_tiny_bart": SHALLOW,
}


@pytest.fixture(scope="module", params=TOWERS)
def params(request):
    """Shapes: nothing is computed."""
    options = {"audio.options": TOWERS[request.param], "text.options.depth": 2}
    spec = zoo.get_spec(request.param, options)
    return jax.eval_shape(zoo.build(spec).init, jax.random.key(0))["params"]


def test_rates_fall_from_the_top_of_each_tower_down(params):
    flat = sharding.flatten(layers.factors(params, 0.5))
    for side in ("audio", "text"):
        own = {path: f for path, f in flat.items() if path.startswith(f"{side}/")}
        blocks = sorted({f for path, f in own.items() if "block" in path}, reverse=True)
        count = len(blocks)
        assert blocks == [0.5 ** (i + 1) for i in range(count)]
        rest = {f for path, f in own.items() if "block" not in path}
        merges = {f for path, f in own.items() if "_merge" in path}
        assert rest - merges <= {1.0, 0.5 ** (count + 1)}
        assert 0.5 ** (count + 1) in rest
        assert merges <= set(blocks)
    others = [f for path, f in flat.items() if not path.startswith(("audio/", "text/"))]
    assert set(others) == {1.0}


def test_blocks_lie_in_the_order_of_their_numbers():
    parts = {f"block{i}": {"kernel": 0} for i in range(12)} | {"tokens": {"kernel": 0}}
    table = layers.factors({"text": parts}, 0.9)["text"]
    assert table["block11"]["kernel"] == pytest.approx(0.9)
    assert table["block10"]["kernel"] == pytest.approx(0.9**2)
    assert table["block2"]["kernel"] == pytest.approx(0.9**10)
    assert table["tokens"]["kernel"] == pytest.approx(0.9**13)


def test_a_part_of_unknown_depth_is_an_error():
    with pytest.raises(ValueError, match="how deep audio/mystery lies is not known"):
        layers.factors({"audio": {"mystery": {"kernel": 0}}}, 0.9)


def test_multipliers_and_layers_multiply():
    config = settings(optim__layer_decay=0.5)
    config.optim.lr_multipliers = (("audio/.*", 0.1), (".*", 1.0))
    params = {"audio": {"block0": {"kernel": 0}}, "heads": {"a": {"kernel": 0}}}
    found = sharding.flatten(optim.rate_multipliers(config.optim, params))
    assert found == {"audio/block0/kernel": 0.05, "heads/a/kernel": 1.0}
