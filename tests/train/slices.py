"""Where libtpu describes TPU slices."""

import platform
import sys

import pytest

needs_libtpu = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="libtpu exists for Linux on x86-64 only",
)


def on_slice(*values, **options):
    """A case of a parametrized test that needs libtpu."""
    return pytest.param(*values, marks=needs_libtpu, **options)
