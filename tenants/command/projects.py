"""`tenants project`: limits that several tenants and keys share."""

from __future__ import annotations

from typing import Annotated

import typer

from tenants.admin import views
from tenants.command import show
from tenants.command.console import Assignments, Json, Remove, Yes, assignments, complete_project, run

app = typer.Typer(help="Projects: limits that several tenants and keys share.", no_args_is_help=True)
ProjectName = Annotated[str, typer.Argument(metavar="PROJECT", help="Project id.", autocompletion=complete_project)]


@app.command("list")
def list_projects(context: typer.Context, as_json: Json = False) -> None:
    """List projects."""
    show.projects(run(context, lambda admin, _: admin.projects()), as_json)


@app.command("show")
def show_project(context: typer.Context, project: ProjectName, as_json: Json = False) -> None:
    """Show one project."""
    show.projects({project: run(context, lambda admin, _: admin.project(project))}, as_json)


@app.command("create")
def create_project(
    context: typer.Context, project: ProjectName, fields: Assignments = None, as_json: Json = False
) -> None:
    """Create a project: tenants project create team-a rpm=600; members: tenants set acme project=team-a."""
    changes = assignments(fields or [])
    record = run(context, lambda admin, _: admin.create_project(project, changes))
    show.done(views.project_fields(record), f"Created project {project}.", as_json)


@app.command("set")
def set_project(
    context: typer.Context,
    project: ProjectName,
    fields: Assignments = None,
    remove: Remove = None,
    as_json: Json = False,
) -> None:
    """Set limits of a project: rpm=600 quota_requests_month=100000 billing_day=17."""
    changes = assignments(fields or [], remove or [])
    record = run(context, lambda admin, _: admin.set_project(project, changes))
    show.done(views.project_fields(record), f"Set {', '.join(changes)} of project {project}.", as_json)


@app.command("delete")
def delete_project(context: typer.Context, project: ProjectName, yes: Yes = False, as_json: Json = False) -> None:
    """Delete a project that nobody belongs to."""
    if not yes:
        typer.confirm(f"Delete project {project}?", abort=True, err=True)
    run(context, lambda admin, _: admin.delete_project(project))
    show.done({"deleted": project}, f"Deleted project {project}.", as_json)
