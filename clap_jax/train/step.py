"""The training step: one pure jitted function from (state, batch) to state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clap_jax import sharding
from clap_jax.audio import augment as augment_lib
from clap_jax.audio.mel import Frontend
from clap_jax.evals.encode import sound
from clap_jax.losses import contrastive
from clap_jax.metrics import Mean
from clap_jax.models.dual import Dual
from clap_jax.models.tower import Sound
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


def make_loss(
    dual: Dual,
    frontend: Frontend,
    augment: augment_lib.Augment,
    multi_positive: bool,
) -> Callable:
    """The contrastive loss as a function of `(params, model_state, batch, key)`.

    Returns `(mean loss, (sum and count, new model_state))`.
    """

    def loss(params: Any, model_state: Any, batch: Batch, key: jax.Array):
        augment_key, audio_key, text_key = jax.random.split(key, 3)
        heard, mix = augmented(augment_key, sound(batch, frontend), augment)
        variables = {"params": params, "state": model_state}
        (za, _), audio_state = dual.encode_audio(
            variables, heard, train=True, key=audio_key
        )
        (zt, _), text_state = dual.encode_text(
            variables, batch["ids"], batch["mask"], train=True, key=text_key
        )
        targets = contrastive.positives(batch["group"]) if multi_positive else None
        if mix is not None:
            if targets is None:
                targets = jnp.eye(za.shape[0])
            targets = contrastive.mix_targets(targets, mix.lam, mix.partner)
        total, count = contrastive.softmax_pair_loss(
            dual.score(params, za, zt), targets
        )
        new_state = {"audio": audio_state["audio"], "text": text_state["text"]}
        return total / count, (Mean(total, count), new_state)

    return loss


def make_step(
    loss: Callable,
    dual: Dual,
    optimizer: optax.GradientTransformation,
    seed: int,
    ema_decay: float,
) -> Callable[[TrainState, Batch], TrainState]:
    """One update. Keys are folded from the seed and the step, so a resumed run draws
    what the first one would have drawn."""

    def step(state: TrainState, batch: Batch) -> TrainState:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradient = jax.value_and_grad(loss, has_aux=True)
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

    return step


def moving_average(average: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """Exponential moving average; a young run averages over fewer steps.

    The decay rises as (1 + n) / (10 + n), so that the random start is soon forgotten.
    """
    if not average:
        return average
    rate = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a + rate * (p - a), average, params)


def compile_step(
    step: Callable, state: TrainState, batch: Batch, mesh: Mesh
) -> jax.stages.Compiled:
    """Compile ahead of time, with explicit shardings and the state donated."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    batch_shardings = {key: sharding.batch_sharding(mesh) for key in batch}
    jitted = jax.jit(
        step,
        in_shardings=(shardings, batch_shardings),
        out_shardings=shardings,
        donate_argnums=0,
    )
    return jitted.lower(state, batch).compile()
