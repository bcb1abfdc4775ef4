"""The part of a configuration that is about the curator's workbench: where it is served, and what films may take."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.operations import Model


class Workbench(Model):
    port: int = Field(8378, ge=0, le=65535, description="on loopback; 0: any that is free")
    write: bool = Field(True, description="false: guests look, and nothing they say is written")
    cache: float = Field(
        2.0, gt=0, description="GB of films that are kept in TMPDIR, made when somebody looks at a clip"
    )
    decoders: int = Field(2, ge=1, le=64, description="films that are made at a time")
    ahead: int = Field(
        0, ge=0, description="films of so many clips, the best first, are written into previews/ before serving"
    )
