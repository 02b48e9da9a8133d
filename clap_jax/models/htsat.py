"""HTSAT, the audio tower of LAION-CLAP: a Swin transformer over a folded log-mel.

Source: Chen et al. 2022 (arXiv 2202.00874) as configured in LAION-AI/CLAP,
`clap_module/htsat.py`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from clap_jax import config as config_lib
from clap_jax.audio import augment
from clap_jax.audio.mel import VIEWS
from clap_jax.models import drop, layers, swin
from clap_jax.models import fusion as fusion_lib
from clap_jax.models.tower import Sound, Tower, as_sound, defaults, from_linen

# Torch's bicubic kernel. Keys' classical -0.5, which jax.image uses, is another curve.
BICUBIC_A = -0.75

LONG_CLIPS = ("error", "msclap")

# MS-CLAP's windows of a clip that is too long for one image.
WINDOW_FRAMES, WINDOW_STEP_FRAMES = 689, 344


@functools.lru_cache
def bicubic_matrix(out: int, size: int) -> Float32[np.ndarray, "out size"]:
    """The linear map of a bicubic resize from `size` to `out` samples.

    As torch's `interpolate(mode="bicubic", align_corners=True)`: first and last
    samples are kept, a = -0.75, samples beyond an edge repeat the edge. Places are
    found in float32, as torch finds them: late in a clip they are a few 1e-5 of a frame
    off, which shows (4e-5) where mels are rough. Rows sum to 1.
    """
    a, one = np.float32(BICUBIC_A), np.float32(1)

    def near(x: np.ndarray) -> np.ndarray:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: np.ndarray) -> np.ndarray:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    step = np.float32(size - 1) / np.float32(max(out - 1, 1))
    place = step * np.arange(out, dtype=np.float32)
    left = np.floor(place).astype(int)
    x = place - left.astype(np.float32)
    weights = (far(x + one), near(x), near(one - x), far(one - x + one))
    matrix = np.zeros((out, size), np.float32)
    for tap, weight in zip((-1, 0, 1, 2), weights, strict=True):
        column = np.clip(left + tap, 0, size - 1)
        np.add.at(matrix, (np.arange(out), column), weight)
    return matrix


def fold(x: Float[Array, "B N F"], image: int) -> Float[Array, "B I I"]:
    """Log-mel to a square image: `image // F` stretches of time above one another.

    Frames are resized to fill the image (1001 to 1024 for 10 s). Row F * r + f, column
    c of the image is mel f of frame image * r + c. Errors: ValueError when the frames
    are more than the image holds.
    """
    batch, frames, mels = x.shape
    if image % mels:
        raise ValueError(f"{mels} mel bins do not divide the image size {image}")
    rows = image // mels
    if frames > rows * image:
        raise ValueError(
            f"{frames} frames are more than the {rows * image} that HTSAT takes; "
            "cut the clip"
        )
    if frames < rows * image:
        matrix = bicubic_matrix(rows * image, frames)
        x = jnp.einsum("mn,bnf->bmf", matrix, x, precision="highest")
    x = x.reshape(batch, rows, image, mels).transpose(0, 1, 3, 2)
    return x.reshape(batch, image, image)


def windows(x: Float[Array, "B N F"]) -> Float[Array, "B W n F"]:
    """Cut long mels as MS-CLAP does: 689 frames every 344.

    Their `range(0, N - 689 - 1, 344)` leaves out a last window that would end on the
    last frame, or one before it, and with it the tail: 14 s, 1930 frames, are heard up
    to frame 1721.
    """
    starts = range(0, x.shape[1] - WINDOW_FRAMES - 1, WINDOW_STEP_FRAMES)
    return jnp.stack([x[:, i : i + WINDOW_FRAMES] for i in starts], axis=1)


class _Htsat(nn.Module):
    """See `tower`."""

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 8
    patch: int = 4
    image: int = 256
    mlp_ratio: float = 4.0
    eps: float = 1e-5
    drop_path: float = 0.1
    spec_augment: bool = True
    classes: int = 0
    fusion: str = "none"
    reduction: int = 4
    flag_one: bool = False
    long_clips: str = "error"
    dtype: Any = jnp.float32
    remat: str = "none"
    patch_drop: float = 0.0
    frequency_drop: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *views N F"] | Sound, train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Any]]:
        sound = as_sound(x)
        flag = (
            functools.partial(self.make_rng, "augment")
            if train and self.flag_one
            else None
        )
        longer = fusion_lib.longer_rows(self.fusion, sound, flag)
        aux = {}
        # Statistics over all views together.
        x = aux["bn0"] = layers.BatchNorm(name="bn0")(sound.mel, train)
        if self.fusion.endswith("1d"):
            x = fusion_lib.fuse_mels(self._fusion(), x, longer, train)
        if train and self.spec_augment:
            # After bn0, so that the stripes, filled with 0, are of average loudness.
            x = augment.spec_augment(self.make_rng("augment"), x)
        batch, mels = x.shape[0], x.shape[-1]
        capacity = self.image // mels * self.image
        # In training the front end crops, as the reference does.
        cut = self.long_clips == "msclap" and not train and x.shape[1] > capacity
        if x.ndim == 3 and cut:
            x = windows(x).reshape(-1, WINDOW_FRAMES, mels)
        outputs = {}
        x = self._patch_embed(x, longer, train)
        if train:
            x = self._drop(x)
        x = layers.layer_norm(self.eps, self.dtype, "norm_patch", self.remat)(x)
        outputs["patch_embed"] = _flat(x)
        x = self._stages(x, train, outputs)
        embedding = self._read(x, mels, outputs)
        if embedding.shape[0] != batch:
            embedding, outputs = jax.tree.map(
                lambda y: y.reshape(batch, -1, *y.shape[1:]).mean(1),
                (embedding, outputs),
            )
        return embedding, aux | outputs

    def _drop(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Leave out columns of the map (time), and rows (half spectra)."""
        for axis, name in ((2, "patch_drop"), (1, "frequency_drop")):
            # A group is what one token of the last map stands for.
            groups = x.shape[axis] >> (len(self.depths) - 1)
            kept = drop.groups_kept(name, getattr(self, name), groups)
            if kept < groups:
                key = self.make_rng("augment")
                index = drop.subset(key, x.shape[0], groups, kept)
                x = drop.take_groups(x, index, axis, groups)
        return x

    def _fusion(self) -> fusion_lib.Fusion:
        kind = layers.rematerialised(fusion_lib.Fusion, self.remat, (4,))
        return kind(self.fusion, self.reduction, self.dtype, name="fusion")

    def _patch_embed(
        self, x: Float[Array, "B *views N F"], longer: Any, train: bool
    ) -> Float[Array, "B h w C"]:
        """Fold, cut into patches, project; 2d fusion of the patches."""
        size = (self.patch, self.patch)
        project = self._project("patch")
        if x.ndim == 3:
            return project(layers.patches(fold(x, self.image)[..., None], size))
        batch, _, *shape = x.shape
        x = fold(x.reshape(-1, *shape), self.image)
        x = x.reshape(batch, VIEWS, self.image, self.image)
        if self.fusion == "channel_map":
            return project(layers.patches(x.transpose(0, 2, 3, 1), size))
        whole = project(layers.patches(x[:, :1].transpose(0, 2, 3, 1), size))
        # Patches three times as wide, so that three windows lie side by side where
        # the whole clip lies: 3 x 21 columns, and one of zeros, of 64.
        wide = 3 * self.patch
        local = x[:, 1:, :, : self.image // wide * wide]
        local = local.reshape(-1, self.image, local.shape[-1], 1)
        local = self._project("patch_local")(layers.patches(local, (self.patch, wide)))
        _, rows, columns, channels = local.shape
        local = local.reshape(batch, VIEWS - 1, rows, columns, channels)
        local = local.transpose(0, 2, 1, 3, 4).reshape(batch, rows, -1, channels)
        missing = whole.shape[2] - local.shape[2]
        local = jnp.pad(local, ((0, 0), (0, 0), (0, missing), (0, 0)))
        return self._fusion()(whole, local, longer, train)

    def _project(self, name: str) -> nn.Dense:
        return nn.Dense(
            self.width, dtype=self.dtype, kernel_init=layers.torch_init, name=name
        )

    def _read(
        self, x: Float[Array, "B h w C"], mels: int, aux: dict[str, Any]
    ) -> Float[Array, "B D"]:
        """The embedding; tokens, positions in time and the tags go to `aux`."""
        x = layers.layer_norm(self.eps, self.dtype, "norm", self.remat)(x)
        tokens = aux["tokens"] = _flat(x)
        if x.shape[1] != self._side(len(self.depths) - 1):
            # Without all of the rows there is no order of time and frequency.
            return tokens.mean(1, dtype=jnp.float32)
        # The rows of the map are stretches of time, each of `bins` frequencies.
        stretches = self.image // mels
        batch, rows, columns, channels = x.shape
        if rows % stretches:
            raise ValueError(
                f"the last map of {rows} rows does not hold {stretches} stretches of "
                f"time, image {self.image} / {mels} mel bins; choose fewer depths"
            )
        x = x.reshape(batch, stretches, rows // stretches, columns, channels)
        x = x.transpose(0, 2, 1, 3, 4)
        x = x.reshape(batch, rows // stretches, stretches * columns, channels)
        aux["fine_grained"] = x.mean(1, dtype=jnp.float32)
        if self.classes:
            self._tag(x, aux)
        return tokens.mean(1, dtype=jnp.float32)

    def _stages(self, x: Any, train: bool, aux: dict[str, Any]) -> Any:
        merge = layers.rematerialised(swin.Merge, self.remat, ())
        # np.linspace(0, drop_path): deeper blocks are dropped more often.
        rates = iter(np.linspace(0.0, self.drop_path, sum(self.depths)))
        for i, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            table_side, window, shift = self._geometry(i, x.shape[1:3])
            for j in range(depth):
                x = swin.Block(
                    heads=heads,
                    table_side=table_side,
                    window=window,
                    shift=shift if j % 2 else (0, 0),
                    mlp_ratio=self.mlp_ratio,
                    drop_path=float(next(rates)),
                    eps=self.eps,
                    dtype=self.dtype,
                    remat=self.remat,
                    name=f"stage{i}_block{j}",
                )(x, train)
            if i < len(self.depths) - 1:
                x = merge(self.eps, self.dtype, name=f"stage{i}_merge")(x)
            aux[f"stage{i}"] = _flat(x)
        return x

    def _side(self, stage: int) -> int:
        """Rows, and columns, of a whole map."""
        return self.image // self.patch >> stage

    def _geometry(self, stage: int, shape: Any) -> tuple[int, swin.Pair, swin.Pair]:
        """Side of the bias table, window and shift for a map of `shape`."""
        # A map of one window has nothing to shift, and a smaller one a smaller window.
        side = self._side(stage)
        table = min(side, self.window)
        window = tuple(
            table if size == side else _divisor(size, table) for size in shape
        )
        shift = tuple(own // 2 if size > own else 0 for size, own in zip(shape, window))
        return table, window, shift

    def _tag(self, x: Float[Array, "B f t C"], aux: dict[str, Any]) -> None:
        """The token-semantic head of AudioSet training."""
        logits = nn.Conv(
            self.classes,
            (x.shape[1], 3),
            padding=((0, 0), (1, 1)),
            kernel_init=layers.torch_init,
            name="tag",
        )(x.astype(jnp.float32))[:, 0]
        aux["framewise"] = nn.sigmoid(logits)
        aux["clipwise"] = nn.sigmoid(logits.mean(1))


def _divisor(size: int, most: int) -> int:
    """The largest divisor of `size` that is not above `most`."""
    return max(i for i in range(1, most + 1) if size % i == 0)


def _flat(x: Float[Array, "B H W C"]) -> Float[Array, "B L C"]:
    return x.reshape(x.shape[0], -1, x.shape[-1])


DEFAULTS = defaults(_Htsat)


def tower(
    options: Mapping[str, Any],
    *,
    dtype: str = "float32",
    remat: str = "none",
    patch_drop: float = 0.0,
    frequency_drop: float = 0.0,
) -> Tower:
    """HTSAT; tiny, base and large are width 96, 128, 256 (see `zoo`).

    Input a `Sound` or its mel: log-mel in dB [B, N, F], N at most (image / F) * image
    (1024). In order: batch norm of every mel bin; in training SpecAugment (if
    `spec_augment`), always on in the reference's training; bicubic resize and `fold` to
    image x image; patches; four Swin stages with stochastic depth from 0 to
    `drop_path`; LayerNorm; mean.

    fusion: one of `fusion.TYPES`. Other than "none" the mel is [B, 4, N, F], the whole
        clip and three windows of it, and `Sound.longer` bool [B] says in which rows the
        windows are mixed in ("channel_map": always); the others hear the whole clip
        only. 1d mixes mels, 2d patches.
    reduction: of the channels inside AFF and iAFF.
    flag_one: in training, a batch with no longer clip gets one flagged at random, as in
        LAION-CLAP's training.
    long_clips: "error", or "msclap": outside training a mel of more than 1024 frames is
        cut by `windows`, and every output but "bn0" is the mean over the windows.
    patch_drop: the share of columns of the map of patches that is left out in training
        (after fusion, before the first norm), another choice for every clip: columns
        are time, in all stretches at once. They leave in groups of what one token of
        the last map covers (8 of 64 columns: 32 frames in each of 4 stretches), so that
        every stage has whole tokens, and the share rounds to these: 0.1 leaves 56
        columns, 0.25 leaves 48, 0.5 leaves 32. Groups that stay keep their order and
        move together; a window is the largest that divides its map, up to `window`.
    frequency_drop: likewise of rows. A group is half of the spectrum in one stretch of
        time, because the last map has two rows a stretch: bands thinner than that, as
        PaSST drops them, do not exist in this tower. aux has no "fine_grained" then.
    remat: see `layers.rematerialised`; other than with "none" the inside of a block
        exists for one row of windows at a time (see `swin.Block`).

    Embedding [B, D], D = 8 * width. aux, with t = 32 positions for a full clip:
    "tokens" [B, 64, D] (final LayerNorm), "fine_grained" [B, t, D] (mean over
    frequency); with `classes` > 0 also "framewise" [B, t, classes] and "clipwise"
    [B, classes], probabilities of sound events. The reference repeats fine_grained and
    framewise 32 times along time. "bn0" (the mel's shape), "patch_embed" and "stage0"
    to "stage3" [B, L, C] (after down-sampling) serve comparisons.
    Errors: ValueError on an unknown fusion or long_clips, a clip that is too long, a
    mel of another shape, a missing `longer`, sizes that do not divide, shares that
    leave nothing, and a `frequency_drop` together with `classes`, which need all of it.
    """
    fusion_lib.check(options["fusion"])
    if options["long_clips"] not in LONG_CLIPS:
        raise ValueError(
            config_lib.unknown("long_clips", options["long_clips"], LONG_CLIPS)
        )
    if frequency_drop and options["classes"]:
        raise ValueError(
            f"train.frequency_drop is {frequency_drop}, but tags of HTSAT "
            f"({options['classes']} classes) need all frequencies; set it to 0"
        )
    groups = options["image"] // options["patch"] >> (len(options["depths"]) - 1)
    drop.groups_kept("patch_drop", patch_drop, groups)
    drop.groups_kept("frequency_drop", frequency_drop, groups)
    module = _Htsat(
        **options,
        dtype=jnp.dtype(dtype),
        remat=remat,
        patch_drop=patch_drop,
        frequency_drop=frequency_drop,
    )
    return from_linen(module)
