"""`gqakit uptrain`."""

from __future__ import annotations

from collections.abc import Mapping

from gqakit.cli.command import Model, Output, command, flag
from gqakit.cli.console import Screen
from gqakit.recovery.distil.options import UptrainOptions


@command(
    UptrainOptions,
    examples=(
        "uptrain CONVERTED --teacher MODEL --text my.txt -o better",
        "uptrain CONVERTED --teacher MODEL --text my.txt -o better --train attention --learning-rate 5e-4",
    ),
    resumes="the same command continues where it was saved",
)
def uptrain(screen: Screen, model: Model, output: Output, options: UptrainOptions) -> None:
    """Train a converted checkpoint towards its teacher (or on text alone) and write the best weights as a checkpoint.

    Interrupted, the same command continues where it was saved. Under `accelerate launch -m gqakit uptrain …` it runs on
    several devices.
    """
    from gqakit.evaluation.measures import number
    from gqakit.recovery.distil.uptrain import uptrain

    evaluated: list[int] = []

    def notice(step: int, scores: Mapping[str, float]) -> None:
        if step == 0 and evaluated:
            screen.remark(
                "That was no better than the start: from it again, with a third of the learning rate."
            )
        evaluated.append(step)
        said = ", ".join(f"{name} {number(value)}" for name, value in scores.items())
        screen.remark(f"step {step:,}, held out: {said}")

    result = uptrain(model, output, options=options, progress=screen.progress, notice=notice)
    if not result.main:
        return
    if result.step and not result.best_step:
        screen.remark(
            "No step did better than the start on what is held out, so the weights are as they were; "
            f"a {flag('learning_rate')} below {result.learning_rate:g}, more steps or more text may help."
        )
    if screen.as_json:
        screen.json(result)
        return
    rows = [(name, number(result.before[name]), number(value)) for name, value in result.after.items()]
    how = ", stopped early" if result.stopped_early else ""
    if result.learning_rate < options.learning_rate:
        how += f" at a learning rate of {result.learning_rate:.2g}"
    title = (
        f"Uptrained: {result.step:,} steps{how}, {result.tokens:,} tokens; the best, after step "
        f"{result.best_step:,}, is in {output}"
    )
    screen.table(title, ("held out", "before", "after"), rows)
