"""Figures as SVG inside a page, in the page's own colours and font."""

import html
import io
import re
import warnings

# What figures are drawn in -> the page's variables (`page.STYLE`), light or dark.
COLOURS = {
    "#1f2733": "var(--ink)",
    "#66707f": "var(--muted)",
    "#e6e9ee": "var(--line)",
    "#2463c9": "var(--blue)",
    "#e0782f": "var(--orange)",
    "#2a9d78": "var(--green)",
    "#8e5bc0": "var(--violet)",
    "#c9405b": "var(--red)",
    "#8a7a3a": "var(--olive)",
    "#ffffff": "var(--panel)",
}


def inline(figure, label: str, prefix: str) -> str:
    """A matplotlib figure as an `<svg>` element; equal figures give equal text.

    Args:
        figure: drawn in the colours of `clap_jax.evals.plots`; those become variables.
        label: what screen readers say.
        prefix: of all ids inside, so that they are unique on the page.
    """
    import matplotlib

    file = io.StringIO()
    options = {"svg.fonttype": "none", "svg.hashsalt": "clap_jax"}
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(options), warnings.catch_warnings():
        # Text stays text, so that the browser has the glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(
            file,
            format="svg",
            metadata=metadata,
            bbox_inches="tight",
            pad_inches=0.05,
            facecolor="none",
        )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
    text = re.sub(r"(?<=[a-z]: )#[0-9a-f]{6}", lambda m: COLOURS.get(m[0], m[0]), text)
    text = _with_ids(text, prefix)
    view = re.search(r'viewBox="([^"]*)"', text).group(1)
    width = float(view.split()[2]) * 4 / 3  # points to CSS pixels
    opening = (
        f'<svg role="img" aria-label="{html.escape(label)}" viewBox="{view}" '
        f'style="width: {width:.0f}px">'
    )
    return re.sub(r"<svg[^>]*>", opening, text, count=1).strip()


def _with_ids(text: str, prefix: str) -> str:
    """Only ids that something refers to, with the prefix."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))

    def renamed(match: re.Match) -> str:
        name = match.group(1)
        return f' id="{prefix}-{name}"' if name in used else ""

    text = re.sub(r' id="([^"]*)"', renamed, text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
