"""onlooker systems: the published systems of the field, and what stands here for each."""

import dataclasses
from typing import Annotated

import typer

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.output import emit, show_table
from onlooker.core.errors import InputError
from onlooker.core.systems import listed, statuses


@app.command()
def systems(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Show what this system becomes here and its proof.")
    ] = "",
    as_json: options.Json = False,
) -> None:
    """List the published systems with what stands here for each: reproduces, adapts, borrows, failed or not yet.

    Example: onlooker systems rekv
    """
    status = statuses()
    found = [one for one in listed() if name.lower() in ("", one.key, one.name.lower())]
    if not found:
        raise InputError("there is no published system of that name here", given=name, do="list them: onlooker systems")
    if as_json:
        rows = [
            {**dataclasses.asdict(one), "status": status[one.key].word(one), **dataclasses.asdict(status[one.key])}
            for one in found
        ]
        emit(rows)
    elif name:
        (one,) = found
        here = status[one.key]
        print(f"{one.name}: {one.idea}\n\nhere: {one.here}\nstatus: {here.word(one)} (aim: {one.aim})")
        print(f"declared by: {', '.join(here.declared) or 'nothing yet'}\n")
        for number, line in enumerate(one.proofs, 1):
            state = "proven" if number in here.proven else "does not hold" if number in here.failed else "open"
            print(f"{state:>13}: {line}")
            if found_there := one.found.get(number):
                print(f"{'':>13}  found: {found_there}")
        if one.waits and here.word(one) == "not yet":
            print(f"\nit waits for {one.waits}")
    else:
        rows = [
            [
                str(one.number),
                one.name,
                status[one.key].word(one),
                f"{len(status[one.key].proven)}/{len(one.proofs)}",
                one.idea,
            ]
            for one in found
        ]
        show_table(["#", "system", "status", "proof", "idea"], rows)
        print("\none of them with its proof: onlooker systems NAME")
