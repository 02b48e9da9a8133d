"""Contrastive language-audio pretraining in JAX: train, evaluate, convert, use."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Clap", "load"]

if TYPE_CHECKING:
    from clap_jax.api import Clap, load


def __getattr__(name: str) -> Any:
    """`clap_jax.load` and `clap_jax.Clap`, imported at first use (jax is slow to)."""
    if name in __all__:
        from clap_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'clap_jax' has no attribute {name!r}")
