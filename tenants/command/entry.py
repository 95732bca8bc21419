"""The `tenants` command's entry: it says what is missing where only the method was installed."""

from __future__ import annotations

import sys
from importlib import import_module

WITH_MODELS = {"trace": "deployments.checking.provenance"}
"""Commands that need the models, by the module that has them: found by name, since no part of `tenants` needs it."""
GROUPS = {"models": "deployments.checking.command"}
"""Groups of such commands."""


def main() -> None:
    """Run the command."""
    try:
        from tenants.command.app import app

        for name, module in WITH_MODELS.items():
            app.command(name)(getattr(import_module(module), name))
        for name, module in GROUPS.items():
            app.add_typer(import_module(module).app, name=name)
    except ModuleNotFoundError as error:
        sys.exit(f"tenants needs the server's packages ({error.name} is missing): pip install 'aim-serve[server]'")
    app()
