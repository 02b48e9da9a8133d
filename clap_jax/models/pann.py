"""PANN audio towers: Cnn6, Cnn10 and Cnn14, convolutions over a log-mel.

Source: Kong et al. 2020 (arXiv 1912.10211) as changed in LAION-AI/CLAP
(`clap_module/pann_model.py`), MS-CLAP 2022 (`models/audio.py`) and BLAT
(`models/audio_encoder.py`).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from clap_jax import config as config_lib
from clap_jax.audio import augment
from clap_jax.audio.frontend import FLOOR_DB
from clap_jax.models import drop, fusion, layers
from clap_jax.models.tower import Sound, Tower, as_sound, defaults, from_linen

# How a clip that is shorter than its mel is kept apart from the padding behind it.
LENGTH_MASKS = ("none", "pool", "every_layer")
SPEC_AUGMENTS = ("none", "before_bn0", "after_bn0")

_xavier = nn.initializers.xavier_uniform()


def _seen(
    frames: Int[Array, " B"] | None, halvings: int, steps: Any
) -> Bool[Array, "B n"] | None:
    """Which of `steps` positions, after so many halvings of time, belong to the clip.

    At least one does: BLAT divides by zero on clips below 32 frames (0.31 s). `steps` is
    a number, or a symbol in a program that is exported for any length.
    """
    if frames is None:
        return None
    return jnp.arange(steps) < jnp.maximum(frames >> halvings, 1)[:, None]


def _hide(x: Float[Array, "B N F C"], seen: Any) -> Float[Array, "B N F C"]:
    """Zero what is not of the clip, as a convolution pads a clip that ends there."""
    return x if seen is None else jnp.where(seen[:, :, None, None], x, 0)


def _norm(
    x: Float[Array, "B N *F C"], seen: Any, train: bool, name: str
) -> Float[Array, "B N *F C"]:
    """Batch norm; only positions that are `seen` count in its statistics."""
    norm = layers.BatchNorm(name=name)
    if seen is None:
        return norm(x, train)
    positions = x.reshape(-1, *x.shape[2:])
    return norm(positions, train, seen.reshape(-1)).reshape(x.shape)


class _Block(nn.Module):
    """Convolutions, each with batch norm and ReLU."""

    width: int
    convs: int
    kernel: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N F C"],
        seen: Bool[Array, "B N"] | None,
        train: bool,
    ) -> Float[Array, "B N F D"]:
        for i in range(1, self.convs + 1):
            x = nn.Conv(
                self.width,
                (self.kernel, self.kernel),
                use_bias=False,
                dtype=self.dtype,
                kernel_init=_xavier,
                name=f"conv{i}",
            )(x)
            x = nn.relu(_norm(x, seen, train, f"bn{i}")).astype(self.dtype)
            x = _hide(x, seen)
        return x


class _Pann(nn.Module):
    """See `tower`."""

    widths: tuple = (64, 128, 256, 512, 1024, 2048)
    convs: int = 2
    kernel: int = 3
    pool_last: bool = False
    fusion: str = "none"
    reduction: int = 4
    flag_one: bool = False
    length_mask: str = "none"
    spec_augment: str = "after_bn0"
    classes: int = 0
    dropout: float = 0.2
    fc_dropout: float = 0.5
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *views N F"] | Sound, train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Any]]:
        sound = as_sound(x)
        flag = partial(self.make_rng, "augment") if train and self.flag_one else None
        longer = fusion.longer_rows(self.fusion, sound, flag)
        x, frames = self._fit(sound)
        hidden = frames if self.length_mask == "every_layer" else None
        aux = {}
        if train and self.spec_augment == "before_bn0":
            # BLAT's stripes are of 0 dB: not silent, but louder than most sounds.
            x = augment.spec_augment(self.make_rng("augment"), x)
        # Statistics over all views together.
        x = aux["bn0"] = _norm(x, _seen(hidden, 0, x.shape[1]), train, "bn0")
        if self.fusion.endswith("1d"):
            x = fusion.fuse_mels(self._fusion(), x, longer, train)
        if train and self.spec_augment == "after_bn0":
            # Zeros are of average loudness here.
            x = augment.spec_augment(self.make_rng("augment"), x)
        views = x
        if self.fusion == "channel_map":
            x = x.transpose(0, 2, 3, 1)
        else:
            x = (x[:, 0] if x.ndim == 4 else x)[..., None]
        x = _hide(x, _seen(hidden, 0, x.shape[1]))
        block = layers.rematerialised(_Block, self.remat)
        halvings = 0
        for i, width in enumerate(self.widths, 1):
            seen = _seen(hidden, halvings, x.shape[1])
            x = block(
                width, self.convs, self.kernel, self.dtype, name=f"conv_block{i}"
            )(x, seen, train)
            if i <= self._pools():
                halvings += 1
                x = nn.avg_pool(x, (2, 2), (2, 2))
                x = _hide(x, _seen(hidden, halvings, x.shape[1]))
            aux[f"conv_block{i}"] = x
            if i == 1 and self.fusion.endswith("2d"):
                x = self._fuse_maps(x, views[:, 1:], longer, train)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        seen = _seen(frames, halvings, x.shape[1])
        return self._read(x, seen, train, aux), aux

    def _pools(self) -> int:
        """How often time and frequency are halved."""
        return len(self.widths) - (not self.pool_last)

    def _fit(self, sound: Sound) -> tuple[Any, Any]:
        """The mel, and the frames of its clips where they are told apart.

        Errors: ValueError when the mel would be halved away.
        """
        mel, least = sound.mel, 2 ** self._pools()
        masked = self.length_mask != "none" and sound.frames is not None
        frames = jnp.asarray(sound.frames) if masked else None
        size, mels = mel.shape[-2:]
        if mels < least:
            raise ValueError(f"{mels} mel bins; this PANN takes {least} or more")
        if size >= least:
            return mel, frames
        if self.length_mask == "none":
            raise ValueError(f"clips of {size} frames; this PANN takes {least} or more")
        if frames is None:
            frames = jnp.full(mel.shape[:1], size, jnp.int32)
        missing = ((0, 0), (0, least - size), (0, 0))
        return jnp.pad(mel, missing, constant_values=FLOOR_DB), frames

    def _fuse_maps(
        self,
        whole: Float[Array, "B n f C"],
        views: Float[Array, "B v N F"],
        longer: Any,
        train: bool,
    ) -> Float[Array, "B n f C"]:
        """2d fusion after the first block: the windows, a sixth as long each."""
        batch, count, frames, mels = views.shape
        local = nn.Conv(
            whole.shape[-1],
            (5, 5),
            (6, 2),
            padding=((2, 2), (2, 2)),
            dtype=self.dtype,
            kernel_init=layers.torch_init,
            name="local_conv",
        )(views.reshape(-1, frames, mels, 1))
        rows = jnp.repeat(longer, count)
        local = nn.relu(layers.BatchNorm(name="local_norm")(local, train, rows))
        # 3 x 167 steps of 10 s are one more than the 500 of the whole.
        local = local.reshape(batch, -1, *local.shape[2:])[:, : whole.shape[1]]
        return self._fusion()(whole, local, longer, train)

    def _fusion(self) -> nn.Module:
        kind = layers.rematerialised(fusion.Fusion, self.remat, (4,))
        return kind(self.fusion, self.reduction, self.dtype, name="fusion")

    def _read(
        self, x: Float[Array, "B n f C"], seen: Any, train: bool, aux: dict[str, Any]
    ) -> Float[Array, "B D"]:
        """The embedding; positions in time and the tags go to `aux`."""
        # float32 at least, whatever `dtype` is.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        time = aux["time"] = x.mean(2, dtype=wide)

        def drop(y: jax.Array) -> jax.Array:
            return nn.Dropout(self.fc_dropout, deterministic=not train)(y)

        fc1 = nn.Dense(
            self.widths[-1], dtype=self.dtype, kernel_init=_xavier, name="fc1"
        )

        def top(y: jax.Array) -> jax.Array:
            return nn.relu(fc1(y)).astype(wide)

        near = ((3,), (1,), ((1, 1),))
        aux["fine_grained"] = top(nn.max_pool(time, *near) + nn.avg_pool(time, *near))
        if seen is None:
            pooled = time.max(1) + time.mean(1)
        else:
            aux["steps"] = seen.sum(1)
            loudest = jnp.where(seen[..., None], time, -jnp.inf).max(1)
            pooled = loudest + layers.mean_over(time, seen)
        x = top(drop(pooled))
        if self.classes:
            logits = nn.Dense(self.classes, kernel_init=_xavier, name="tag")(x)
            aux["clipwise"] = nn.sigmoid(logits)
        return drop(x)


DEFAULTS = defaults(_Pann)


def tower(
    options: Mapping[str, Any],
    *,
    dtype: str = "float32",
    remat: str = "none",
    patch_drop: float = 0.0,
    frequency_drop: float = 0.0,
) -> Tower:
    """PANN; Cnn14 by default, Cnn10 and Cnn6 are rows of `zoo.PANN_SIZES`.

    Input log-mel in dB [B, N, F]; with `fusion` four views of it [B, 4, N, F] and
    `Sound.longer`. In order: batch norm of every mel bin; a block for each of `widths`:
    `convs` convolutions of `kernel` x `kernel` without bias, each with batch norm and
    ReLU, then 2 x 2 average pooling (in the last block with `pool_last` only) and
    `dropout`; mean over frequency; maximum plus mean over time; `fc_dropout`, a Linear
    layer and ReLU, `fc_dropout`. Embedding float32 [B, D], D = widths[-1].

    fusion: one of `fusion.TYPES`. 1d mixes mels, 2d the maps after the first block,
    both in rows of longer clips only; `reduction` and `flag_one` (in training, a batch
    without longer clips has one flagged) as in HTSAT.
    spec_augment: "before_bn0" (BLAT), "after_bn0" (LAION-CLAP) or "none" (MS-CLAP).
    length_mask: what becomes of the padding behind `Sound.frames`. "none": it counts.
    "pool": it does not count in the maximum and the mean over time, but convolutions
    see it (BLAT's batches). "every_layer": it has no influence at all, nor on batch
    statistics, so that a clip comes out as it does alone, unpadded (what BLAT gives
    for single clips).
    aux, with n time steps (31 for 10 s): "time" [B, n, D] (mean over frequency),
    "fine_grained" [B, n, D] (LAION-CLAP's: neighbours in time, then the last layer;
    the reference repeats it), with frames given and masked "steps" int32 [B], how many
    of n belong to the clip; with `classes` > 0 "clipwise" [B, classes], probabilities
    of sound events. "bn0" and "conv_block1" to the last, [B, N, F, C] after pooling,
    serve comparisons.
    Errors: ValueError on unknown options, mels that are too small to be halved so
    often (without a mask), views where there is no fusion, fusion without views, and
    on `patch_drop` and `frequency_drop`, which convolutions cannot do.
    """
    drop.refuse(
        "pann",
        "its convolutions run over a whole mel",
        patch_drop=patch_drop,
        frequency_drop=frequency_drop,
    )
    for name, known in (
        ("length_mask", LENGTH_MASKS),
        ("spec_augment", SPEC_AUGMENTS),
    ):
        if options[name] not in known:
            raise ValueError(config_lib.unknown(name, options[name], known))
    fusion.check(options["fusion"])
    if options["fusion"] != "none" and options["length_mask"] != "none":
        raise ValueError(
            f"PANN with fusion {options['fusion']} takes clips of one length; got "
            f"length_mask {options['length_mask']}"
        )
    return from_linen(_Pann(**options, dtype=jnp.dtype(dtype), remat=remat))
