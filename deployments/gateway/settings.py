"""A gateway's settings in force: as its application was built, and what `user_config` says instead."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from deployments.config import GatewayArgs
from deployments.contracts.console import FAILED, announce
from deployments.gateway_settings import GatewaySettings

logger = logging.getLogger("deployments.gateway.settings")


class Settings:
    """What applies to the next request; one that is under way keeps the deadline that it began with.

    Attributes:
        now: in force.
        problem: why the last change was refused; "" where it was not.
    """

    def __init__(self, built: GatewayArgs) -> None:
        self.now = checked(built, {})
        self.problem = ""
        self._built, self._begun = built, False

    def change(self, user_config: Mapping[str, Any] | None) -> None:
        """Put what an operator has written in force, all of it or nothing; what it leaves out is as it was built.

        Raises:
            ValueError: it cannot be, and this gateway has only begun, so that there is nothing to go on with.
        """
        try:
            changed = checked(self._built, user_config or {})
        except ValueError as error:
            self.problem = f"gateway settings refused: {error}"
            announce("gateway", self.problem if self._begun else f"{FAILED} {self.problem}")
            if not self._begun:
                raise ValueError(self.problem) from None
            return
        if self._begun and changed != self.now:
            logger.info("settings changed: %s", _difference(self.now, changed))
        self.now, self.problem, self._begun = changed, "", True


def checked(built: GatewayArgs, user_config: Mapping[str, Any]) -> GatewaySettings:
    """Settings as they were built, with some of them changed.

    Raises:
        ValueError: one line that names each wrong field and what was expected.
    """
    try:
        settings = GatewaySettings.model_validate(
            {**built.model_dump(include=set(GatewaySettings.model_fields)), **user_config}
        )
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors())
        raise ValueError("; ".join(faults)) from None
    if settings.deadline_s > built.drain_s:
        raise ValueError(
            f"deadline_s: {settings.deadline_s:g} is more than the {built.drain_s:g} s that replicas have to end their"
            " answers; set it in args.gateway, which restarts the application"
        )
    return settings


def _difference(old: GatewaySettings, new: GatewaySettings) -> str:
    was, now = old.model_dump(), new.model_dump()
    return ", ".join(f"{name} {was[name]} -> {now[name]}" for name in now if was[name] != now[name])
