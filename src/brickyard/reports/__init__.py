"""Reports on components and assemblies: pictures, pages, model cards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.reports._cards import model_card as model_card
    from brickyard.reports._cards import score_table as score_table
    from brickyard.reports._drawn_boxes import draw_boxes as draw_boxes
    from brickyard.reports._page import report as report
    from brickyard.reports._page import write_report as write_report
    from brickyard.reports._route_picture import Picture as Picture
    from brickyard.reports._route_picture import draw as draw
    from brickyard.reports._routes import Routes as Routes
    from brickyard.reports._routes import routes as routes

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "reports._cards": "model_card score_table",
        "reports._drawn_boxes": "draw_boxes",
        "reports._page": "report write_report",
        "reports._route_picture": "Picture draw",
        "reports._routes": "Routes routes",
    },
)
