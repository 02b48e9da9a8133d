"""What guides a captioner of the clips of a source: their labels, or a tagger's."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from clap_jax.pipeline import labels, tag_files
from clap_jax.pipeline import tags as tags_lib
from clap_jax.pipeline.answers import Answers
from clap_jax.pipeline.tags import TagRule
from clap_jax.text.answers import Writer, task

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source

SOURCE, NONE = "source", "none"
"""Where tags come from, if not from files."""


class Guides:
    """Tags of clips as a captioner takes them, float32 [C].

    origin: "source", the labels that clips have; "none"; or files of probabilities
    (`tag_files`). names: the C tags, in order; () to take those that there are (of the
    files, or of `sources`, sorted). rule: which of a file's tags are taken. soft: as
    their probabilities, and not as 1.
    A clip without tags, or that is in no file, has none: zeros. A label that is no tag
    is left out. Raises ValueError for files that cannot be read, or lack a tag.
    """

    def __init__(
        self,
        origin: str | Sequence[str],
        names: Sequence[str] = (),
        sources: Sequence["Source"] = (),
        *,
        rule: TagRule = TagRule(),
        soft: bool = False,
    ):
        self._table = None
        if origin not in (SOURCE, NONE):
            self._table = tag_files.read(origin)
            names = tuple(names) or self._table.names
            missing = [name for name in names if name not in self._table.names]
            if missing:
                raise ValueError(
                    f"{origin} has no probabilities of {len(missing)} tags that guide "
                    f"the captioner: {', '.join(missing[:3])}"
                )
            self._order = [self._table.names.index(name) for name in names]
        elif not names and origin == SOURCE:
            names = labels.class_names(
                [own for source in sources for own in labels.tags_of(source)]
            )
        self.names: tuple[str, ...] = tuple(names)
        self._column = {name: column for column, name in enumerate(self.names)}
        self._is_none, self._rule, self._soft = origin == NONE, rule, soft

    def of(self, source: "Source", clip: int) -> np.ndarray:
        """What guides the captioner of a clip, float32 [C]."""
        if self._table is not None:
            found = self.by_id(source.id(clip))
            return np.zeros(len(self.names), np.float32) if found is None else found
        row = np.zeros(len(self.names), np.float32)
        if self._is_none:
            return row
        own = (self._column.get(tag) for tag in source.tags(clip))
        row[[column for column in own if column is not None]] = 1
        return row

    def by_id(self, clip: str) -> np.ndarray | None:
        """What files say of a clip, float32 [C]; None where it is in none of them."""
        found = self._table.of(clip)
        if found is None:
            return None
        return tags_lib.guide(found[self._order], self._rule, soft=self._soft)

    def report(self, source: "Source") -> None:
        """Log how many clips of a source have tags, and which labels are no tags.

        Raises ValueError where files have no clip of the source at all.
        """
        if self._is_none:
            return
        clips = len(source)
        if self._table is not None:
            known = sum(source.id(i) in self._table.rows for i in range(clips))
            if not known:
                theirs, own = next(iter(self._table.rows)), source.id(0)
                raise ValueError(
                    f"no clip of source '{source.name}' is in the file of tag "
                    f"probabilities: its first is {own!r}, the file's {theirs!r}"
                )
            logging.info(
                "%s: %d of %d clips are in the file of tag probabilities; the others "
                "have no tag",
                source.name,
                known,
                clips,
            )
            return
        tags = labels.tags_of(source)
        strange = Counter(tag for own in tags for tag in own if tag not in self._column)
        logging.info(
            "%s: %d of %d clips have tags, of %d",
            source.name,
            sum(any(tag in self._column for tag in own) for own in tags),
            clips,
            len(self.names),
        )
        if strange:
            named = ", ".join(f"{tag} ({n})" for tag, n in strange.most_common(5))
            logging.warning(
                "%s: %d labels are no tags that the captioner knows, and are left out: %s",
                source.name,
                len(strange),
                named,
            )


class Captioned(Answers):
    """What a training batch says of captions: as `Answers` without a prompt.

    sources: how many. guides: of a captioner that tags guide: a row then has `tags`
    float32 [C] too. drop, untagged: the shares of tags that are left out, and of clips
    that lose all of theirs.
    """

    def __init__(
        self,
        sources: int,
        writer: Writer | None,
        length: int,
        guides: Guides | None = None,
        *,
        tags: int = 0,
        drop: float = 0.0,
        untagged: float = 0.0,
    ):
        super().__init__(
            [task("caption")._replace(prompts=("",))] * sources, writer, length
        )
        self._guides, self._tags = guides, tags
        self._drop, self._untagged = drop, untagged

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """As of `Answers`, and the tags."""
        tags = {"tags": ((self._tags,), np.dtype(np.float32))} if self._tags else {}
        return super().fields | tags

    def beside(
        self, source: "Source", clip: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The tags of a clip, some of them dropped."""
        if self._guides is None:
            return {}
        tags = self._guides.of(source, clip)
        if not (self._drop or self._untagged):
            return {"tags": tags}
        dropped = tags_lib.drop(tags[None], rng, each=self._drop, whole=self._untagged)
        return {"tags": dropped[0]}
