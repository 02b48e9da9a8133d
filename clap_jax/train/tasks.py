"""What a run learns: the loss, and what it takes from a batch.

A task says how a batch is encoded, what the loss of all encoded rows is, and what is
logged beside it. The loop, the optimizer, checkpoints and data order do not depend on
it. Which task a model is for follows from its spec: a pair of towers is trained by
comparing clips with captions, a classifier by naming the labels of clips, a captioner
by writing answers.
"""

import dataclasses
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
TASKS = ("contrastive", "classify", "answer")


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
    task = {ClassifierSpec: classify, CaptionerSpec: answer}.get(type(spec), contrast)
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
    """The batch's sound after augmentation, and who was mixed with whom (mixup)."""
    mel, mix = augment_lib.augment(key, heard.mel, config, frames=heard.frames)
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
    """Clips and captions find each other; the loss is that of the whole batch."""
    options, _ = choose_loss(config, spec, mesh)
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

    def loss(params: Any, embeddings: Any, labels: contrastive.Labels):
        scale = dual_lib.score_params(params)
        numbers = 1
        if spec.temporal:
            segments = embeddings[0].segments.shape[1]
            numbers = temporal.numbers_per_pair(spec.temporal, segments)
        total, count = losses.pair_loss(
            dual.score, scale, *embeddings, labels, options, mesh, numbers
        )
        return total / count, {"loss": Mean(total, count)}

    return Task(rows, make_encode(dual, spec.frontend, augment, mesh), loss)


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
    """The towers on a batch, as `accumulate` takes it: `((za, zt), (labels, state))`.

    From waves to embeddings, augmentation included. The batch has a "label" for each
    row: clips and texts of the same label belong together. Of long clips it has waves
    or mels [B, S, ...] with "seconds" and "heard" as in `Segments`, and maybe "spans" of
    sentences.
    """

    def encode(params: Any, model_state: Any, batch: Batch, key: jax.Array):
        augment_key, audio_key, text_key = jax.random.split(key, 3)
        heard, mix = sound(batch, frontend, mesh), None
        if "seconds" in batch:
            heard = long_augmented(augment_key, heard, batch, augment)
        else:
            heard, mix = augmented(augment_key, heard, augment)
        variables = {"params": params, "state": model_state}
        (za, _), audio_state = dual.encode_audio(
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
        new_state = {"audio": audio_state["audio"], "text": text_state["text"]}
        return (za, zt), (labels, new_state)

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
    rates = sharding.flatten(_rates(config, model))
    return not any(
        rate for path, rate in rates.items() if not path.startswith("heads/")
    )


def _rates(config: ConfigDict, model: Model) -> Any:
    """The rate multiplier of every parameter, as a tree."""
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    return optim.rate_multipliers(config.optim, params)


def _without(*names: str) -> Callable[[Batch], Batch]:
    """What leaves out the fields `names` of a batch."""
    return lambda batch: {name: batch[name] for name in batch if name not in names}


# --- answer ---------------------------------------------------------------------------


def answer(
    config: ConfigDict,
    spec: CaptionerSpec,
    model: Captioner,
    mesh: Mesh,
    augment: augment_lib.Augment,
) -> Task:
    """The decoder writes what is to be said of a clip, behind a prompt (Pengi).

    The loss is the mean over the tokens of answers and their endings in the batch. What
    has the rate multiplier 0 is not differentiated; an audio tower with its projection,
    or a decoder, that is frozen whole runs as in evaluation.
    Raises ConfigError for mixup: there is no text of two clips.
    """
    if augment.mixup_alpha:
        raise config_lib.ConfigError(
            f"augment.mixup_alpha is {augment.mixup_alpha}, expected 0 with "
            "task.name=answer: an answer is about one clip"
        )
    rates = _rates(config, model)
    hears = any(jax.tree.leaves((rates["audio"], rates["audio_projection"])))
    writes = any(jax.tree.leaves(rates["decoder"]))

    def encode(params: Any, model_state: Any, batch: Batch, key: jax.Array):
        augment_key, audio_key, text_key = jax.random.split(key, 3)
        params = jax.tree.map(
            lambda leaf, rate: leaf if rate else jax.lax.stop_gradient(leaf),
            params,
            rates,
        )
        variables = {"params": params, "state": model_state}
        heard, _ = augmented(augment_key, sound(batch, spec.frontend, mesh), augment)
        (z, _), state = model.encode_audio(variables, heard, train=hears, key=audio_key)
        ids = batch["ids"]
        logits = model.token_logits(variables, z, ids, train=writes, key=text_key)
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
