"""Captions made from the labels of clips: `python -m data.caption`."""
