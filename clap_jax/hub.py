"""Checkpoints on the Hugging Face hub by their id; the local cache comes first."""

import json
import re
from pathlib import Path

_SUFFIXES = "pt|pth|ckpt|bin|safetensors"
# owner/name, or owner/name/file.pt
_ID = re.compile(
    rf"(?P<repository>\w[\w.-]*/[\w.-]+)(?:/(?P<file>[\w./-]+\.(?:{_SUFFIXES})))?"
)

# What a model's weights may be in; the first that the repository has. Names, not just
# suffixes: some repositories keep more copies in sub-folders.
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_BESIDE = ["extra.safetensors", "*.json", "*vocab.txt", "*merges.txt", "*.model"]


class HubError(OSError):
    """Something that is neither here nor on the hub, in one sentence."""


def find(where: str | Path) -> Path:
    """The path of a checkpoint: `where` itself, or the local copy of a hub id.

    where: a path, which is taken as it is, or the text "owner/name" (all that a model
        needs of that repository: weights, configs, tokenizer) or "owner/name/file.pt"
        (that file of it). What exists here is never looked for on the hub; what is in
        the local cache is not downloaded again, nor looked for in newer revisions.

    Returns:
        A path. Unless it came from the hub, it may not exist.

    Raises:
        HubError: `where` looks like a hub id, but is not here and cannot be had.
    """
    local = Path(where).expanduser()
    found = _ID.fullmatch(where) if isinstance(where, str) else None
    if local.exists() or found is None:
        return local
    repository, file = found["repository"], found["file"]
    wanted = [[file]] if file else [[weights, *_BESIDE] for weights in _WEIGHTS]
    reason = ""
    for is_local in (True, False):
        for patterns in wanted:
            try:
                folder = _snapshot(repository, patterns, is_local)
            except (OSError, ValueError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                continue
            if is_local and not file and not _is_whole(folder):
                continue  # a download that was interrupted
            if any(folder.glob(patterns[0])):
                return folder / file if file else folder
            reason = f"that repository has no {file or ' or '.join(_WEIGHTS)}"
    ending = "" if file else " (one file of a repository is named owner/name/file.pt)"
    raise HubError(
        f"{where} is not here, not in the local cache of the Hugging Face hub, and "
        f"cannot be had from there: {reason}{ending}"
    )


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has what describes its model, and every part of its weights."""
    if not any((folder / name).is_file() for name in ("config.json", "spec.json")):
        return False
    for index in folder.glob("*.index.json"):
        parts = json.loads(index.read_text()).get("weight_map", {}).values()
        if not all((folder / part).is_file() for part in parts):
            return False
    return True


def _snapshot(repository: str, patterns: list[str], is_local: bool) -> Path:
    """The folder with those files of a repository that match, downloaded if allowed."""
    import huggingface_hub  # at first use: it takes a while to import

    return Path(
        huggingface_hub.snapshot_download(
            repository,
            allow_patterns=patterns,
            local_files_only=is_local,
        )
    )
