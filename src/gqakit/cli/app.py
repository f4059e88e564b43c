"""The commands, put together in the order of work."""

from __future__ import annotations

from typing import Annotated

import typer

from gqakit import __version__
from gqakit.cli import (
    bench,
    calibrate,
    compare,
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
    sample,
    uptrain,
    verify,
    vision_train,
)

app = typer.Typer(
    name="gqakit",
    help="\b\n$ gqakit inspect MODEL\n$ gqakit convert MODEL --kv-ratio 0.5 --text my.txt -o smaller\n"
    "$ gqakit evaluate MODEL smaller\n\n"
    "Turn a trained attention checkpoint into one with fewer key/value heads: a smaller KV cache, with as little loss as "
    "can be.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 other error, 2 usage, 3 checkpoint, 4 family, 5 budget, 6 plan or statistics, "
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


COMMANDS = {
    "Convert": {
        "inspect": (
            inspect.inspect,
            "Say what a checkpoint is, what its KV cache takes, what it can become.",
        ),
        "convert": (convert.convert, "Write a checkpoint with a smaller KV cache."),
        "verify": (verify.verify, "Check that a conversion is what its plan promises."),
        "evaluate": (evaluate.evaluate, "Compare checkpoints: perplexity, divergence, cache size."),
        "compare": (compare.compare, "Several methods and budgets at equal bytes: one table, one page."),
        "bench": (bench.bench, "Time checkpoints beside each other."),
        "generate": (generate.generate, "Continue a prompt."),
        "demo": (demo.demo, "See it work on a real pretrained model."),
    },
    "Step by step": {
        "sample": (sample.sample, "Let the model write text to calibrate on."),
        "calibrate": (calibrate.calibrate, "Run the model over some data; keep statistics."),
        "plan": (plan.app, "Decide which heads share and how; show or compare plans."),
    },
    "Recover quality": {
        "repair": (repair.repair, "Fit a conversion to its source layer by layer: minutes."),
        "uptrain": (uptrain.uptrain, "Train a conversion towards its source, or on text."),
        "vision-train": (
            vision_train.vision_train,
            "Convert and train an image model, with key-driven attention.",
        ),
    },
    "Serve": {"export": (export.export, "Write a checkpoint for another engine: GGUF, stock, ONNX.")},
    "Look closer": {
        "methods": (methods.methods, "List grouping methods, merge rules and allocations."),
        "families": (families.families, "List the model families that can be converted."),
        "correlate": (correlate.correlate, "Are the methods' scores a guide to the loss, on a model?"),
    },
}
for panel, commands in COMMANDS.items():
    for name, (function, short) in commands.items():
        if isinstance(function, typer.Typer):
            app.add_typer(function, name=name, rich_help_panel=panel, short_help=short)
        else:
            app.command(name, rich_help_panel=panel, short_help=short)(function)
