"""Random weights without compiling an initialiser."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clap_jax.models.tower import Tower


def fill(tower: Tower, example: Any, std: float = 0.2) -> dict[str, Any]:
    """Variables of a tower: every leaf normal, scales and variances about one."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), example)

    def draw(path: Any, leaf: Any) -> jax.Array:
        z = std * rng.normal(size=leaf.shape)
        around_one = path[-1].key in ("scale", "var")
        return jnp.asarray(np.exp(z) if around_one else z, leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)
