"""A sheet for one plot, and the picture that it becomes."""

from __future__ import annotations

import io
from typing import Any


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """Figure and axes, in inches, that need no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def png(figure: Any) -> bytes:
    """The figure as an opaque PNG, without the version of what drew it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
