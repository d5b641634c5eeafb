"""Distributions as SVG, drawn with matplotlib, which is an optional dependency."""

import io
import re
from itertools import pairwise

from modelforge.errors import UserError
from modelforge.inspection.histogram import Histogram

SIZE = (6.4, 2.6)  # inches
COLOUR = "#4477aa"


def require_matplotlib() -> None:
    """Say how to get it where it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--html: needs matplotlib for the plots; install it: pip install modelforge[plot]") from None


def svg_of(histogram: Histogram, *, prefix: str) -> str:
    """An `<svg>` element whose ids begin with `prefix`, so that several fit on one page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "modelforge", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        edges = list(histogram.edges)
        is_single = edges[0] == edges[-1]
        widths = [0.1] if is_single else [high - low for low, high in pairwise(edges)]
        axes.bar(edges[:-1], histogram.counts, widths, align="center" if is_single else "edge", color=COLOUR, edgecolor="white")
        axes.set_xscale("log" if histogram.is_logarithmic and not is_single else "linear")
        axes.set_xlabel(f"{histogram.quantity} ({histogram.unit})")
        axes.set_ylabel(histogram.counted)
        axes.spines[["top", "right"]].set_visible(False)
        if outside := _outside(histogram):
            axes.set_title(outside, fontsize="small", loc="right")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), prefix)


def _outside(histogram: Histogram) -> str:
    below, above = f"{histogram.num_below:,} below", f"{histogram.num_above:,} above"
    parts = [part for part, count in ((below, histogram.num_below), (above, histogram.num_above)) if count]
    return f"not shown: {' and '.join(parts)}" if parts else ""


def _inline(document: str, prefix: str) -> str:
    """The element without what only a file of its own needs."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'\bid="', f'id="{prefix}-', element)
    return re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}-", element)
