"""Projection heads: from a tower's embedding to the joint space, before L2."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from clap_jax import config as config_lib
from clap_jax.models import layers
from clap_jax.models.tower import Tower, from_linen


class _Linear(nn.Module):
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B D"], train: bool
    ) -> tuple[Float[Array, "B E"], dict[str, Any]]:
        return nn.Dense(self.features, dtype=self.dtype, name="linear")(x), {}


class _LaionMlp(nn.Module):
    features: int
    dtype: Any = jnp.float32
    activation: str = "relu"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B D"], train: bool
    ) -> tuple[Float[Array, "B E"], dict[str, Any]]:
        def dense(name: str) -> nn.Dense:
            return nn.Dense(
                self.features,
                dtype=self.dtype,
                kernel_init=layers.torch_init,
                name=name,
            )

        activation = layers.ACTIVATIONS[self.activation]
        return dense("linear2")(activation(dense("linear1")(x))), {}


class _Msclap(nn.Module):
    features: int
    dtype: Any = jnp.float32
    dropout: float = 0.5

    @nn.compact
    def __call__(
        self, x: Float[Array, "B D"], train: bool
    ) -> tuple[Float[Array, "B E"], dict[str, Any]]:
        def dense(name: str) -> nn.Dense:
            return nn.Dense(
                self.features,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=nn.initializers.xavier_uniform(),
                name=name,
            )

        first = dense("linear1")(x)
        second = dense("linear2")(layers.ACTIVATIONS["gelu"](first))
        second = nn.Dropout(self.dropout, deterministic=not train)(second)
        return layers.layer_norm(1e-5, self.dtype, "norm")(first + second), {}


class _Classes(nn.Module):
    classes: int
    hidden: tuple[int, ...]
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "B D"], train: bool
    ) -> tuple[Float[Array, "B C"], dict[str, Any]]:
        for i, width in enumerate((*self.hidden, self.classes)):
            if i:
                x = nn.relu(x)
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.Dense(width, kernel_init=layers.torch_init, name=f"linear{i + 1}")(x)
        return x, {}


HEADS = {
    "linear": _Linear,
    "laion_mlp": _LaionMlp,
    "laion_mlp_gelu": functools.partial(_LaionMlp, activation="gelu"),
    "msclap": _Msclap,
}


def tower(kind: str, embed_dim: int, *, dtype: str = "float32") -> Tower:
    """A head as a tower: embedding [B, D] to projection [B, E], no aux.

    linear: one affine map. laion_mlp: Linear to E, ReLU, Linear to E, without norm or
    dropout (LAION-CLAP `clap_module/model.py`, `mlp_layers`); laion_mlp_gelu: the same
    with GELU. msclap: Linear to E, then LayerNorm(that + Dropout(Linear(GELU(that)))),
    no biases (MS-CLAP `models/clap.py`, `Projection`).
    Errors: ValueError on an unknown kind.
    """
    if kind not in HEADS:
        raise ValueError(config_lib.unknown("head", kind, HEADS))
    return from_linen(HEADS[kind](embed_dim, jnp.dtype(dtype)))


def classes(count: int, hidden: tuple[int, ...] = (), dropout: float = 0.1) -> Tower:
    """A head that scores classes, as a tower: [B, D] to float32 [B, C], no aux.

    Linear layers to each width of `hidden` and to the C = `count` classes, with ReLU and
    dropout between them (LAION-CLAP `clap_module/linear_probe.py`; with `--lp-mlp`,
    hidden is (1024,) and dropout 0.1 in `model.py`, `MLPLayers`).
    """
    return from_linen(_Classes(count, tuple(hidden), dropout))
