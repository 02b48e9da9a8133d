"""Rows at a few static batch sizes, on one host or on several that go in step."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from clap_jax import sharding
from clap_jax.audio import crop
from clap_jax.audio import frontend as frontend_lib
from clap_jax.audio.mel import Frontend
from clap_jax.evals.hear import Heard


class _Row(NamedTuple):
    """One piece of a clip: the clip's number, the share of its seconds, the arrays."""

    number: int
    share: float
    piece: dict[str, np.ndarray]


class Batches:
    """Runs functions of `(variables, batch)` on the pieces of clips, or on other rows.

    frontend: what clips come through. batch_size: rows of the largest batch. Smaller
    calls run at a quarter, a sixteenth, ... of it (rounded up to the number of devices).
    mesh: all devices, unless given.
    """

    _variables: Any

    def __init__(self, frontend: Frontend, batch_size: int, mesh: Mesh | None = None):
        self._frontend = frontend
        self._mesh = sharding.make_mesh() if mesh is None else mesh
        # A mesh of one host's devices is that host's own business.
        alone = len({device.process_index for device in self._mesh.devices.flat}) == 1
        self._host = 0 if alone else jax.process_index()
        self._hosts = 1 if alone else jax.process_count()
        # Called before every batch, equally often on all hosts; may raise to stop.
        self.before_batch: Callable[[], None] = lambda: None
        devices = self._mesh.size
        largest = -(-batch_size // devices) * devices
        self._batch_sizes = [largest]
        while self._batch_sizes[-1] > devices:
            smaller = self._batch_sizes[-1] // 4
            self._batch_sizes.append(max(-(-smaller // devices) * devices, devices))

    def _in_parts(
        self, function: Callable[..., Any], rows: Mapping[str, np.ndarray]
    ) -> Any:
        """`function(variables, *rows)`, an array or a tree of such, at static batch
        sizes, for all rows on all hosts."""
        found, names = [], list(rows)
        for parts in zip(*(self._padded(rows[name]) for name in names), strict=True):
            self.before_batch()
            share, count = len(parts[0][0]) // self._hosts, parts[0][1]
            own = np.arange(self._host * share, (self._host + 1) * share)
            part = {name: values[own] for name, (values, _) in zip(names, parts)}
            part = self._to_device(part | {"row": own})
            result = function(self._variables, *(part[name] for name in names))
            result, row = self._gather((result, part["row"]))
            order = np.argsort(row)[:count]
            found.append(jax.tree.map(lambda x: x[order], result))  # noqa: B023
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    def _each(
        self,
        function: Callable[..., Any],
        clips: Iterable[tuple[int, Heard]],
        blank: Mapping[str, np.ndarray] | None = None,
    ) -> Iterator[tuple[Any, int, float]]:
        """What `function` makes of every piece of numbered clips, with the number of the
        clip and the share of its seconds; pieces of one length go together.

        Several hosts each have their own clips, take as many steps, and all get all
        rows. blank: what the pieces have besides sound, for a host that has none.
        """
        waiting: dict[int, list[_Row]] = {}
        for number, clip in clips:
            for i, share in enumerate(clip.seconds / clip.seconds.sum()):
                piece = {name: values[i] for name, values in clip.pieces.items()}
                # Only the pieces of whole clips differ in length.
                length = len(piece["mel"]) if "frames" in piece else 1
                waiting.setdefault(length, []).append(_Row(number, share, piece))
        while length := self._most(max(waiting, default=0)):
            rows, limit = waiting.pop(length, []), self._sizes(length)[0] // self._hosts
            if rows[limit:]:
                waiting[length] = rows[limit:]
            yield from self._rows(function, rows[:limit], length, blank or {})

    def _rows(
        self,
        function: Callable[..., Any],
        rows: Sequence[_Row],
        length: int,
        blank: Mapping[str, np.ndarray],
    ) -> Iterator[tuple[Any, int, float]]:
        """Result, number and share of these rows and of those of the other hosts."""
        count = self._most(len(rows)) * self._hosts
        size = min(size for size in self._sizes(length) if size >= count) // self._hosts
        numbers = np.full(size, -1, np.int32)
        numbers[: len(rows)] = [row.number for row in rows]
        shares = np.zeros(size, np.float32)
        shares[: len(rows)] = [row.share for row in rows]
        pieces = [row.piece for row in rows]
        if not rows:  # others have some
            pieces = [{**self._silence(length), **blank}]
        # The last row is repeated, since rows of zeros might not encode to numbers.
        pieces += pieces[-1:] * (size - len(pieces))
        batch = {
            name: np.stack([piece[name] for piece in pieces]) for name in pieces[0]
        }
        found, labels = self._encode(
            function, batch, {"numbers": numbers, "shares": shares}
        )
        for row, number in enumerate(labels["numbers"]):
            if number >= 0:
                result = jax.tree.map(lambda x: x[row], found)  # noqa: B023
                yield result, int(number), labels["shares"][row]

    def _silence(self, length: int) -> dict[str, np.ndarray]:
        """A piece in which nothing is heard."""
        frontend = self._frontend
        if not frontend.whole_mel:
            return {"wave": np.zeros(frontend.clip_samples, np.float32)}
        if frontend.whole_clip:
            silence = np.full((length, frontend.mels), frontend_lib.FLOOR_DB)
            return {"mel": silence.astype(np.float32), "frames": np.int32(length)}
        views = (frontend.views, frontend.clip_frames, frontend.mels)
        silence = np.full(views, frontend_lib.FLOOR_DB)
        return {"mel": silence.astype(np.float32), "longer": np.bool_(False)}

    def _sizes(self, length: int) -> list[int]:
        """Batch sizes for clips of so many frames: longer ones, smaller batches."""
        budget = self._batch_sizes[0] * crop.static_length(self._frontend.clip_frames)
        fitting = [size for size in self._batch_sizes if size * length <= budget]
        return fitting or self._batch_sizes[-1:]

    def _encode(
        self,
        function: Callable[..., Any],
        batch: Mapping[str, np.ndarray],
        labels: Mapping[str, np.ndarray],
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Results of this host's rows and of all others', with what labels them."""
        self.before_batch()
        found = function(self._variables, self._to_device(batch))
        return self._gather((found, self._to_device(labels)))

    def _padded(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Parts of `rows` at a static batch size, and how many rows of each are real.

        The last row is repeated, since rows of zeros might not encode to numbers.
        """
        largest = self._batch_sizes[0]
        for start in range(0, len(rows), largest):
            part = rows[start : start + largest]
            size = min(size for size in self._batch_sizes if size >= len(part))
            padding = np.repeat(part[-1:], size - len(part), axis=0)
            yield np.concatenate([part, padding]), len(part)

    def _to_device(self, rows: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return sharding.to_global(rows, self._mesh)

    def _gather(self, tree: Any) -> Any:
        """Global arrays as numpy on every host."""
        if self._hosts > 1:
            return multihost_utils.process_allgather(tree, tiled=True)
        return jax.device_get(tree)

    def _most(self, count: int) -> int:
        """The largest `count` of any host."""
        return int(self._gather(np.array([count])).max())
