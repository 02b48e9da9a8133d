"""Feature fusion: how LAION-CLAP mixes a whole long clip with windows of it.

Source: Wu et al. 2023 (arXiv 2211.06687) as coded in LAION-AI/CLAP,
`clap_module/feature_fusion.py`; AFF and iAFF are from Dai et al. 2021 (2009.14082).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from clap_jax import config as config_lib
from clap_jax.audio.mel import VIEWS
from clap_jax.models import layers
from clap_jax.models.tower import Sound

KINDS = ("daf_1d", "aff_1d", "iaff_1d", "daf_2d", "aff_2d", "iaff_2d")
"""What `Fusion` does; 1d mixes log-mels [B, N, C], 2d feature maps [B, H, W, C]."""

TYPES = ("none", *KINDS, "channel_map")
"""Values of a tower's option `fusion`. With channel_map the views are input channels
of the first convolution, and nothing is left to fuse."""


def check(fusion: str) -> None:
    """ValueError, with the known ones, when `fusion` is not one of `TYPES`."""
    if fusion not in TYPES:
        raise ValueError(config_lib.unknown("fusion", fusion, TYPES))


def longer_rows(
    fusion: str, sound: Sound, flag: Callable[[], jax.Array] | None = None
) -> Bool[Array, " B"] | None:
    """Which rows of a batch are fused; None without fusion.

    flag: gives a key, with which a batch without longer clips has one flagged at
    random, so that it trains the fusion too. The reference does so in training; its
    PANN does outside as well, which makes embeddings of short clips random, and that is
    not repeated here. Errors: ValueError when the mels do not suit the fusion.
    """
    shape = sound.mel.shape
    if fusion == "none":
        if len(shape) != 3:
            raise ValueError(
                f"a tower without fusion takes mels [B, N, F], got shape {shape}"
            )
        return None
    if len(shape) != 4 or shape[1] != VIEWS:
        raise ValueError(
            f"fusion {fusion} takes mels of {VIEWS} views [B, {VIEWS}, N, F], got "
            f"shape {shape}"
        )
    longer = sound.longer
    if longer is None:
        raise ValueError(
            f"fusion {fusion} needs Sound.longer, which clips are longer than the "
            "model's window; got None"
        )
    if flag is not None:
        one = jax.random.randint(flag(), (), 0, shape[0])
        longer = jnp.where(longer.any(), longer, jnp.arange(shape[0]) == one)
    return longer


def fuse_mels(
    fusion: "Fusion", x: Float[Array, "B V N F"], longer: Any, train: bool
) -> Float[Array, "B N F"]:
    """1d fusion of log-mels: the windows, each a third as long, one after another.

    To be called inside a tower, whose parameters `local_conv` and `local_norm` become.
    """
    batch, views, frames, mels = x.shape
    local = nn.Conv(
        mels,
        (5,),
        3,
        padding=((2, 2),),
        dtype=fusion.dtype,
        kernel_init=layers.torch_init,
        name="local_conv",
    )(x[:, 1:].reshape(-1, frames, mels))
    rows = jnp.repeat(longer, views - 1)
    local = layers.BatchNorm(name="local_norm")(local, train, rows)
    # 3 x 334 frames of 10 s are one more than the 1001 of the whole.
    local = local.reshape(batch, -1, mels)[:, :frames]
    return fusion(x[:, 0], local, longer, train)


class _Attention(nn.Module):
    """1x1 convolution to C / reduction, norm, ReLU, 1x1 convolution to C, norm."""

    reduction: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B *n C"],
        train: bool,
        rows: Bool[Array, " B"],
        copies: Any,
    ) -> Float[Array, "B *n C"]:
        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features, dtype=self.dtype, kernel_init=layers.torch_init, name=name
            )

        def norm(y: Any, name: str) -> Any:
            return layers.BatchNorm(name=name)(y, train, rows, copies)

        channels = x.shape[-1]
        x = dense(channels // self.reduction, "down")(x)
        x = nn.relu(norm(x, "norm_down"))
        return norm(dense(channels, "up")(x), "norm_up")


class Fusion(nn.Module):
    """Mix a global view with a local one, in the rows of clips that are longer.

    kind: one of `KINDS`. daf: their sum. aff: w times global plus (1 - w) times local,
    where w = sigmoid(L(s) + G(s)) of their sum s, L looks at every place and G at the
    mean over all places. iaff: twice, the second time with s the first mixture.
    global_x, local_x: [B, N, C] or [B, H, W, C]; longer: bool [B]. Returns the shape
    and dtype of global_x; rows that are not longer come back as they are, and do not
    count in the norms' statistics.
    """

    kind: str
    reduction: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        global_x: Float[Array, "B *n C"],
        local_x: Float[Array, "B *n C"],
        longer: Bool[Array, " B"],
        train: bool,
    ) -> Float[Array, "B *n C"]:
        if self.kind not in KINDS:
            raise ValueError(config_lib.unknown("kind of fusion", self.kind, KINDS))
        method = self.kind.partition("_")[0]
        mix = {"daf": self._add, "aff": self._attend, "iaff": self._attend_twice}
        fused = mix[method](global_x, local_x, longer, train)
        row = longer.reshape(-1, *[1] * (global_x.ndim - 1))
        return jnp.where(row, fused.astype(global_x.dtype), global_x)

    def _add(self, global_x: Any, local_x: Any, longer: Any, train: bool) -> Any:
        return global_x + local_x

    def _attend(self, global_x: Any, local_x: Any, longer: Any, train: bool) -> Any:
        weigh = self._weigh(longer, train)
        attention = self._attention("local_att"), self._attention("global_att")
        weight = weigh(*attention, global_x + local_x)
        # The paper's equation 4 has no factor 2; the reference's AFF has, as the
        # published fused models need, and its iAFF has not.
        return 2 * (global_x * weight + local_x * (1 - weight))

    def _attend_twice(
        self, global_x: Any, local_x: Any, longer: Any, train: bool
    ) -> Any:
        weigh = self._weigh(longer, train)
        local_att, global_att, local_att2, global_att2 = map(
            self._attention, ("local_att", "global_att", "local_att2", "global_att2")
        )
        weight = weigh(local_att, global_att, global_x + local_x)
        mixed = global_x * weight + local_x * (1 - weight)
        if self.is_initializing():
            # The reference's second round asks global_att again (its statistics are
            # updated twice a step). global_att2 is in its files and gets no gradient.
            weigh(local_att2, global_att2, mixed)
        weight = weigh(local_att2, global_att, mixed)
        return global_x * weight + local_x * (1 - weight)

    def _attention(self, name: str) -> _Attention:
        return _Attention(self.reduction, self.dtype, name=name)

    def _weigh(self, longer: Any, train: bool) -> Any:
        # The reference doubles a batch of one row so that G's norms, which see one
        # value a row, have more than one. It shows in the unbiased variances of L.
        copies = jnp.where(longer.sum() == 1, 2, 1) if train else 1

        def weigh(local_att: Any, global_att: Any, x: Any) -> Any:
            places = tuple(range(1, x.ndim - 1))
            pooled = x.mean(places, keepdims=True, dtype=jnp.float32)
            local_part = local_att(x, train, longer, copies)
            return nn.sigmoid(local_part + global_att(pooled, train, longer, copies))

        return weigh
