"""Getting, packing and captioning data."""
