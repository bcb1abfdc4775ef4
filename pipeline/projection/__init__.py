"""The only random matrix: a gradient projected to a few hundred numbers, E<Pg, Ph> = <g, h>."""

from __future__ import annotations

from pipeline.projection.matrix import Projection

__all__ = ["Projection"]
