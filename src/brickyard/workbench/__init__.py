"""A local web page to build classifiers from the components of a yard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports, package

if TYPE_CHECKING:
    from brickyard.workbench._app import create_app as create_app

package("fastapi", "workbench", "the workbench")

__all__, __getattr__, __dir__ = lazy_exports(__name__, {"workbench._app": "create_app"})
