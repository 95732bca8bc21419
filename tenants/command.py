"""The `tenants` command's entry: it says what is missing where only the method was installed."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command."""
    try:
        from tenants.cli import app
    except ModuleNotFoundError as error:
        sys.exit(f"tenants needs the server's packages ({error.name} is missing): pip install 'aim-serve[server]'")
    app()
