"""Signal processing on numpy or jax.numpy: files, mels, crops, augmentation."""
