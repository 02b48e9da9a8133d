"""BART's encoder as a text tower.

Sources: Lewis et al. 2019 (arXiv 1910.13461); Hugging Face's `modeling_bart.py`;
LAION-AI/CLAP `clap_module/model.py`, which keeps a whole BART for it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from clap_jax import config as config_lib
from clap_jax.models import drop, layers
from clap_jax.models.tower import Tower, defaults, from_linen

POOLS = ("mean", "mean_all")

# The first rows of the position table are never used: in the library that BART was
# trained with, positions were counted from the padding id + 1, which is 2.
POSITION_OFFSET = 2


class _Bart(nn.Module):
    """See `tower`."""

    vocab_size: int
    width: int = 768
    depth: int = 6
    heads: int = 12
    mlp: int = 3072
    position_table: int = 1026
    pad_id: int = 1
    eps: float = 1e-5
    dropout: float = 0.1
    pool: str = "mean"
    dtype: Any = jnp.float32
    remat: str = "none"
    token_drop: float = 0.0
    full_length: int = 0

    @nn.compact
    def __call__(
        self, x: tuple[Int[Array, "B L"], Bool[Array, "B L"]], train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Any]]:
        ids, mask = x
        length, longest = ids.shape[1], self.position_table - POSITION_OFFSET
        if length > longest:
            raise ValueError(f"texts of {length} tokens; this tower takes {longest}")
        positions = POSITION_OFFSET + jnp.arange(length)
        if train and self.token_drop:
            kept = drop.tokens_kept(self.token_drop, length, self.full_length)
            key, last = self.make_rng("augment"), drop.last_true(mask)
            index = drop.token_index(key, mask, last, kept)
            ids, mask, positions = drop.take_tokens(index, ids, mask, positions[None])
        table = layers.table(self.position_table, self.width, "positions")
        hidden = layers.table(self.vocab_size, self.width, "tokens")(ids)
        # torch's table learns nothing for its padding id. This only matters where the
        # padding is averaged too.
        padding = (ids == self.pad_id)[..., None]
        hidden = jnp.where(padding, jax.lax.stop_gradient(hidden), hidden)
        hidden = hidden + table(positions)
        hidden = layers.layer_norm(self.eps, self.dtype, "norm_embed")(hidden)
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        bias = jnp.where(mask, 0.0, layers.MASKED)[:, None, None, :]
        block = layers.rematerialised(layers.Block, self.remat)
        for i in range(self.depth):
            hidden = block(
                heads=self.heads,
                mlp=self.mlp,
                norm="post",
                eps=self.eps,
                dropout=self.dropout,
                dtype=self.dtype,
                name=f"block{i}",
            )(hidden, bias, train)
        return self._pool(hidden, mask), {"hidden": hidden}

    def _pool(self, hidden: Any, mask: Any) -> Float[Array, "B D"]:
        if self.pool == "mean":
            return layers.mean_over(hidden, mask)
        if self.pool == "mean_all":
            # LAION-CLAP's mean runs over all 77 positions. Those of the padding, which
            # see the text, weigh as much as those of words, so that a text's embedding
            # depends on how far it is padded.
            return hidden.mean(1, dtype=jnp.float32)
        raise ValueError(config_lib.unknown("pool of bart", self.pool, POOLS))


DEFAULTS = defaults(_Bart)


def tower(
    options: Mapping[str, Any],
    vocab_size: int,
    *,
    dtype: str = "float32",
    remat: str = "none",
    token_drop: float = 0.0,
    full_length: int = 0,
) -> Tower:
    """BART's encoder; `options` override `DEFAULTS`.

    Input `(ids i32 [B, L], mask bool [B, L])`, true where a token is. Blocks are
    post-norm; nothing attends to what is masked, and the vector of `pad_id` has no
    gradient. Embedding [B, D] is the mean of the
    last layer, of visible tokens (`pool="mean"`) or of all positions, padding included,
    as LAION-CLAP has it (`"mean_all"`). aux["hidden"] [B, L, D] is the last layer. In
    training, `dropout` applies to the embeddings, the attention weights and both
    residual branches.
    token_drop: the share of tokens, of `full_length`, that is left out in training, see
    `drop.tokens_kept`. The first and the last always stay, positions are those of the
    whole text, and aux["hidden"] has fewer of them.
    Errors: ValueError on texts longer than the position table, less 2, on unknown
    pools, and when too few tokens would stay.
    """
    return from_linen(
        _Bart(
            vocab_size,
            **options,
            dtype=jnp.dtype(dtype),
            remat=remat,
            token_drop=token_drop,
            full_length=full_length,
        )
    )
