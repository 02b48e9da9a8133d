"""The one TFDS builder behind all data sets: clips of a row, checked, as ArrayRecord.

Audio is kept as it was published, byte for byte. No TensorFlow: that is why shards
are made by size here, in an order that the clips' ids give (TFDS's own shuffling needs
TensorFlow for more than 1 GB), and archives are unpacked by `layout.unpack`.
"""

import functools
import hashlib
import shutil
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from clap_jax.pipeline import tfds as tfds_source
from data.datasets.layout import Folder, LayoutError, unpack
from data.datasets.row import Clip, DataSet

VERSION = "1.0.0"

SHARD_BYTES = 256 << 20
"""TFDS holds one shard in memory while it writes it."""

CLIP_BYTES = 4 << 20
"""How large a clip is taken to be that does not say it."""

NOT_RECORDED = ("split", "audio", "audio_bytes")
"""Fields of `Clip` that are no part of a record, or not of its index."""

SHOWN = 5

DIGEST = "digest"
"""Among a set's metadata: `DataSet.digest`."""


def features() -> tfds.features.FeaturesDict:
    """What a record holds; `Clip` says what the fields mean."""
    text, texts = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())
    return tfds.features.FeaturesDict(
        {
            # The bytes of an audio file: FLAC, WAV, Ogg, MP3 ...
            "audio": tfds.features.Tensor(shape=(), dtype=np.object_),
            "id": text,
            "captions": texts,
            "tags": texts,
            "group": text,
            "fold": text,
            "start_seconds": tfds.features.Scalar(np.float32),
            "end_seconds": tfds.features.Scalar(np.float32),
            "license": text,
            "attribution": text,
        }
    )


class ClipBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes the clips of a row. `make` gives one for a row.

    splits: only these; () for all. allow_partial: leave out what is not there.
    download: fetch the archives of the row, in place of a folder.
    """

    VERSION = tfds.core.Version(VERSION)
    # Downloads are checked by what is in them.
    url_infos: Mapping = types.MappingProxyType({})
    row: DataSet

    def __init__(
        self,
        *,
        splits: Sequence[str] = (),
        allow_partial: bool = False,
        download: bool = False,
        **options: Any,
    ):
        self._wanted, self._allow_partial = tuple(splits), allow_partial
        self._download = download
        super().__init__(**options)

    def _download_and_prepare(self, *arguments: Any, **options: Any) -> None:
        # On a terminal only.
        with tqdm.tqdm(desc=self.row.name, unit=" clips", disable=None) as self._bar:
            super()._download_and_prepare(*arguments, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        row = self.row
        return tfds.core.DatasetInfo(
            builder=self,
            description=" ".join(f"{row.title}. {row.note}".split()),
            features=features(),
            homepage=row.homepage,
            citation=row.citation,
            license=row.licence,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, list[Callable[[], Iterator]]]:
        config = self.builder_config.name if self.builder_config else ""
        options = (config, self._wanted, self._allow_partial)
        folder, archives = self._files(dl_manager)
        try:
            clips, listed = gather(self.row, folder, *options)
        except LayoutError:
            if not archives:
                raise
            # Only now, as people keep archives beside what was in them.
            into = Path(dl_manager.download_dir) / "extracted"
            unpacked = [unpack(archive, into) for archive in archives]
            folder = Folder([*folder.roots, *unpacked])
            clips, listed = gather(self.row, folder, *options)
        self.info.metadata["published_clips"] = self.row.splits_of(config)
        self.info.metadata[tfds_source.LISTED] = listed
        if self.row.digest:
            self.info.metadata[DIGEST] = self.row.digest
        for split, own in clips.items():
            tfds_source.write_index(self.data_path, split, map(_record, own))
        for name in self.row.keep:
            kept = folder.find(name)
            if kept:
                shutil.copyfile(kept, Path(self.data_path) / f"source-{kept.name}")
        self._bar.reset(sum(map(len, clips.values())))
        return {
            split: [
                functools.partial(_examples, part, self._bar.update)
                for part in shards(own)
            ]
            for split, own in clips.items()
        }

    def _files(
        self, dl_manager: tfds.download.DownloadManager
    ) -> tuple[Folder, list[Path]]:
        """The folder of the data set, and archives of it. Raises LayoutError."""
        if not self.row.get:
            return Folder([]), []
        if self._download:
            found = dl_manager.download(list(self.row.urls))
            return Folder([]), [Path(archive) for archive in found]
        try:
            manual = Path(dl_manager.manual_dir)
        except AssertionError as error:  # there is no such folder, or nothing in it
            what = str(error).partition(". Create it")[0]
            fetch = ", or --download" if self.row.urls else ""
            raise LayoutError(
                f"{self.row.name}: {what}. Set --manual_dir to the folder of the data "
                f"set{fetch}. It needs " + " ".join(self.row.get.split())
            ) from None
        archives = [a for glob in self.row.archives for a in sorted(manual.glob(glob))]
        return Folder([manual]), archives


def make(row: DataSet, config: str = "", **options: Any) -> ClipBuilder:
    """The builder of a row; options: of `ClipBuilder` and of TFDS (data_dir).

    Raises ValueError for a config that the row does not have.
    """
    if config and config not in row.configs:
        known = ", ".join(row.configs) or "it has none"
        raise ValueError(f"{row.name} has no config {config!r} (configs: {known})")
    configs = [
        tfds.core.BuilderConfig(name=name, description="") for name in row.configs
    ]
    fields = {
        "name": row.name,
        "row": row,
        "BUILDER_CONFIGS": configs,
        "MANUAL_DOWNLOAD_INSTRUCTIONS": " ".join(row.get.split()),
        "__module__": __name__,
    }
    cls = types.new_class(
        row.name,
        (ClipBuilder,),
        {"skip_registration": True},
        lambda namespace: namespace.update(fields),
    )
    with tfds_source.quiet():
        return cls(config=config or None, file_format="array_record", **options)


def gather(
    row: DataSet,
    folder: Folder,
    config: str = "",
    wanted: Sequence[str] = (),
    allow_partial: bool = False,
) -> tuple[dict[str, list[Clip]], dict[str, int]]:
    """The clips of each split, in the order of their records, and how many the set's
    own list names of each that was looked for.

    Raises LayoutError for clips that are not there or twice the same, and for numbers
    that are not the published ones; with allow_partial such clips are left out.
    """
    published = row.splits_of(config)
    splits: dict[str, list[Clip]] = {s: [] for s in chosen_splits(row, config, wanted)}
    try:
        for clip in row.read(folder, config, tuple(splits)):
            if clip.split in splits:
                splits[clip.split].append(clip)
    except (KeyError, TypeError, AttributeError) as error:  # of what JSON files hold
        raise LayoutError(
            f"{row.name}: a file in {folder} is not as published: {error!r}"
        ) from None
    if not any(splits.values()):
        raise LayoutError(
            f"{row.name}: no clips in {folder}. It needs " + " ".join(row.get.split())
        )
    listed = {split: len(clips) for split, clips in splits.items()}
    for split, clips in list(splits.items()):
        if not clips and published[split] is None and not wanted:
            del splits[split]  # not every copy has it
            continue
        _check_ids(f"{row.name}, {split}", clips)
        splits[split] = present = [clip for clip in clips if _is_there(clip)]
        problem = _shortfall(clips, present, published[split])
        if problem and not (allow_partial and present):
            others = [other for other, own in splits.items() if own and other != split]
            advice = _advice(row, present, others)
            raise LayoutError(f"{row.name}, {split}: {problem} in {folder}{advice}")
        if not row.keep_order:
            present.sort(key=lambda clip: _digest(clip.id))
    return splits, listed


def chosen_splits(row: DataSet, config: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """The splits that are wanted, all where none is named. Raises LayoutError."""
    published = row.splits_of(config)
    unknown = sorted(set(wanted) - set(published))
    if unknown:
        raise LayoutError(
            f"{row.name} has no split {unknown[0]!r} (splits: {', '.join(published)})"
        )
    return tuple(wanted or published)


def _check_ids(where: str, clips: list[Clip]) -> None:
    for name, times in Counter(clip.id for clip in clips).most_common(1):
        if times > 1:
            raise LayoutError(f"{where}: {times} clips are called {name!r}")


def _is_there(clip: Clip) -> bool:
    if not isinstance(clip.audio, Path):
        return clip.audio is not None
    return clip.audio.is_file() and clip.audio.stat().st_size > 0


def _shortfall(
    listed: list[Clip], present: list[Clip], published: int | None
) -> str | None:
    """A sentence if not exactly the published clips are there, with their audio."""
    expected = len(listed) if published is None else published
    if len(present) == expected and present:
        return None
    text = f"{len(present)} clips found, {expected} expected"
    absent = [clip.id for clip in listed if not _is_there(clip)]
    if absent:
        more = ", ..." if len(absent) > SHOWN else ""
        text += (
            f"; {len(absent)} have no audio file, or an empty one: "
            f"{', '.join(absent[:SHOWN])}{more}"
        )
    return text


def _advice(row: DataSet, present: list[Clip], others: list[str]) -> str:
    """How to go on with what is there."""
    if present:
        why = " (videos vanish from YouTube)" if row.vanishing else ""
        return f". --allow_partial prepares those that are there{why}"
    return f". --splits={','.join(others)} prepares the others" if others else ""


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def shards(clips: Sequence[Clip], shard_bytes: int = SHARD_BYTES) -> list[list[Clip]]:
    """Clips in shards of about so many bytes of audio."""
    parts: list[list[Clip]] = []
    size = shard_bytes
    for clip in clips:
        is_file = isinstance(clip.audio, Path)
        own = clip.audio.stat().st_size if is_file else clip.audio_bytes or CLIP_BYTES
        if size + own > shard_bytes:
            parts.append([])
            size = 0
        parts[-1].append(clip)
        size += own
    return parts


def _record(clip: Clip) -> dict[str, Any]:
    """A record without its audio."""
    record = clip._asdict() | {"group": clip.clip_group}
    record["captions"] = [text for text in clip.captions if text.strip()]
    return {key: value for key, value in record.items() if key not in NOT_RECORDED}


def _examples(
    clips: Sequence[Clip], count: Callable[[], Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for clip in clips:
        count()
        audio = clip.audio
        content = audio.read_bytes() if isinstance(audio, Path) else audio()
        yield clip.id, {"audio": content, **_record(clip)}
