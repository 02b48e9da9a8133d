"""The task `caption` from a config: who writes of which clips, and what guides them."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from clap_jax import config as config_lib
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.pipeline import guides as guides_lib
from clap_jax.pipeline.guides import Captioned, Guides
from clap_jax.pipeline.sources import Source
from clap_jax.pipeline.tags import TagRule
from clap_jax.text.answers import Writer
from clap_jax.text.tokenize import Tokenizer


def checked(config: ConfigDict, sources: Sequence[Source]) -> None:
    """Raise ValueError for a clip without a caption to learn from."""
    for source in sources:
        for clip in range(len(source)):
            if not any(text.strip() for text in source.captions(clip)):
                raise ValueError(
                    f"task.name=caption: clip {clip} ({source.id(clip)}) of source "
                    f"'{source.name}' has no caption"
                )


def guided(
    config: ConfigDict, spec: CaptionerSpec, sources: Sequence[Source]
) -> tuple[CaptionerSpec, Guides | None]:
    """`spec` with the tags that guide it, and these tags of clips; None without any.

    A model that knows its tags (`init_from`) keeps them; a new one learns those that
    there are. Logs what clips have. Raises ConfigError where a guided captioner would
    have no tags, and ValueError for files that cannot be read.
    """
    if not spec.is_guided or not sources:  # noise has no tags
        return spec, None
    origin = config_lib.plain(config.task.tags)
    if origin == guides_lib.NONE:
        raise config_lib.ConfigError(
            f"task.tags is 'none', but tags guide {spec.name}: "
            "model_overrides.decoder.options.guide='none' makes one without"
        )
    found = Guides(
        origin,
        spec.tag_names,
        sources,
        rule=TagRule.parse(config.task.tag_rule),
        soft=spec.decoder.options["guide"] == "keyword",
    )
    if not found.names:
        raise config_lib.ConfigError(
            f"tags guide {spec.name}, but no clip has a label: name a column of labels, "
            "set task.tags to a file of tag probabilities, or "
            "model_overrides.decoder.options.guide='none'"
        )
    for source in sources:
        found.report(source)
    return spec.with_tags(found.names), found


def rows(
    config: ConfigDict,
    spec: CaptionerSpec,
    sources: int,
    tokenizer: Tokenizer | None,
    found: Guides | None,
) -> Captioned:
    """What makes the texts and tags of a training batch; without a tokenizer only their
    shapes."""
    return Captioned(
        sources,
        None if tokenizer is None else Writer(tokenizer),
        spec.text_length,
        found,
        tags=spec.decoder.options["tags"] if spec.is_guided else 0,
        drop=config.task.tag_drop,
        untagged=config.task.untagged,
    )
