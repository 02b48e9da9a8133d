"""What a run learns: the loss, and what it takes from a batch.

A task says how a batch is encoded, what the loss of all encoded rows is, and what is
logged beside it. The loop, the optimizer, checkpoints and data order do not depend on
it. Which task a model is for follows from its spec: a pair of towers is trained by
comparing clips with captions, a classifier by naming the labels of clips, a captioner
by writing answers or captions.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clap_jax import config as config_lib
from clap_jax import sharding
from clap_jax.audio import augment as augment_lib
from clap_jax.audio.mel import Frontend
from clap_jax.evals.hear import sound
from clap_jax.losses import classes, contrastive, tokens
from clap_jax.losses import sharded as losses
from clap_jax.metrics import Mean
from clap_jax.models import captioner, classifier, temporal, zoo
from clap_jax.models import dual as dual_lib
from clap_jax.models.captioner import Captioner, CaptionerSpec
from clap_jax.models.classifier import Classifier, ClassifierSpec
from clap_jax.models.dual import Dual
from clap_jax.models.segments import Segments
from clap_jax.models.tower import Sound
from clap_jax.train import accumulate, heads, optim

Batch = dict[str, jax.Array]
Spec = zoo.Spec | ClassifierSpec | CaptionerSpec
Model = Dual | Classifier | Captioner

# By `config.task.name`.
TASKS = ("contrastive", "classify", "answer", "caption")

# Those of captioners.
WRITES = ("answer", "caption")


class Task(NamedTuple):
    """A task as functions of one global batch, for `accumulate.value_and_grad`.

    rows: `(batch) -> batch`, with what `encode` needs and nothing else.
    encode: `(params, model_state, rows, key) -> (encoded, (labels, new_state))`, from
        waves or mels on, augmentation included.
    loss: `(params, encoded, labels) -> (mean loss, {name: Mean})`; "loss" and the other
        names that `state.zero_totals` expects of a model with these parameters.
    """

    rows: Callable[[Batch], Batch]
    encode: accumulate.Encode
    loss: accumulate.Loss


def make(
    config: ConfigDict,
    spec: Spec,
    model: Model,
    mesh: Mesh,
    augment: augment_lib.Augment,
) -> Task:
    """The task that a model with this spec is trained by."""
    task = {ClassifierSpec: classify, CaptionerSpec: write}.get(type(spec), contrast)
    return task(config, spec, model, mesh, augment)


def build(spec: Spec, **compute: Any) -> Model:
    """The functions of a spec; `compute` as `zoo.build` takes it.

    Raises ValueError for `token_drop` where there are no tokens.
    """
    if isinstance(spec, zoo.Spec):
        return zoo.build(spec, **compute)
    if compute.pop("token_drop", 0.0):
        raise ValueError(f"train.token_drop: {spec.name} has no text tower")
    made = captioner if isinstance(spec, CaptionerSpec) else classifier
    return made.build(spec, **compute)


def loss_facts(config: ConfigDict, spec: Spec, mesh: Mesh) -> dict[str, Any]:
    """How the loss is made; "reason" is a line for the log."""
    if isinstance(spec, zoo.Spec):
        options, reason = choose_loss(config, spec, mesh)
        return dataclasses.asdict(options) | {"reason": reason}
    smoothing = config.loss.label_smoothing
    if isinstance(spec, CaptionerSpec):
        reason = "cross entropy of the tokens of captions"
        if config.task.name == "answer":
            reason = "cross entropy of the tokens of answers, prompts left out"
        return {"name": "tokens", "label_smoothing": smoothing, "reason": reason}
    named = [
        f"{name} ({head.loss}, {len(head.labels)} classes)"
        for name, head in spec.heads.items()
    ]
    reason = f"heads on the {spec.features}: {', '.join(named)}"
    return {"name": "classes", "label_smoothing": smoothing, "reason": reason}


def augmented(
    key: jax.Array, heard: Sound, config: augment_lib.Augment
) -> tuple[Sound, augment_lib.Mix | None]:
    """The batch's sound after augmentation, and who was mixed with whom (mixup).

    Several mels of a clip, of front ends beside each other, get what one key draws.
    """
    several = isinstance(heard.mel, tuple)
    mels, mixes = zip(
        *(
            augment_lib.augment(key, mel, config, frames=heard.frames)
            for mel in (heard.mel if several else (heard.mel,))
        )
    )
    mel, mix = mels if several else mels[0], mixes[0]
    if mix is None:
        return heard._replace(mel=mel), None
    longer, frames = heard.longer, heard.frames
    longer = None if longer is None else mix.either(longer)
    frames = None if frames is None else mix.longest(frames)
    return Sound(mel, longer, frames), mix


def long_augmented(
    key: jax.Array, heard: Sound, batch: Batch, config: augment_lib.Augment
) -> Segments:
    """Long clips after augmentation, which takes each segment by itself."""
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), heard)
    changed, _ = augmented(key, rows, config)
    changed = jax.tree.map(lambda x, y: x.reshape(y.shape), changed, heard)
    return Segments(changed, batch["seconds"], batch["heard"])


# --- contrastive ----------------------------------------------------------------------


def contrast(
    config: ConfigDict,
    spec: zoo.Spec,
    dual: Dual,
    mesh: Mesh,
    augment: augment_lib.Augment,
) -> Task:
    """Clips and captions find each other; the loss is that of the whole batch.

    Where the model has a decoder of captions, their mean cross entropy over the tokens
    of the batch, times `task.caption_weight`, is added. Raises ConfigError for mixup
    beside it: there is no caption of two clips. What has the rate multiplier 0, and is
    of a tower, is not differentiated; see `specs.frozen_towers` for one that is frozen whole.
    """
    options, _ = choose_loss(config, spec, mesh)
    rates = rates_of(config, dual)
    weight = config.task.caption_weight
    if weight and augment.mixup_alpha:
        raise config_lib.ConfigError(
            f"augment.mixup_alpha is {augment.mixup_alpha}, expected 0 with "
            "task.caption_weight: a caption is about one clip"
        )
    if spec.temporal and augment.mixup_alpha:
        raise config_lib.ConfigError(
            f"augment.mixup_alpha is {augment.mixup_alpha}, expected 0: {spec.name} "
            "compares segments, and those of two clips lie at other times"
        )

    def rows(batch: Batch) -> Batch:
        found = {name: batch[name] for name in batch if name not in ("group", "bad")}
        found["label"] = batch["group"]
        if not options.multi_positive:
            found["label"] = jnp.arange(len(batch["group"]), dtype=jnp.int32)
        return found

    def loss(params: Any, encoded: Any, labels: contrastive.Labels):
        scale = dual_lib.score_params(params)
        pair, *written = encoded
        numbers = 1
        if spec.temporal:
            segments = pair[0].segments.shape[1]
            numbers = temporal.numbers_per_pair(spec.temporal, segments)
        total, count = losses.pair_loss(
            dual.score, scale, *pair, labels, options, mesh, numbers
        )
        if not written:
            return total / count, {"loss": Mean(total, count)}
        words = Mean(*(x.sum() for x in written[0]))
        value = total / count + weight * words.sum / words.count
        found = {"contrastive_loss": Mean(total, count), "caption_loss": words}
        return value, found | {"loss": Mean(value, jnp.float32(1))}

    towers = make_encode(dual, spec.frontend, augment, mesh)

    def encode(params: Any, *rest: Any):
        return towers(_learning(params, rates), *rest)

    return Task(rows, encode, loss)


def choose_loss(
    config: ConfigDict, spec: zoo.Spec, mesh: Mesh
) -> tuple[contrastive.Options, str]:
    """The loss of the config with `impl` and `chunk` decided, and a line that says why.

    Raises ValueError for options that cannot be.
    """
    options = contrastive.Options(**config_lib.plain(config.loss))
    batch, width = config.train.batch_size, spec.embed_dim
    if spec.temporal is None:
        return losses.choose(options, batch, mesh.size, width)
    segments = spec.temporal.segments(spec.frontend.clip_seconds)
    return losses.choose(
        options,
        batch,
        mesh.size,
        (1 + max(spec.temporal.sentences, 1)) * width,
        temporal.numbers_per_pair(spec.temporal, segments),
        (1 + segments) * width,
    )


def make_encode(
    dual: Dual, frontend: Frontend, augment: augment_lib.Augment, mesh: Mesh
) -> accumulate.Encode:
    """The towers on a batch, as `accumulate` takes it: `(encoded, (labels, state))`.

    From waves to embeddings, augmentation included; `encoded` is ((za, zt),), and with a
    decoder of captions (.., (sum, count)) of each caption's token losses, [B] each. The
    batch has a "label" for each row: clips and texts of the same label belong together.
    Of long clips it has waves or mels [B, S, ...] with "seconds" and "heard" as in
    `Segments`, and maybe "spans" of sentences.
    """

    def encode(params: Any, model_state: Any, batch: Batch, key: jax.Array):
        augment_key, audio_key, text_key = jax.random.split(key, 3)
        heard, mix = sound(batch, frontend, mesh), None
        if "seconds" in batch:
            heard = long_augmented(augment_key, heard, batch, augment)
        else:
            heard, mix = augmented(augment_key, heard, augment)
        variables = {"params": params, "state": model_state}
        (za, aux), audio_state = dual.encode_audio(
            variables, heard, train=True, key=audio_key
        )
        spans = (batch["spans"],) if "spans" in batch else ()
        (zt, _), text_state = dual.encode_text(
            variables, batch["ids"], batch["mask"], *spans, train=True, key=text_key
        )
        label = batch["label"]
        labels = contrastive.Labels(label, label)
        if mix is not None:
            labels = labels._replace(partner=label[mix.partner], share=mix.lam)
        new_state = {**text_state, "audio": audio_state["audio"]}
        encoded = ((za, zt),)
        if dual.caption_logits is not None:
            ids, said = batch["ids"], batch["mask"][:, 1:]
            logits = dual.caption_logits(
                variables,
                aux,
                ids,
                batch["mask"],
                train=True,
                key=jax.random.fold_in(text_key, 1),
            )
            each = jnp.where(said, tokens.token_losses(logits, ids[:, 1:]), 0)
            encoded = (*encoded, (each.sum(1), said.sum(1, dtype=jnp.float32)))
        return encoded, (labels, new_state)

    return encode


# --- classify -------------------------------------------------------------------------


class Known(NamedTuple):
    """What is known of the labels of B clips, for H heads with C classes together.

    target: float32 [B, C], the share of each class. mass: float32 [B, H], how much of a
    clip is labelled for each head: 1 for its own and 0 for the others, but for mixup.
    """

    target: jax.Array
    mass: jax.Array

    def mixed(self, mix: augment_lib.Mix) -> "Known":
        """As the sounds were mixed."""

        def one(x: jax.Array) -> jax.Array:
            share = mix.lam[:, None]
            return share * x + (1 - share) * x[mix.partner]

        return Known(one(self.target), one(self.mass))


def classify(
    config: ConfigDict,
    spec: ClassifierSpec,
    model: Classifier,
    mesh: Mesh,
    augment: augment_lib.Augment,
) -> Task:
    """Heads name the labels of clips.

    The loss of a clip is that of its own head alone, times the head's weight; the mean
    is over clips by these weights. Towers whose every parameter has the rate multiplier
    0 run as in evaluation (LAION's `lp-freeze`), and nothing is differentiated there.
    """
    frozen = towers_are_frozen(config, model)
    weights = [float(section.weight) for section in heads.sections(config).values()]

    def encode(params: Any, model_state: Any, batch: Batch, key: jax.Array):
        augment_key, towers_key, heads_key = jax.random.split(key, 3)
        heard, mix = augmented(augment_key, sound(batch, spec.frontend, mesh), augment)
        (x, _), state = model.features(
            {"params": params, "state": model_state},
            heard,
            train=not frozen,
            key=towers_key,
        )
        x = jax.lax.stop_gradient(x) if frozen else x
        scores = model.scores(params, x, train=True, key=heads_key)
        known = Known(batch["target"], jax.nn.one_hot(batch["head"], len(spec.heads)))
        return scores, (known if mix is None else known.mixed(mix), state)

    def loss(params: Any, scores: jax.Array, known: Known):
        del params
        each, right, found = [], [], {}
        for number, (name, head) in enumerate(spec.heads.items()):
            columns, mass = spec.columns[name], known.mass[:, number]
            own = scores[:, columns], known.target[:, columns]
            values = classes.LOSSES[head.loss](*own, mass, config.loss.label_smoothing)
            each.append(Mean(values.sum(), mass.sum()))
            right.append((classes.is_right(*own) * mass).sum())
            if len(spec.heads) > 1:
                found[f"loss_{name}"] = each[-1]
        total = sum(weight * mean.sum for weight, mean in zip(weights, each))
        count = sum(weight * mean.count for weight, mean in zip(weights, each))
        clips = sum(mean.count for mean in each)
        found |= {"loss": Mean(total, count), "accuracy": Mean(sum(right), clips)}
        return total / count, found

    return Task(_without("group", "bad"), encode, loss)


def towers_are_frozen(config: ConfigDict, model: Classifier) -> bool:
    """Whether the optimizer changes nothing but the heads."""
    rates = sharding.flatten(rates_of(config, model))
    return not any(
        rate for path, rate in rates.items() if not path.startswith("heads/")
    )


def rates_of(config: ConfigDict, model: Model) -> Any:
    """The rate multiplier of every parameter, as a tree."""
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    return optim.rate_multipliers(config.optim, params)


def _learning(params: Any, rates: Any) -> Any:
    """`params`, of which those with the rate 0 are not differentiated."""
    return jax.tree.map(
        lambda leaf, rate: leaf if rate else jax.lax.stop_gradient(leaf), params, rates
    )


def _without(*names: str) -> Callable[[Batch], Batch]:
    """What leaves out the fields `names` of a batch."""
    return lambda batch: {name: batch[name] for name in batch if name not in names}


# --- write ----------------------------------------------------------------------------


def timed(config: ConfigDict, batch: Batch, step: jax.Array, total_steps: int) -> Batch:
    """A batch with the share of the run that is done, float32 [B] in [0, 1), where the
    task asks for it."""
    if not config.task.scheduled_sampling:
        return batch
    done = step / jnp.float32(max(total_steps, 1))
    return batch | {"done": jnp.full(len(batch["bad"]), done, jnp.float32)}


def write(
    config: ConfigDict,
    spec: CaptionerSpec,
    model: Captioner,
    mesh: Mesh,
    augment: augment_lib.Augment,
) -> Task:
    """The decoder writes what is to be said of a clip: a caption, guided by tags or not,
    or the answer behind a prompt (Pengi).

    The loss is the mean over the tokens of captions, or answers, and their endings in
    the batch. With `task.scheduled_sampling` a share of the tokens that the decoder has
    read, rising linearly from 0 to this by the end of the run (as AudioCaption's, whose
    ratio is that of the true ones and falls from 1), is its own; see
    `captioner.scheduled`. What has the rate multiplier 0 is not differentiated; an audio
    tower with its projection, or a decoder, that is frozen whole runs as in evaluation.
    Raises ConfigError for mixup: there is no text of two clips.
    """
    if augment.mixup_alpha:
        raise config_lib.ConfigError(
            f"augment.mixup_alpha is {augment.mixup_alpha}, expected 0 with "
            f"task.name={config.task.name}: a text is about one clip"
        )
    rates = rates_of(config, model)
    hears = any(jax.tree.leaves((rates["audio"], rates.get("audio_projection", {}))))
    writes = any(jax.tree.leaves((rates["decoder"], rates.get("lora", {}))))

    def encode(params: Any, model_state: Any, batch: Batch, key: jax.Array):
        augment_key, audio_key, text_key = jax.random.split(key, 3)
        params = _learning(params, rates)
        variables = {"params": params, "state": model_state}
        heard, _ = augmented(augment_key, sound(batch, spec.frontend, mesh), augment)
        (z, _), state = model.encode_audio(
            variables,
            heard,
            tags=batch.get("tags"),
            train=True,
            key=audio_key,
            frozen=not hears,
        )
        ids = read = batch["ids"]
        if "done" in batch:
            share = batch["done"][:, None] * config.task.scheduled_sampling
            own_key = jax.random.fold_in(text_key, 1)
            first = functools.partial(model.token_logits, variables, z)
            read = captioner.scheduled(first, ids, batch["answer"], share, own_key)
        logits = model.token_logits(variables, z, read, train=writes, key=text_key)
        found = tokens.token_losses(logits, ids, config.loss.label_smoothing)
        right = logits.argmax(axis=-1) == ids
        return found, ({"answer": batch["answer"], "right": right}, state)

    def loss(params: Any, found: jax.Array, rows: dict[str, jax.Array]):
        del params
        total, count = tokens.counted(found, rows["answer"])
        right, _ = tokens.counted(rows["right"].astype(jnp.float32), rows["answer"])
        means = {"loss": Mean(total, count), "token_accuracy": Mean(right, count)}
        return total / jnp.maximum(count, 1), means

    return Task(_without("group", "bad", "mask"), encode, loss)
