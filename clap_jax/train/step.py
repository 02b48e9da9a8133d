"""The training step: one pure jitted function from (state, batch) to state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.audio import augment as augment_lib
from clap_jax.audio.mel import Frontend
from clap_jax.evals.encode import sound
from clap_jax.losses import contrastive
from clap_jax.losses import sharded as losses
from clap_jax.metrics import Mean
from clap_jax.models import dual as dual_lib
from clap_jax.models import zoo
from clap_jax.models.dual import Dual
from clap_jax.models.tower import Sound
from clap_jax.train import accumulate
from clap_jax.train.state import TrainState

Batch = dict[str, jax.Array]


def augmented(
    key: jax.Array, heard: Sound, config: augment_lib.Augment
) -> tuple[Sound, augment_lib.Mix | None]:
    """The batch's sound after augmentation, and who was mixed with whom (mixup)."""
    mel, mix = augment_lib.augment(key, heard.mel, config, frames=heard.frames)
    if mix is None:
        return heard._replace(mel=mel), None
    longer, frames = heard.longer, heard.frames
    longer = None if longer is None else mix.either(longer)
    frames = None if frames is None else mix.longest(frames)
    return Sound(mel, longer, frames), mix


def choose_loss(
    config: ConfigDict, spec: zoo.Spec, mesh: Mesh
) -> tuple[contrastive.Options, str]:
    """The loss of the config with `impl` and `chunk` decided, and a line that says why.

    Raises ValueError for options that cannot be.
    """
    options = contrastive.Options(**config_lib.plain(config.loss))
    return losses.choose(options, config.train.batch_size, mesh.size, spec.embed_dim)


def make_encode(
    dual: Dual, frontend: Frontend, augment: augment_lib.Augment, mesh: Mesh
) -> accumulate.Encode:
    """The towers on a batch, as `accumulate` takes it: `((za, zt), (labels, state))`.

    From waves to embeddings, augmentation included. The batch has a "label" for each
    row: clips and texts of the same label belong together.
    """

    def encode(params: Any, model_state: Any, batch: Batch, key: jax.Array):
        augment_key, audio_key, text_key = jax.random.split(key, 3)
        heard, mix = augmented(augment_key, sound(batch, frontend, mesh), augment)
        variables = {"params": params, "state": model_state}
        (za, _), audio_state = dual.encode_audio(
            variables, heard, train=True, key=audio_key
        )
        (zt, _), text_state = dual.encode_text(
            variables, batch["ids"], batch["mask"], train=True, key=text_key
        )
        label = batch["label"]
        labels = contrastive.Labels(label, label)
        if mix is not None:
            labels = labels._replace(partner=label[mix.partner], share=mix.lam)
        new_state = {"audio": audio_state["audio"], "text": text_state["text"]}
        return (za, zt), (labels, new_state)

    return encode


def make_gradient(
    config: ConfigDict,
    spec: zoo.Spec,
    dual: Dual,
    mesh: Mesh,
    augment: augment_lib.Augment,
) -> Callable:
    """The loss and its gradient: a function of `(params, model_state, batch, key)`.

    Returns `((mean loss, (sum and count, new model_state)), gradients)`. The batch is
    encoded in `train.accumulate` parts (see `clap_jax.train.accumulate`), and the loss
    is that of the whole batch whatever their number.
    """
    options, _ = choose_loss(config, spec, mesh)
    rules = config_lib.plain(config.mesh.rules)

    def loss(params: Any, embeddings: Any, labels: contrastive.Labels):
        scale = dual_lib.score_params(params)
        total, count = losses.pair_loss(
            dual.score, scale, *embeddings, labels, options, mesh
        )
        return total / count, Mean(total, count)

    def place(gradients: Any) -> Any:
        """Gradients live where their parameters do, before they are summed over
        devices: each then sums its own share."""
        if mesh.shape["fsdp"] == 1:
            return gradients
        shardings = sharding.state_sharding({"params": gradients}, mesh, rules)
        return jax.lax.with_sharding_constraint(gradients, shardings["params"])

    value_and_grad = accumulate.value_and_grad(
        make_encode(dual, spec.frontend, augment, mesh),
        loss,
        config.train.accumulate,
        mesh,
        place,
    )

    def gradient(params: Any, model_state: Any, batch: Batch, key: jax.Array):
        rows = {name: batch[name] for name in batch if name not in ("group", "bad")}
        rows["label"] = batch["group"]
        if not options.multi_positive:
            rows["label"] = jnp.arange(len(batch["group"]), dtype=jnp.int32)
        return value_and_grad(params, model_state, rows, key)

    return gradient


def make_update(
    config: ConfigDict,
    spec: zoo.Spec,
    dual: Dual,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    augment: augment_lib.Augment,
) -> Callable[[TrainState, Batch], TrainState]:
    """One update, `(state, batch) -> state`, to be compiled by `compile_step`.

    Keys are folded from the seed and the step, so a resumed run draws what the first
    one would have drawn.
    """
    gradient = make_gradient(config, spec, dual, mesh, augment)
    seed, ema_decay = config.train.seed, config.train.ema_decay

    def update(state: TrainState, batch: Batch) -> TrainState:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (_, (mean, model_state)), gradients = gradient(
            state.params, state.model_state, batch, key
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = dual.constrain(optax.apply_updates(state.params, updates))
        one = jnp.float32(1)
        measured = {
            "loss": mean,
            "grad_norm": Mean(optax.tree.norm(gradients), one),
            "param_norm": Mean(optax.tree.norm(params), one),
            "logit_scale": Mean(jnp.exp(params["logit_scale_a"]), one),
        }
        if "logit_bias" in params:
            measured["logit_bias"] = Mean(params["logit_bias"], one)
        return TrainState(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            average=moving_average(state.average, params, ema_decay, state.step),
            totals=jax.tree.map(jnp.add, state.totals, measured),
            clips=Mean(
                state.clips.sum + batch["bad"].sum(dtype=jnp.uint32),
                state.clips.count + jnp.uint32(batch["bad"].shape[0]),
            ),
        )

    return update


def moving_average(average: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """Exponential moving average; a young run averages over fewer steps.

    The decay rises as (1 + n) / (10 + n), so that the random start is soon forgotten.
    """
    if not average:
        return average
    rate = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a + rate * (p - a), average, params)


def compile_step(
    update: Callable[[TrainState, Batch], TrainState],
    state: TrainState,
    batch: Batch,
    mesh: Mesh,
) -> jax.stages.Compiled:
    """Compile ahead of time, with explicit shardings and the state donated.

    state, batch: arrays, or `jax.ShapeDtypeStruct`s with shardings (of the batch they
    are not needed), for which nothing has to be computed.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    batch_shardings = {key: sharding.batch_sharding(mesh) for key in batch}
    jitted = jax.jit(
        update,
        in_shardings=(shardings, batch_shardings),
        out_shardings=shardings,
        donate_argnums=0,
    )
    return jitted.lower(state, batch).compile()
