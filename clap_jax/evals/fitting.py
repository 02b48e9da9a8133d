"""The two ways to fit a head on fixed vectors, see `recipes`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clap_jax.evals import class_metrics
from clap_jax.evals.recipes import Recipe
from clap_jax.losses import classes
from clap_jax.models import heads

# L-BFGS ends at this norm of the gradient, or after so many steps.
GRADIENT_NORM = 1e-5
MOST_STEPS = 1000


@dataclasses.dataclass
class Fitted:
    """A head, and what to do with vectors before it."""

    mean: np.ndarray
    scale: np.ndarray
    params: Any
    recipe: Recipe
    classes: int

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Scores float32 [n, C] of vectors [n, D]."""
        x = jnp.asarray((vectors - self.mean) * self.scale, jnp.float32)
        return np.asarray(_head(self.recipe, self.classes)(self.params, x))


def fit(
    recipe: Recipe,
    vectors: np.ndarray,
    targets: np.ndarray,
    train: np.ndarray,
    loss: str,
    strength: float,
) -> Fitted:
    """Fit a head on some of the clips.

    vectors: float32 [n, D]. targets: bool [n, C]. train: bool [n], the clips to learn
    from. loss: "ce" or "bce". strength: of the penalty.
    Raises ValueError where the fit ends with numbers that are not finite.
    """
    mean, scale = np.zeros(vectors.shape[1]), np.ones(vectors.shape[1])
    if recipe.standardise:
        own = vectors[train].astype(np.float64)
        mean, deviation = own.mean(axis=0), own.std(axis=0)
        # A dimension that is the same for all says nothing; 1e-6 of it is rounding.
        dead = deviation <= 1e-6 * np.abs(mean)
        scale = np.where(dead, 0.0, 1 / np.where(dead, 1, deviation))
    x = jnp.asarray((vectors - mean) * scale, jnp.float32)
    y = jnp.asarray(targets, jnp.float32)
    if recipe.solver == "lbfgs":
        weight = jnp.asarray(train, jnp.float32)
        params = _optimum(x, y, weight, jnp.float32(strength), loss)
    else:
        params = _by_adam(recipe, x, y, np.flatnonzero(train), loss, strength)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise ValueError(
            f"the probe's weights are not finite (strength {strength:g}): lower "
            "learning_rate, or standardise"
        )
    return Fitted(mean, scale, params, recipe, targets.shape[1])


def choose(
    recipe: Recipe,
    vectors: np.ndarray,
    targets: np.ndarray,
    train: np.ndarray,
    held: np.ndarray,
    multi_label: bool,
) -> float:
    """The strength of the recipe whose head, which learnt from `train`, is best on
    `held` (both bool [n]); of equals the strongest."""
    best, chosen = -1.0, 0.0
    for strength in sorted(recipe.strengths, reverse=True):
        loss = "bce" if multi_label else "ce"
        head = fit(recipe, vectors, targets, train, loss, strength)
        found = class_metrics.metrics(
            head.scores(vectors[held]), targets[held], multi_label
        )
        value = found[class_metrics.headline(multi_label)]
        if value > best:
            best, chosen = value, strength
    return chosen


def _head(recipe: Recipe, count: int) -> Any:
    """`(params, x) -> scores` in evaluation."""
    if recipe.solver == "lbfgs":
        return _linear
    tower = heads.classes(count, recipe.hidden, recipe.dropout)
    return lambda params, x: tower.apply({"params": params, "state": {}}, x)[0][0]


def _linear(params: Any, x: jax.Array) -> jax.Array:
    return jnp.einsum("nd,dc->nc", x, params["w"], precision="highest") + params["b"]


def _optimum(
    x: jax.Array, y: jax.Array, weight: jax.Array, strength: jax.Array, loss: str
) -> Any:
    """The linear head of least penalised loss over clips of weight 1; from zero."""
    return _OPTIMA[loss](x, y, weight, strength)


def _minimise(loss: str):
    def value(params: Any, x: Any, y: Any, weight: Any, strength: Any) -> jax.Array:
        each = classes.LOSSES[loss](_linear(params, x), y, jnp.ones(len(y)))
        penalty = strength / 2 * jnp.sum(params["w"] ** 2)
        return jnp.sum(weight * each) / weight.sum() + penalty

    @jax.jit
    def minimise(x: Any, y: Any, weight: Any, strength: Any) -> Any:
        def function(params: Any) -> jax.Array:
            return value(params, x, y, weight, strength)

        optimizer = optax.lbfgs()
        value_and_grad = optax.value_and_grad_from_state(function)

        def step(carry: Any) -> Any:
            params, state, number, _ = carry
            found, gradient = value_and_grad(params, state=state)
            updates, state = optimizer.update(
                gradient, state, params, value=found, grad=gradient, value_fn=function
            )
            norm = optax.tree.norm(gradient)
            return optax.apply_updates(params, updates), state, number + 1, norm

        def goes_on(carry: Any) -> jax.Array:
            _, _, number, norm = carry
            return (number < MOST_STEPS) & (norm > GRADIENT_NORM)

        zeros = {
            "w": jnp.zeros((x.shape[1], y.shape[1])),
            "b": jnp.zeros(y.shape[1]),
        }
        start = zeros, optimizer.init(zeros), 0, jnp.float32(jnp.inf)
        return jax.lax.while_loop(goes_on, step, start)[0]

    return minimise


_OPTIMA = {loss: _minimise(loss) for loss in classes.LOSSES}


def _by_adam(
    recipe: Recipe, x: jax.Array, y: jax.Array, rows: np.ndarray, loss: str, strength
) -> Any:
    """A head after the recipe's epochs over `rows`."""
    tower = heads.classes(y.shape[1], recipe.hidden, recipe.dropout)
    optimizer = optax.adam(recipe.learning_rate)
    size = min(recipe.batch_size, len(rows))
    rng = np.random.default_rng(recipe.seed)
    order = [rng.permutation(rows) for _ in range(recipe.epochs)]
    # The last batch of an epoch is filled up with clips that do not count.
    filling = -len(rows) % size
    batches = np.stack([np.append(one, one[:filling]) for one in order])
    counts = np.ones(batches.shape, np.float32)
    counts[:, len(rows) :] = 0
    key = jax.random.key(recipe.seed)

    def step(carry: Any, batch: Any) -> tuple[Any, None]:
        params, state, number = carry
        index, weight = batch

        def value(params: Any) -> jax.Array:
            variables = {"params": params, "state": {}}
            step_key = jax.random.fold_in(key, number)
            (scores, _), _ = tower.apply(variables, x[index], train=True, key=step_key)
            each = classes.LOSSES[loss](scores, y[index], jnp.ones(size))
            kernels = [layer["kernel"] for layer in params.values()]
            penalty = strength / 2 * sum(jnp.sum(kernel**2) for kernel in kernels)
            return jnp.sum(weight * each) / weight.sum() + penalty

        updates, state = optimizer.update(jax.grad(value)(params), state, params)
        return (optax.apply_updates(params, updates), state, number + 1), None

    params = tower.init(jax.random.fold_in(key, 2**31 - 1), x[:1])["params"]
    start = params, optimizer.init(params), 0
    shape = (-1, size)
    (params, _, _), _ = jax.jit(lambda carry, xs: jax.lax.scan(step, carry, xs))(
        start, (batches.reshape(shape), counts.reshape(shape))
    )
    return params
