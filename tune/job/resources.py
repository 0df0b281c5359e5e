"""CPUs and GPUs of a trial, and the cluster that has them."""

from __future__ import annotations

import re
from typing import Annotated, Self

from loopwise.extras import required

from .parameters import Strict

with required("pydantic", "tune", "tuning"):
    from pydantic import Field, field_validator, model_validator


class Resources(Strict):
    """CPUs and GPUs that each trial has for itself.

    Args:
        cpu: number of CPUs.
        gpu: number of GPUs: a whole number, or a share below 1 of one that trials share.

    Raises:
        pydantic.ValidationError: a number of GPUs above 1 that is not whole.
    """

    cpu: Annotated[int, Field(ge=1)] = 1
    gpu: Annotated[float, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.gpu > 1 and self.gpu != int(self.gpu):
            raise ValueError(f"gpu must be a whole number or below 1, not {self.gpu:g}")
        return self


class Cluster(Strict):
    """Ray cluster on which trials run.

    Args:
        address: ``host:port`` of its head node; ``auto``: the cluster that this machine belongs to.  An address ``ray://...``, of
            Ray's client, is refused.
        working_dir: folder that Ray copies to every node, and in which programs start there; ``None``: programs start in the
            present folder, which is on a file system that the nodes share.

    Raises:
        pydantic.ValidationError: an address of another form.
    """

    address: str = "auto"
    working_dir: str | None = None

    @field_validator("address")
    @classmethod
    def _is_direct(cls, address: str) -> str:
        if address.startswith("ray://"):
            raise ValueError(
                "addresses of Ray's client are not supported, since its connection ends all trials when it is lost; run the tuner "
                "on a machine of the cluster, and set auto, or host:port of the head node without ray:// (ray start --head "
                "prints it; its port is 6379 by default)"
            )
        if not re.fullmatch(r"auto|[^/\s]+:\d+", address):
            raise ValueError("expected auto, or host:port of the head node of a Ray cluster")
        return address
