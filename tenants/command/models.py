"""`tenants calibrate` and `tenants levels`: what running models deliver, and bringing it back to what is sold."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from tenants.admin.admin import TenantAdmin
from tenants.changes.edits import AdminError
from tenants.command import show
from tenants.command.console import Json, failure, run
from tenants.reports.jobs import BEFORE, LIVE, Job
from tenants.reports.levels import merged
from tenants.reports.replicas import ServedModels
from tenants.store.store import TenantStore

POLL_S = 0.2
SPREAD_S = 15.0
"""How long the other replicas may take to say that they have a refit."""
ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="Id of a running model.")]


def levels(context: typer.Context, as_json: Json = False) -> None:
    """Show every level in use: sold against delivered, and whether it drifted."""
    reports = run(context, lambda _, store: ServedModels(store).reports())
    show.levels({model: merged(reports[model]) for model in sorted(reports)}, as_json)


def calibrate(
    context: typer.Context,
    model: ModelId,
    inputs: Annotated[
        Path | None,
        typer.Argument(metavar="[INPUTS]", help="Folder of images, or a text file, where the model runs."),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="On the inputs that tenants sent lately.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Put back what the last refit replaced.")] = False,
    as_json: Json = False,
) -> None:
    """Solve a running model's levels anew on other inputs; the noise stays, and no replica restarts."""
    if live + undo + (inputs is not None) != 1:
        raise failure("name a folder or a text file of inputs, or give --live or --undo: one of them.")
    source = str(inputs.expanduser().resolve()) if inputs else LIVE if live else BEFORE
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal) as bar:
        task = bar.add_task(model, total=1.0)

        async def work(_: TenantAdmin, store: TenantStore) -> tuple[Job, int]:
            models = ServedModels(store)
            job = await models.ask(model, source)
            try:
                while job.under_way:
                    bar.update(task, description=f"{model}: {job.step}", completed=job.share)
                    await asyncio.sleep(POLL_S)
                    job = await _now(models, job)
            except asyncio.CancelledError:  # Ctrl-C
                await models.call_off(job)
                raise
            if job.state == "failed":
                raise AdminError(job.error)
            bar.update(task, description=f"{model}: reaching every replica", completed=1.0)
            return job, await _spread(models, job)

        job, replicas = run(context, work)
    show.calibrated(job, replicas, as_json)


async def _now(models: ServedModels, job: Job) -> Job:
    stored = await models.follow(job)
    if stored is None:
        raise AdminError(f"The replica of {job.model} that calibrated has gone; its levels are what they were.")
    return stored


async def _spread(models: ServedModels, job: Job) -> int:
    """How many replicas have the refit; waits for all of them, within reason."""
    reports: list[Any] = []
    for _ in range(int(SPREAD_S / POLL_S)):
        found = (await models.reports()).get(job.model, [])
        own = {report.calibration for report in found if report.replica == job.replica}
        reports = [report for report in found if report.calibration in own]
        if reports and all(report.version >= job.version for report in reports):
            return len(reports)
        await asyncio.sleep(POLL_S)
    late = [report.replica for report in reports if report.version < job.version]
    raise AdminError(
        f"The calibration is stored, but {len(late)} of {len(reports)} replicas of {job.model} have not said that they"
        " took it; `tenants levels` shows them once they answer."
    )
