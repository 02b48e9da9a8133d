"""The BERT text tower and its head, from the oracle of LAION's PANN-14 with BERT."""

import jax
import jax.numpy as jnp
import numpy as np

from clap_jax import sharding
from clap_jax.convert import laion_clap, rules
from clap_jax.models import bert, heads, zoo


def test_bert_tower_and_head(oracle):
    reference = oracle("laion_pann14_bert")
    spec = zoo.get_spec("laion_htsat_tiny_bert")
    tower = bert.tower(spec.text.options, spec.vocab_size)
    head = heads.tower(spec.head, spec.embed_dim)
    ids = jnp.asarray(reference.io["in/input_ids"], jnp.int32)
    mask = jnp.asarray(reference.io["in/attention_mask"], bool)
    source = {
        key: array
        for key, array in reference.weights().items()
        if key.startswith(("text_branch", "text_projection"))
    }
    shapes = jax.eval_shape(tower.init, jax.random.key(0), (ids, mask))["params"]
    width = jax.ShapeDtypeStruct((4, 768), np.float32)
    head_shapes = jax.eval_shape(head.init, jax.random.key(0), width)["params"]
    target = {"params": {"text": shapes, "text_projection": head_shapes}}
    table = laion_clap.table(spec)
    filled = rules.apply(*table, source, sharding.flatten(target))
    params = sharding.unflatten(filled)["params"]

    @jax.jit
    def forward(params):
        text = {"params": params["text"], "state": {}}
        (pooled, aux), _ = tower.apply(text, (ids, mask), train=False, key=None)
        projection = {"params": params["text_projection"], "state": {}}
        (projected, _), _ = head.apply(projection, pooled, train=False, key=None)
        return aux["hidden"], pooled, projected

    outputs = dict(zip(("hidden", "pooled", "proj"), forward(params), strict=True))
    for name, got in outputs.items():
        want = reference.io[f"text/{name}"]
        got = reference.take(got, f"text/{name}")
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), name
