"""`python -m deployments.launch serve` and `stop`."""

from deployments.launch.command import app

app()
