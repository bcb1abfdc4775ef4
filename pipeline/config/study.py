"""The part of a configuration that is about people: whose generated videos they judge, and how answers are scored."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.config.operations import Model


class Study(Model):
    arms: tuple[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], ...] = Field(
        (), description="two or more, baselines first"
    )
    subject: str | None = Field(None, description="held against each other arm; null: every pair of arms is judged")
    question: str = Field(
        "In which video does the motion look more natural?", min_length=1, max_length=200, description="what is asked"
    )
    seed: int = Field(0, ge=0, description="of each person's order and sides, of the catch trials, of the intervals")
    catch: float = Field(0.1, ge=0, le=0.5, description="share of the pairs shown whose right answer is known")
    passing: float = Field(0.75, ge=0, le=1, description="share of those that a person must get right to count")
    serve: bool = Field(False, description="serve the page on loopback and collect the answers, until Ctrl-C")
    port: int = Field(8377, ge=0, le=65535, description="0: any that is free")
    answers: str | None = Field(None, description="answers to score: a file, a folder or a glob; local or s3://")

    @model_validator(mode="after")
    def _sensible(self) -> Study:
        if len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms={list(self.arms)}: an arm is named twice")
        if self.subject is not None and self.subject not in self.arms:
            raise ValueError(f"subject={self.subject!r} must be one of the arms")
        if self.serve and self.answers is not None:
            raise ValueError("serve collects answers and answers=... scores them: name one of the two")
        return self
