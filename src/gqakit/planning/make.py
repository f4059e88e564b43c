"""`plan`: a budget in, a Plan out."""

from __future__ import annotations

import logging
from pathlib import Path

from gqakit.calibration.store import StatisticsFile
from gqakit.data.batches import Content
from gqakit.errors import UsageError
from gqakit.models.agreement import check_convertible
from gqakit.models.source import Source
from gqakit.options import takes
from gqakit.planning.decide import decide, requests_for
from gqakit.planning.layer_loss.measure import Measurement
from gqakit.planning.options import MakePlanOptions, may_predict
from gqakit.planning.plan import Plan
from gqakit.planning.planner import Planned
from gqakit.progress import Reporter, silent

LOG = logging.getLogger("gqakit")


@takes(MakePlanOptions)
def plan(model: str | Path, options: MakePlanOptions, progress: Reporter = silent) -> Plan:
    """Decide which heads share and how, within a budget. Without statistics the weights alone decide.

    Reads headers and one layer's attention tensors at a time. What layers lose is predicted from the statistics; where these
    have no gradients and data are given, or where it is asked for, it is measured, and the model runs.

    Args:
        model: directory or hub name.
        options: see `MakePlanOptions`; also as keywords.
        progress: True, False or a `gqakit.progress.Reporter`.

    Raises:
        GqakitError: one of BudgetError, PlanError, UsageError, CheckpointError, FamilyError, DataError.
    """
    return explore(model, options, progress).plan


def explore(
    model: str | Path,
    options: MakePlanOptions,
    progress: Reporter = silent,
    *,
    whole_front: bool = False,
    keep: Path | None = None,
) -> Planned:
    """`plan`, together with what it was picked from: every entry's candidates and the allocation's front.

    Args:
        model, options, progress: see `plan`.
        whole_front: look at every number of heads, even where the budget alone decides.
        keep: where to keep measured losses unless `losses` names a file; what it holds about anything else is replaced.
    """
    source = Source.open(model, options.stacks)
    check_convertible(source, strict=options.format != "uniform")
    statistics = StatisticsFile.open(options.statistics) if options.statistics else None
    gradients = statistics is not None and statistics.has_gradients
    predicts = gradients and may_predict(options.layer_loss, options.losses)
    asked = requests_for(
        source.spec,
        options,
        options,
        measurable=options.measurable,
        predictable=predicts,
        workers=options.workers,
    )

    def measurement() -> Measurement:
        content, merge, window = _content(source, options), options.merge, options.window
        _warn_of_other_data(content, statistics)
        return Measurement.on(source, statistics, merge, content, window, options, progress).kept_in(keep)

    choose = options.kv_cache == "auto"
    return decide(source, asked, statistics, measurement, progress, choose=choose, whole_front=whole_front)


def _content(source: Source, options: MakePlanOptions) -> Content:
    """What to measure losses on."""
    kind = source.spec.family.data
    if kind != "text" and not options.names_data:
        raise UsageError(
            f"the allocation weighs what layers lose when they are converted, and a {source.spec.family.model_type} runs on "
            f"{kind}: give it with `{kind}`, or choose `layer_loss=error` or `allocation=uniform`, which measure nothing"
        )
    return options.read()


def _warn_of_other_data(content: Content, statistics: StatisticsFile | None) -> None:
    """Losses measured on other data than the calibration's give another plan than `convert` would make."""
    if statistics is not None and statistics.header.text_sha256 != content.sha256:
        LOG.warning(
            "losses of layers are measured on %s, while the statistics were taken on %s; name the same data, or "
            "choose allocation uniform or layer loss error, which measure nothing",
            content.name,
            statistics.header.text,
        )
