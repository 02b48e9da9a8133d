"""Labels as numbers: checks of tags, rows of a batch, batches of a loader."""

import numpy as np
import pytest

from clap_jax.audio.mel import FRONTENDS
from clap_jax.pipeline import labels, loader
from clap_jax.pipeline.ops import Prepare
from clap_jax.pipeline.synthetic import SyntheticSource

NAMES = ("cat", "dog", "rain")


def test_tags_become_a_row_of_yes_and_no():
    found = labels.multi_hot("x", "mine", [["dog"], ["rain", "cat"]], NAMES)
    np.testing.assert_array_equal(found, [[0, 1, 0], [1, 0, 1]])


@pytest.mark.parametrize(
    ("tags", "names", "one_each", "message"),
    [
        ([["dog"], []], NAMES, False, "x: clip 1 of source 'mine' has no tag"),
        ([["dg"]], NAMES, False, "clip 0 .* unknown label 'dg' .did you mean 'dog'"),
        ([["dog", "cat"]], NAMES, True, "has the tags dog, cat, expected one"),
        ([["dog"]], ("dog", "dog"), False, "x: labels repeat: dog"),
    ],
)
def test_tags_that_cannot_be(tags, names, one_each, message):
    with pytest.raises(ValueError, match=message):
        labels.multi_hot("x", "mine", tags, names, one_each)


def test_a_batch_has_the_labels_of_its_clips_in_the_columns_of_their_head():
    """Two sources, two heads; the sounds and their order are those of any other run."""
    sources = [SyntheticSource("kinds", 26, seed) for seed in (0, 1)]
    for source, name in zip(sources, ("first", "second")):
        source.name = name
    names = labels.class_names(labels.tags_of(sources[0]))
    columns = [{n: i + shift for i, n in enumerate(names)} for shift in (0, 26)]
    targets = labels.Targets([(1, columns[0]), (0, columns[1])], 52)
    prepare = Prepare(FRONTENDS["small_16k"], mel="device")
    dataset = loader.train_dataset(
        [(source, 0.0) for source in sources],
        prepare,
        None,
        batch_size=8,
        seed=0,
        threads=0,
        targets=targets,
    )
    batch = next(iter(dataset))
    fields = loader.batch_fields(prepare, 0, targets)
    assert {k: (v.shape[1:], v.dtype) for k, v in batch.items()} == fields
    assert "ids" not in batch
    order = dataset.batches.order
    for row in range(8):
        which, index = order(row)
        (tag,) = sources[which].tags(index)
        assert batch["head"][row] == 1 - which
        assert np.flatnonzero(batch["target"][row]) == [columns[which][tag]]
