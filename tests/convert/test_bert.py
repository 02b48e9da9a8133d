"""BERT's table against the models of transformers."""

import re

import jax
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from clap_jax import sharding
from clap_jax.convert import bert, rules, trees
from clap_jax.models import bert as bert_tower
from clap_jax.models import zoo
from clap_jax.models.tower import complete

SIZES = {"width": 8, "depth": 2, "heads": 2, "mlp": 12, "position_table": 20}
CONFIG = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 20,
}
KINDS = {
    "bert": (BertModel, BertConfig(**CONFIG), zoo.BERT),
    "roberta": (
        RobertaModel,
        RobertaConfig(**CONFIG, type_vocab_size=1, layer_norm_eps=1e-5),
        {},
    ),
}


@pytest.fixture(scope="module", params=list(KINDS))
def theirs(request):
    """A model of transformers, its weights, and our options."""
    torch.manual_seed(0)
    kind, config, options = KINDS[request.param]
    model = kind(config).eval()
    weights = {key: x.numpy() for key, x in model.state_dict().items()}
    return model, weights, options | SIZES


@pytest.mark.parametrize("pool", ["pooler", "first"])
def test_the_same_outputs_and_the_way_back(theirs, pool):
    model, weights, options = theirs
    options = complete("bert", options | {"pool": pool}, bert_tower.DEFAULTS)
    tower = bert_tower.tower(options, 11)
    ids = np.array([[3, 4, 5, 6], [7, 8, 1, 1]], np.int32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), (ids, mask))
    shapes = {"params": {"text": shapes["params"]}}
    source = {f"text.{key}": array for key, array in weights.items()}
    table = bert.rules(options, "text.")
    tree, extra = trees.fill(table, bert.extras("text."), source, shapes)
    back = rules.invert(table, sharding.flatten(tree))
    assert (back | extra).keys() == source.keys()
    assert (extra == {}) == (pool == "pooler")
    # A model that never had the extras gets them from the buffers.
    assert bert.buffers(options, "text.").keys() == extra.keys()
    variables = {"params": tree["params"]["text"], "state": {}}
    (z, aux), _ = jax.jit(tower.apply)(variables, (jax.numpy.asarray(ids), mask))
    with torch.no_grad():
        want = model(torch.tensor(ids), torch.tensor(mask))
    hidden = want.last_hidden_state.numpy()
    np.testing.assert_allclose(aux["hidden"][0], hidden[0], atol=1e-5)
    np.testing.assert_allclose(aux["hidden"][1, :2], hidden[1, :2], atol=1e-5)
    pooled = want.pooler_output.numpy() if pool == "pooler" else hidden[:, 0]
    np.testing.assert_allclose(z, pooled, atol=1e-5)


def test_ids_of_old_files():
    """Of transformers before 4.31, and of Hugging Face's ClapModel."""
    options = complete("bert", SIZES, bert_tower.DEFAULTS)
    ids = bert.buffers(options, "", ids=True)
    np.testing.assert_array_equal(ids["embeddings.position_ids"], np.arange(20)[None])
    np.testing.assert_array_equal(ids["embeddings.token_type_ids"], np.zeros((1, 20)))
    assert {array.dtype for array in ids.values()} == {np.dtype(np.int64)}
    for key in ids:
        assert any(re.fullmatch(extra.source_regex, key) for extra in bert.extras(""))
        assert not any(rule.forward(key) for rule in bert.rules(options, ""))
