"""onlooker report: one page, figures and a table from the folders of runs."""

from pathlib import Path
from typing import Annotated

import typer

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.output import emit, note
from onlooker.core.errors import InputError


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders that onlooker eval wrote.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder for report.html, table.md and the figures.")] = Path("report"),
    reference: Annotated[
        Path | None, typer.Option(help="The run that all are compared with; the first when not given.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Overlay pictures of failures (needs the model).", min=0, max=20)] = 3,
    as_json: options.Json = False,
) -> None:
    """Make one self-contained HTML page, PNG figures and a Markdown table.

    Example: onlooker report runs/* --out report
    """
    from onlooker.evals.compare import compare
    from onlooker.evals.report.page import write_report
    from onlooker.evals.report.table import markdown, row_dict
    from onlooker.evals.runs import open_run

    found = [open_run(folder) for folder in runs if folder.is_dir() or not folder.exists()]
    if unfinished := [str(run.folder) for run in found if run.done is None]:
        do = "start onlooker eval with the same settings and folder: it goes on"
        raise InputError("a run is not finished", given=", ".join(unfinished), do=do)
    if not found:
        raise InputError("a report needs runs", given=", ".join(map(str, runs)), do="give folders that eval wrote")
    base = open_run(reference) if reference else found[0]
    page = write_report(found, out, pictures, base)
    rows = compare(found, base)
    if as_json:
        emit({"page": str(page), "rows": [row_dict(row) for row in rows]})
        return
    print(markdown(rows, out))
    note(f"wrote {page}")
