"""The HTML pages of experiments: one of each, an index of all, and two side by side. ``python -m wsss.report`` makes
the last two.

    python -m wsss.report                      # artifacts/report/index.html
    python -m wsss.report 72121c ff3ca1        # two segmenters side by side

Every page is one file that needs no network.
"""

from wsss.report.page import (
    GalleryRow,
    PrototypeRow,
    PrototypeView,
    ReportData,
    StageSummary,
    render_report,
    write_report,
)

__all__ = [
    "GalleryRow",
    "PrototypeRow",
    "PrototypeView",
    "ReportData",
    "StageSummary",
    "render_report",
    "write_report",
]
