"""The BERT family of text encoders: BERT, RoBERTa and small ones trained from scratch.

Sources: Devlin et al. 2018 (arXiv 1810.04805), Liu et al. 2019 (arXiv 1907.11692).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from clap_jax.models import drop, layers
from clap_jax.models.tower import Tower, defaults, from_linen


class _Bert(nn.Module):
    """See `tower`."""

    vocab_size: int
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    # roberta counts visible tokens from pad_id + 1; bert counts from 0.
    positions: str = "roberta"
    position_table: int = 514
    pad_id: int = 1
    types: int = 1
    norm: str = "post"
    eps: float = 1e-5
    pool: str = "pooler"
    dropout: float = 0.1
    dtype: Any = jnp.float32
    remat: str = "none"
    token_drop: float = 0.0
    full_length: int = 0

    @nn.compact
    def __call__(
        self, x: tuple[Int[Array, "B L"], Bool[Array, "B L"]], train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Any]]:
        ids, mask = x
        positions = self._positions(mask)
        if train and self.token_drop:
            kept = drop.tokens_kept(self.token_drop, ids.shape[1], self.full_length)
            key, last = self.make_rng("augment"), drop.last_true(mask)
            index = drop.token_index(key, mask, last, kept)
            ids, mask, positions = drop.take_tokens(index, ids, mask, positions)
        hidden = self._embed(ids, positions, train)
        bias = jnp.where(mask, 0.0, layers.MASKED)[:, None, None, :]
        block = layers.rematerialised(layers.Block, self.remat)
        for i in range(self.depth):
            hidden = block(
                heads=self.heads,
                mlp=self.mlp,
                norm=self.norm,
                eps=self.eps,
                dropout=self.dropout,
                dtype=self.dtype,
                name=f"block{i}",
            )(hidden, bias, train)
        if self.norm == "pre":
            hidden = layers.layer_norm(self.eps, self.dtype, "norm")(hidden)
        return self._pool(hidden, mask), {"hidden": hidden}

    def _positions(self, mask: Bool[Array, "B L"]) -> Int[Array, "#B L"]:
        """Rows of the position table."""
        length = mask.shape[1]
        if self.positions == "roberta":
            seen = mask.astype(jnp.int32)
            position = jnp.cumsum(seen, axis=1) * seen + self.pad_id
            longest = self.position_table - self.pad_id - 1
        elif self.positions == "bert":
            position = jnp.arange(length)[None]
            longest = self.position_table
        else:
            raise ValueError(
                f"positions must be roberta or bert, not {self.positions!r}"
            )
        if length > longest:
            raise ValueError(f"texts of {length} tokens; this tower takes {longest}")
        return position

    def _embed(self, ids: Any, positions: Any, train: bool) -> Any:
        def table(rows: int, name: str) -> nn.Embed:
            return nn.Embed(
                rows, self.width, embedding_init=layers.transformer_init, name=name
            )

        x = table(self.vocab_size, "tokens")(ids)
        x = x + table(self.position_table, "positions")(positions)
        # Every text is of type 0; the table is kept because published weights have it.
        types = self.param("types", layers.transformer_init, (self.types, self.width))
        x = layers.layer_norm(self.eps, self.dtype, "norm_embed")(x + types[0])
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def _pool(self, hidden: Any, mask: Any) -> Any:
        if self.pool == "mean":
            return layers.mean_over(hidden, mask)
        if self.pool == "pooler":
            dense = nn.Dense(
                self.width,
                dtype=self.dtype,
                kernel_init=layers.transformer_init,
                name="pooler",
            )
            return jnp.tanh(dense(hidden[:, 0]))
        if self.pool == "first":
            return hidden[:, 0]
        raise ValueError(f"pool must be pooler, first or mean, not {self.pool!r}")


DEFAULTS = defaults(_Bert)


def tower(
    options: Mapping[str, Any],
    vocab_size: int,
    *,
    dtype: str = "float32",
    remat: str = "none",
    token_drop: float = 0.0,
    full_length: int = 0,
) -> Tower:
    """A BERT-like encoder of token ids; `options` override `DEFAULTS`.

    Input `(ids i32 [B, L], mask bool [B, L])`, true where a token is; what stands
    under a false mask has no influence. Embedding [B, D] is the tanh pooler on the
    first token (`pool="pooler"`), the first token itself (`"first"`) or the mean of
    visible tokens (`"mean"`);
    `aux["hidden"]` [B, L, D] is the last layer. `norm="post"` is the published
    arrangement, `"pre"` one that trains from scratch at higher rates. `eps` is 1e-5
    for RoBERTa, 1e-12 for BERT. In training, `dropout` applies to the embeddings,
    the attention weights and both residual branches.
    token_drop: the share of tokens, of `full_length`, that is left out in training, see
    `drop.tokens_kept`. The first and the last always stay, positions are those of the
    whole text, and `aux["hidden"]` has fewer of them.
    Errors: ValueError on texts longer than the position table, and when too few tokens
    would stay.
    """
    return from_linen(
        _Bert(
            vocab_size,
            **options,
            dtype=jnp.dtype(dtype),
            remat=remat,
            token_drop=token_drop,
            full_length=full_length,
        )
    )
