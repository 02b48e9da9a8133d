"""Contrastive language-audio pretraining in JAX: train, evaluate, convert, use."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "CaptionWriter",
    "Clap",
    "convert",
    "dropin",
    "embed",
    "export",
    "load",
    "mteb",
]

_MODULES = ("convert", "dropin", "embed", "export", "mteb")

if TYPE_CHECKING:
    from clap_jax import convert, dropin, embed, export, mteb
    from clap_jax.api import CaptionWriter, Clap, load


def __getattr__(name: str) -> Any:
    """Everything in `__all__`, imported at first use (jax is slow to)."""
    if name in _MODULES:
        return importlib.import_module(f"clap_jax.{name}")
    if name in __all__:
        from clap_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'clap_jax' has no attribute {name!r}")
