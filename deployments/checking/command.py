"""`tenants models check`: whether the models of a configuration can be served, before they are.

`tenants.command.entry` finds it by name, since it needs the models' engines, which `tenants` may not import.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.config import ModelSpec, Task
from tenants.command.console import Json, failure

if TYPE_CHECKING:
    from deployments.checking.report import Report

app = typer.Typer(help="The models of a configuration.", no_args_is_help=True)


@app.callback()
def models() -> None:
    """The models of a configuration."""


@app.command()
def check(
    config: Annotated[Path, typer.Argument(help="Serve configuration.")] = Path("serve_config.yaml"),
    model: Annotated[list[str] | None, typer.Option(help="Id of a model to check; repeat it. Default: all.")] = None,
    picture: Annotated[list[Path] | None, typer.Option(help="Picture to compare on; repeat it.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt to compare on.")] = None,
    levels: Annotated[bool, typer.Option("--levels", help="Solve the levels too, under a secret of no use.")] = False,
    as_json: Json = False,
) -> None:
    """Load each model without Ray, compare level 1.0 with its own library, and say what calibration needs.

    One line for each problem; exit status 1 where there is one. Nothing is written, and no store is needed.
    """
    from deployments.launch.command import read_plan

    specs = read_plan(config).args.models
    if unknown := set(model or []) - {spec.id for spec in specs}:
        raise failure(f"{config} has no model '{min(unknown)}'; it has: {', '.join(spec.id for spec in specs)}.")
    if missing := [path for path in picture or [] if not path.is_file()]:
        raise failure(f"--picture: there is no file {missing[0]}.")
    # Read when the libraries are first imported: the report is all that is to be seen.
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    reports = []
    for spec in specs:
        if not model or spec.id in model:
            reports.append(_checked(spec, picture or [], prompt, levels))
            if not as_json:
                typer.echo("\n".join(reports[-1].lines()) + "\n")
    if as_json:
        typer.echo(json.dumps([report.to_json() for report in reports], indent=2, ensure_ascii=False))
    bad = [report.model for report in reports if not report.good]
    if bad:
        raise failure(f"{len(bad)} of {len(reports)} models have problems: {', '.join(bad)}.")


def _checked(spec: ModelSpec, pictures: list[Path], prompt: str | None, solve: bool) -> Report:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from deployments.checking.embeddings import check_embeddings
    from deployments.checking.pictures import check_pictures
    from deployments.checking.report import Report
    from deployments.checking.texts import check_text
    from deployments.engines.errors import LoadError, first_line
    from policies.errors import ServiceError

    disable_progress_bar()
    if spec.threads:
        torch.set_num_threads(spec.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report(spec.id, str(spec.task), spec.source)
    try:
        if spec.task is Task.TEXT:
            check_text(spec, report, device, prompt, solve)
        elif spec.task is Task.EMBEDDING:
            check_embeddings(spec, report, device)
        else:
            check_pictures(spec, report, device, pictures, solve)
    except LoadError as error:
        report.problems.append(str(error))
    except ServiceError as error:
        report.problems.append(error.message)
    except Exception as error:  # its own library's: whatever it is, the other models are checked too
        report.problems.append(f"its own library fails: {type(error).__name__}: {first_line(error)}")
    return report
