"""`python -m data.caption.measured DATA --out=TABLE.csv`: tempo and key of each clip.

Labels by ear (`data.caption.hearing`), for probes where there are none by people. Columns:
id; tempo, a class of `music.TEMPOS`; tempo_bpm; key, "A minor"; mode; sureness, the key's
correlation with its profile; reason, why there is nothing. A cell is empty where nothing
can be said: of a clip with hardly any onsets no tempo, of one whose key is not clear no
key.
"""

import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clap_jax import config as config_lib
from clap_jax.cli import Parser, fail
from data.caption import clips as clips_lib
from data.caption import hearing, music

COLUMNS = ("id", "tempo", "tempo_bpm", "key", "mode", "sureness", "reason")


def row(clip_id: str, audio: Any) -> dict[str, Any]:
    """A row of the table. audio: as `hearing.hear` takes it."""
    try:
        heard = hearing.hear(audio)
    except hearing.HearingError as error:
        return {"id": clip_id, "reason": str(error)}
    found: dict[str, Any] = {"id": clip_id, "sureness": round(heard.whole.sureness, 3)}
    if heard.whole.onsets >= music.LEAST_ONSETS:
        found["tempo"] = tempo_class(heard.tempo_bpm)
        found["tempo_bpm"] = round(heard.tempo_bpm, 1)
    if heard.whole.sureness >= music.LEAST_SURENESS:
        found["key"] = heard.whole.key
        found["mode"] = heard.whole.key.split()[-1]
    return found


def tempo_class(bpm: float) -> str:
    """ "slow", "moderate", "lively" or "fast"."""
    return next(word for limit, word in music.TEMPOS if bpm < limit)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the table; returns the exit status."""
    parser = Parser(prog="python -m data.caption.measured", description=__doc__)
    parser.add_argument(
        "data", metavar="DATA", help="table, folder, shards, or a source as JSON"
    )
    parser.add_argument("--out", required=True, metavar="TABLE.csv")
    options = parser.parse_args(arguments)
    if not options.out.endswith(".csv"):
        fail(f"--out is {options.out}, expected a .csv", status=2)
    try:
        found = clips_lib.read(options.data, lengths="none", untagged=True)
    except (ValueError, OSError) as error:
        fail(str(error), status=1)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    rows = []
    for number, clip in enumerate(found.clips, start=1):
        try:
            rows.append(row(clip.id, found.sound(clip.id)))
        except (ValueError, OSError) as error:
            rows.append({"id": clip.id, "reason": f"cannot be read: {error}"})
        if number % 100 == 0:
            print(f"{number} of {len(found.clips)}", file=sys.stderr, flush=True)
    table.writerows(rows)
    config_lib.write_text(Path(options.out), text.getvalue())
    print(f"{options.out}: {len(rows):,} clips")
    for column in ("tempo", "mode", "reason"):
        counts = Counter(own[column] for own in rows if column in own).most_common(6)
        print(f"{column}: {', '.join(f'{name} {n:,}' for name, n in counts) or '-'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
