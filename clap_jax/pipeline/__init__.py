"""The input pipeline: sources of clips, decoding, captions, batches. No jax in here."""
