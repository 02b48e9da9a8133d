"""LAION-CLAP's seven fusions in HTSAT tiny, and the fused model as a whole.

The mels are inputs here; what the front end makes of long clips is compared elsewhere.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import sharding
from clap_jax.convert import htsat, rules
from clap_jax.models import htsat as tower_lib
from clap_jax.models import zoo
from clap_jax.models.tower import Sound, complete
from tests.parity import laion

FLAGS = ("mixed", "one", "all", "none")
WHOLE = "laion_tiny_fused_aff2d"
TOWERS = [
    f"laion_tiny_fusion_{fusion}"
    for fusion in ("daf_1d", "aff_1d", "iaff_1d", "daf_2d", "iaff_2d", "channel_map")
]


@pytest.fixture(scope="module", params=TOWERS)
def tower(request, parity):
    """A fused tower: its tensors, outputs and gradients, computed once."""
    check = parity(request.param)
    reference = check.reference
    fusion = request.param.removeprefix("laion_tiny_fusion_")
    given = {"fusion": fusion, "classes": 527}
    options = complete("htsat", given, tower_lib.DEFAULTS)
    audio = tower_lib.tower(options)
    (mel,) = reference.inputs().values()
    # The reference cannot run 1d fusion without a longer clip.
    stored = [f for f in FLAGS if f"in/longer_{f}" in reference.io]
    longer = {f: reference.io[f"in/longer_{f}"] for f in stored}
    shapes = jax.eval_shape(audio.init, jax.random.key(0), Sound(mel, longer["mixed"]))
    table = htsat.rules(options, "")
    shapes = {side: {"audio": tree} for side, tree in shapes.items()}
    variables = laion.check_round_trip(check, table, htsat.extras(""), shapes)
    params, state = (variables[side]["audio"] for side in ("params", "state"))

    @jax.jit
    def run(params, longer):
        def loss(params):
            both = {"params": params, "state": state}
            (z, aux), _ = audio.apply(both, Sound(jnp.asarray(mel), longer))
            weight = jnp.linspace(-1.0, 1.0, z.size).reshape(z.shape)
            return (z * weight).mean(), aux | {"embedding": z}

        return jax.value_and_grad(loss, has_aux=True)(params)

    params = jax.tree.map(jnp.asarray, params)
    found = {f: jax.device_get(run(params, flags)) for f, flags in longer.items()}
    (value, outputs), gradients = found["mixed"]
    return SimpleNamespace(
        check=check,
        options=options,
        table=table,
        variables=variables,
        loss=value,
        outputs=outputs,
        embeddings={f: aux["embedding"] for f, ((_, aux), _) in found.items()},
        gradients=rules.invert(
            table, sharding.flatten({"params": {"audio": gradients}})
        ),
    )


def test_a_strict_load_has_all_keys(tower):
    """Rules and buffers give every key of the reference, in its shape and dtype."""
    front = zoo.SPECS["laion_htsat_tiny_fusion_roberta"].frontend
    made = rules.invert(tower.table, sharding.flatten(tower.variables))
    buffers = htsat.buffers(tower.options, "", front)
    assert not made.keys() & buffers.keys()
    got = {key: [*x.shape, str(x.dtype)] for key, x in (made | buffers).items()}
    entries = tower.check.reference.spec["tensors"]
    assert got == {e["key"]: [*e["shape"], e["dtype"]] for e in entries}
    weights = tower.check.reference.weights()
    for key in buffers.keys() & weights.keys():
        if not key.startswith("head."):
            np.testing.assert_array_equal(buffers[key], weights[key], key)


def test_stages(tower):
    laion.check_tower(tower.check, tower.outputs)


def test_embedding_of_every_set_of_longer_clips(tower):
    for flags, embedding in tower.embeddings.items():
        name = "audio" if flags == "mixed" else f"audio_{flags}"
        tower.check.check("embedding", f"{name}/embedding", embedding, 1e-5)
    if "audio/embedding_f64" in tower.check.reference.io:
        mixed = tower.embeddings["mixed"]
        tower.check.check("embedding", "audio/embedding_f64", mixed, 1e-5)


def test_loss_and_gradients(tower):
    """Where the reference has them. The loss is a difference of near-equal sums."""
    grad = tower.check.reference.spec.get("grad")
    if grad is not None:
        size = np.abs(tower.embeddings["mixed"]).mean()
        error = abs(tower.loss - grad["loss"]) / size
        assert tower.check.note("loss", error) < 1e-5
        tower.check.check_gradients(tower.gradients)


@pytest.fixture(scope="module")
def model(parity):
    """The fused model as released: mels of four views, texts, default loss."""
    check = parity(WHOLE)
    reference = check.reference
    spec = zoo.get_spec(
        "laion_htsat_tiny_fusion_roberta", {"audio.options.classes": 527}
    )
    mel = jnp.asarray(reference.inputs()["mel_fusion"])
    longer = {f: jnp.asarray(reference.io[f"in/longer_{f}"]) for f in FLAGS}
    found = laion.run(check, spec, Sound(mel, longer["mixed"]))
    found.sound, found.longer = Sound(mel), longer
    return found


def test_audio_of_the_model(model):
    laion.check_tower(model.check, model.audio)
    laion.check_embedding(model, "audio", ("embedding", "proj", "embed"))


def test_other_flags_of_the_model(model):
    encode = jax.jit(lambda *args: model.dual.encode_audio(*args)[0][1])
    for flags, longer in model.longer.items():
        if flags != "mixed":
            aux = encode(model.variables, model.sound._replace(longer=longer))
            key = f"audio_{flags}/embedding"
            model.check.check("embedding", key, aux["embedding"], 5e-6)


def test_text_of_the_model(model):
    model.check.check("tower", "text/hidden", model.text["hidden"], 1e-5)
    laion.check_embedding(model, "text", ("pooled", "proj", "embed"))


def test_logits_loss_and_gradients_of_the_model(model):
    laion.check_loss(model)
