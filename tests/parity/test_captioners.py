"""Captioners on random weights: MS-CLAP's clapcap, AudioCaption's decoders."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clap_jax import sharding
from clap_jax.audio import crop, frontend
from clap_jax.convert import captioner as tables
from clap_jax.convert import rules
from clap_jax.models import caption_decoder, captioner, decode, gpt2
from clap_jax.models import prefix as prefix_lib

DECODERS = {
    "captioner_plain_decoder": "none",
    "captioner_event_decoder": "event",
    "captioner_keyword_decoder": "keyword",
}


def exact_gradients(spec, variables, reference):
    """The mapper's gradients in float64, as theirs are: of its millions of ReLUs one
    that is open here and closed there, by the last digit, changes a norm by 1e-3."""
    with jax.enable_x64(True):
        mapper = prefix_lib.tower(spec.mapper, dtype="float64")
        options = spec.decoder.options
        decoder = gpt2.language_model(options, spec.vocab_size, dtype="float64")
        ids = jnp.asarray(reference.io["in/caption_ids"], jnp.int32)
        params = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64), variables["params"]
        )

        @jax.jit
        @jax.grad
        def gradients(tree, decoder_params, prefix):
            (start, _), _ = mapper.apply({"params": tree, "state": {}}, prefix)
            words = decoder.embed(decoder_params, ids)
            x = jnp.concatenate([start, words], axis=1)
            told = decoder.logits(decoder_params, x)[:, start.shape[1] - 1 : -1]
            return optax.softmax_cross_entropy_with_integer_labels(told, ids).mean()

        prefix = jnp.asarray(reference.io["prefix_f64"])
        return jax.device_get(gradients(params["mapper"], params["decoder"], prefix))


@pytest.fixture(scope="module")
def clapcap(parity):
    """Weights, outputs and the mapper's gradients, computed once."""
    check = parity("msclap_clapcap")
    reference, spec = check.reference, captioner.SPECS["clapcap"]
    model = captioner.build(spec)
    weights = reference.weights()
    shapes = sharding.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    table, extras = tables.clapcap_rules(spec), tables.clapcap_extras()
    filled, extra = rules.apply(table, extras, weights, shapes)
    variables = sharding.unflatten(filled)
    samples, fill = spec.frontend.clip_samples, spec.frontend.fill
    waves = [crop.fill(wave, samples, fill) for wave in reference.inputs().values()]
    log_mel = frontend.log_mel(np.stack(waves), spec.frontend)
    prefix = jax.jit(model.prefix)(variables, log_mel)
    ids = jnp.asarray(reference.io["in/caption_ids"], jnp.int32)

    def loss(mapper, variables):
        both = variables | {"params": variables["params"] | {"mapper": mapper}}
        logits = model.logits(both, prefix, ids)
        told = logits[:, spec.mapper["length"] - 1 : -1]
        loss = optax.softmax_cross_entropy_with_integer_labels(told, ids).mean()
        return loss, (logits, model.prefix_embeddings(both, prefix))

    run = jax.jit(loss)
    value, outputs = jax.device_get(run(variables["params"]["mapper"], variables))
    gradients = exact_gradients(spec, variables, reference)
    back = rules.invert(table, filled) | extra
    for entry in extras:
        if entry.same_as:
            back |= {name: back[entry.same_as] for name in entry.names}
    mappers = [rule for rule in table if "params/mapper" in rule.targets[0]]
    return SimpleNamespace(
        check=check,
        spec=spec,
        model=model,
        weights=weights,
        variables=variables,
        back=back,
        prefix=prefix,
        logits=outputs[0],
        embeddings=outputs[1],
        loss=value,
        gradients=rules.invert(
            mappers, sharding.flatten({"params": {"mapper": gradients}})
        ),
    )


def test_every_tensor_is_used_and_comes_back(clapcap):
    assert sorted(clapcap.back) == sorted(clapcap.weights)
    for key, array in clapcap.weights.items():
        np.testing.assert_array_equal(clapcap.back[key], array, err_msg=key)
    clapcap.check.note("tensors", len(clapcap.weights))


def test_a_strict_load_has_all_keys(clapcap):
    """For a model that does not come from MS-CLAP: rules, buffers and tied names."""
    found = {entry["key"] for entry in clapcap.check.reference.spec["tensors"]}
    made = tables.clapcap_buffers(clapcap.spec)
    shapes = sharding.flatten(clapcap.variables)
    keys = set(rules.steps_back(tables.clapcap_rules(clapcap.spec), shapes))
    tied = {name for e in tables.clapcap_extras() if e.same_as for name in e.names}
    assert keys | set(made) | tied == found


def test_prefix(clapcap):
    check = clapcap.check
    for key in ("prefix", "prefix_f64"):
        check.check("embedding", key, clapcap.prefix, 1e-5)
    check.check("tower", "prefix_embed", clapcap.embeddings[:2], 1e-5)
    check.check("tower", "prefix_embed_all", clapcap.embeddings, 1e-5)
    check.check("tower", "prefix_embed_f64", clapcap.embeddings, 1e-5)


def test_logits(clapcap):
    check, logits = clapcap.check, clapcap.logits
    assert logits.shape == (3, 40 + 12, 50257)
    check.check("logits", "logits", logits, 1e-5)
    check.check("logits", "logits_f64", logits, 1e-5)
    check.check("logits", "logits_last", logits[:, -1], 1e-5)
    check.check("logits", "logits_pos39_clip0", logits[0, 39], 1e-5)
    ids = check.reference.io["argmax_ids"]
    np.testing.assert_array_equal(logits.argmax(-1), ids)


def test_greedy_captions(clapcap):
    """Twenty tokens through the cache."""
    want = clapcap.check.reference.io["decode/greedy_ids"]
    greedy = jax.jit(clapcap.model.greedy, static_argnums=2)
    ids = greedy(clapcap.variables, clapcap.prefix[: len(want)], want.shape[1])
    np.testing.assert_array_equal(ids, want)


@pytest.mark.parametrize("name", ["beam5", "beam5_alt"])
def test_beams_of_captions(clapcap, name):
    """All five, in their order; the other stop token ends them after seven tokens."""
    io = clapcap.check.reference.io
    want = io[f"decode/{name}_ids"]
    # A lone space ends MS-CLAP's captions, not <|endoftext|>.
    ends = io["decode/stop_token_alt"] if name == "beam5_alt" else [220, 220]
    assert len(set(ends)) == 1
    options = decode.Options(
        "beam", want.shape[2], int(ends[0]), count=5, beams=5, rule="stay"
    )
    caption = jax.jit(clapcap.model.caption, static_argnums=2)
    found = caption(clapcap.variables, clapcap.prefix[: len(want)], options)
    lengths = (want >= 0).sum(axis=2)
    np.testing.assert_array_equal(found.lengths, lengths)
    inside = np.arange(want.shape[2]) < lengths[..., None]
    np.testing.assert_array_equal(np.where(inside, found.ids, -1), want)
    assert name == "beam5" or (lengths == 7).all()
    # Finished and unfinished captions alike: best first.
    assert (np.diff(found.scores, axis=1) <= 0).all()


def test_loss_and_gradients_of_the_mapper(clapcap):
    want = clapcap.check.reference.spec["grad"]["loss"]
    clapcap.check.check_close("loss", clapcap.loss, want, 1e-6)
    clapcap.check.check_gradients(clapcap.gradients)


@pytest.fixture(scope="module", params=list(DECODERS))
def decoder(request, parity):
    """Outputs and gradients of one caption decoder, computed once."""
    check = parity(request.param)
    weights, io = check.reference.weights(), check.reference.io
    options = caption_decoder.DEFAULTS | {"guide": DECODERS[request.param]}
    tower = caption_decoder.tower(options, 4981)
    ids = jnp.asarray(io["in/word"], jnp.int32)
    draft = caption_decoder.Draft(
        ids=ids,
        mask=ids != 0,
        memory=jnp.asarray(io["in/attn_emb"]),
        frames=jnp.asarray(io["in/attn_emb_len"], jnp.int32),
        tags=None if options["guide"] == "none" else jnp.asarray(io["in/events"]),
    )
    shapes = sharding.flatten(jax.eval_shape(tower.init, jax.random.key(0), draft))
    table = tables.decoder_rules(options)
    filled, extra = rules.apply(table, [], weights, shapes)
    variables = sharding.unflatten(filled)

    def loss(params):
        both = variables | {"params": params}
        (logits, aux), _ = tower.apply(both, draft)
        each = optax.softmax_cross_entropy_with_integer_labels(
            logits[:, :-1], ids[:, 1:]
        )
        told = ids[:, 1:] != 0
        return (each * told).sum() / told.sum(), (logits, aux["hidden"])

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, outputs), gradients = jax.device_get(run(variables["params"]))
    gradients = {"params": gradients, "state": variables["state"]}
    steps = caption_decoder.stepwise(options, 4981)

    @jax.jit
    def stepped(variables):
        cache = steps.start(variables, draft, ids.shape[1])

        def read(cache, ids):
            logits, cache = steps.step(variables, cache, ids)
            return cache, logits

        return jax.lax.scan(read, cache, ids.T)[1].swapaxes(0, 1)

    return SimpleNamespace(
        # What stands behind a caption is masked in the reference, not in a cache.
        cached=np.where(ids[..., None] != 0, stepped(variables), outputs[0]),
        check=check,
        weights=weights,
        back=rules.invert(table, filled) | extra,
        logits=outputs[0],
        hidden=outputs[1],
        loss=value,
        gradients=rules.invert(table, sharding.flatten(gradients)),
    )


def test_every_tensor_of_a_decoder_comes_back(decoder):
    assert sorted(decoder.back) == sorted(decoder.weights)
    for key, array in decoder.weights.items():
        np.testing.assert_array_equal(decoder.back[key], array, err_msg=key)
    decoder.check.note("tensors", len(decoder.weights))


def test_positions_of_the_reference_are_noise(decoder):
    """Its initialisation draws them like a matrix; the checkpoint's are taken."""
    positions = decoder.weights["decoder.pos_encoder.pe"][:, 0]
    # Xavier's range for [100, 1, 256]; sines and cosines reach 1.
    limit = np.sqrt(6 / (256 + 100 * 256))
    assert 0.99 * limit < np.abs(positions).max() < 1.001 * limit


def test_decoder(decoder):
    decoder.check.check("tower", "embed", decoder.hidden, 1e-5)
    decoder.check.check("tower", "embed_f64", decoder.hidden, 1e-5)
    decoder.check.check("logits", "logit", decoder.logits, 1e-5)
    decoder.check.check("logits", "logit_last_clip0", decoder.logits[0, -1], 1e-5)


def test_decoder_with_a_cache(decoder):
    decoder.check.check("logits", "logit", decoder.cached, 1e-5)
    decoder.check.check_close("logits", decoder.cached, decoder.logits, 1e-5)
    np.testing.assert_array_equal(
        decoder.cached.argmax(axis=-1), decoder.logits.argmax(axis=-1)
    )


def test_loss_and_gradients_of_a_decoder(decoder):
    want = decoder.check.reference.spec["grad"]["loss"]
    decoder.check.check_close("loss", decoder.loss, want, 1e-6)
    decoder.check.check_gradients(decoder.gradients)
