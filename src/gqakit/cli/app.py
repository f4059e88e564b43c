"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from gqakit import __version__
from gqakit.cli import (
    calibrate,
    convert,
    correlate,
    demo,
    evaluate,
    export,
    families,
    generate,
    inspect,
    methods,
    plan,
    repair,
    uptrain,
    verify,
    vision_train,
)

app = typer.Typer(
    name="gqakit",
    help="Turn a trained attention checkpoint into one with fewer key/value heads: a smaller KV cache, "
    "with as little loss as can be.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 other error, 2 usage, 3 checkpoint, 4 family, 5 budget, 6 plan or moments, "
    "7 output, 8 verification, 9 data, 10 missing dependency, 11 training, 130 interrupted.",
)


def _version(shown: bool) -> None:
    if shown:
        print(f"gqakit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command("inspect")(inspect.command)
app.command("calibrate")(calibrate.command)
app.add_typer(plan.app, name="plan")
app.command("convert")(convert.command)
app.command("repair")(repair.repair)
app.command("uptrain")(uptrain.uptrain)
app.command("vision-train")(vision_train.vision_train)
app.command("verify")(verify.command)
app.command("evaluate")(evaluate.command)
app.command("correlate")(correlate.command)
app.command("export")(export.command)
app.command("generate")(generate.command)
app.command("methods")(methods.command)
app.command("families")(families.command)
app.command("demo")(demo.command)
