"""A bidirectional GRU over sequences of unequal length, as torch computes it.

Sources: Cho et al. 2014 (arXiv 1406.1078); `torch.nn.GRU` on packed sequences, which is
the encoder of wsntxxn/AudioCaption (`captioning/models/rnn_encoder.py`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from clap_jax.models.tower import Tower, defaults, from_linen


class Sequence(NamedTuple):
    """Features over time. x: [B, N, D]. frames: int32 [B], how many of N are true."""

    x: Float[Array, "B N D"]
    frames: Int[Array, " B"]


def over_time(aux: Mapping[str, Any]) -> Sequence:
    """An audio tower's embeddings over time, and how many of them are of each clip.

    PANN's "time", as the reference has it, of other towers "fine_grained".
    """
    x = aux["time"] if "time" in aux else aux["fine_grained"]
    frames = aux.get("steps")
    if frames is None:
        frames = jnp.full(len(x), x.shape[1])
    return Sequence(x.astype(jnp.float32), frames.astype(jnp.int32))


class _Gru(nn.Module):
    """One direction of one layer; its state starts with zeros at the first true step."""

    width: int
    reverse: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], inside: Bool[Array, "B N"]
    ) -> Float[Array, "B N W"]:
        width = self.width

        # torch gives U(-1/sqrt(width), +) to everything in a GRU.
        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32):
            return jax.random.uniform(key, shape, dtype, -1, 1) * width**-0.5

        # Reset gate, update gate and candidate, one behind the other.
        heard = nn.Dense(
            3 * width, dtype=self.dtype, kernel_init=init, bias_init=init, name="input"
        )(x)
        state_map = nn.Dense(
            3 * width, dtype=self.dtype, kernel_init=init, bias_init=init, name="state"
        )
        wide = jnp.promote_types(self.dtype, jnp.float32)
        start = jnp.zeros((x.shape[0], width), wide)
        state_map(start)  # so that its parameters exist outside of the loop
        told = self.variables["params"]["state"]
        plain = nn.Dense(3 * width, dtype=self.dtype)

        def step(state: jax.Array, now: tuple[jax.Array, jax.Array]):
            heard, inside = now
            reset, update, candidate = jnp.split(heard.astype(wide), 3, axis=-1)
            mapped = plain.apply({"params": told}, state).astype(wide)
            reset_state, update_state, own = jnp.split(mapped, 3, axis=-1)
            reset = nn.sigmoid(reset + reset_state)
            update = nn.sigmoid(update + update_state)
            new = jnp.tanh(candidate + reset * own)
            new = (1 - update) * new + update * state
            new = jnp.where(inside[:, None], new, state)
            return new, jnp.where(inside[:, None], new, 0)

        # Backwards the state waits, as zeros, for the clip's last true step.
        over_time = (heard.swapaxes(0, 1), inside.T)
        _, out = jax.lax.scan(step, start, over_time, reverse=self.reverse)
        return out.swapaxes(0, 1)


class _Encoder(nn.Module):
    """See `tower`."""

    width: int = 256
    depth: int = 3
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, sequence: Sequence, train: bool
    ) -> tuple[Float[Array, "B N M"], dict[str, Any]]:
        x = sequence.x
        inside = jnp.arange(x.shape[1]) < sequence.frames[:, None]
        for i in range(self.depth):
            if i:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = jnp.concatenate(
                [
                    _Gru(self.width, False, self.dtype, name=f"forward{i}")(x, inside),
                    _Gru(self.width, True, self.dtype, name=f"backward{i}")(x, inside),
                ],
                axis=-1,
            )
        return x, {}


DEFAULTS = defaults(_Encoder)


def tower(options: Mapping[str, Any], *, dtype: str = "float32") -> Tower:
    """Layers of GRUs in both directions; `options` override `DEFAULTS`.

    Input a `Sequence`; embedding float32 [B, N, 2 width], forward and backward side by
    side, 0 behind the true steps, which have no influence. In training there is dropout
    between layers. The state is float32 whatever `dtype` is. No aux.
    """
    return from_linen(_Encoder(**options, dtype=jnp.dtype(dtype)))
