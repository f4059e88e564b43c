"""The charts of the page as Vega-Lite specifications, made with Altair. The page's script fills in what is chosen."""

from __future__ import annotations

from typing import Any

from gqakit.errors import MissingDependencyError
from gqakit.evaluation.drawing import COLOURS, INK, colours_of

KEYS, VALUES = COLOURS[0], COLOURS[2]
FULL = "16 bit"
"""What the page calls a cache that rounds nothing."""
DASHES = ([1, 0], [6, 3], [2, 3], [8, 3, 2, 3])


def altair() -> Any:
    """The library.

    Raises:
        MissingDependencyError: without the `page` extra.
    """
    try:
        import altair
        import vl_convert  # noqa: F401  # the script that the page carries
    except ImportError as error:
        raise MissingDependencyError("pages need the 'page' extra: pip install 'gqakit[page]'") from error
    return altair


def quality(ways: list[str], caches: list[str]) -> dict[str, Any]:
    """Quality against bytes: a line per way and type of cache, the frontier behind them, values on hover.

    `ways` begin with the source. Colours tell ways apart, marks and dashes the types of cache, or ways too where there is
    one type; a click in the legend singles a way out. Fields of a datum: `kib`, `bytes`, `score`, `way`, `cache`, `name`,
    `ratio`, `shown` and `frontier`.
    """
    alt = altair()
    chosen = alt.selection_point(fields=["way"], bind="legend", name="way_chosen")
    x = alt.X(
        "kib:Q", title="KV cache per token (KiB)", scale=alt.Scale(zero=True, nice=True), axis=alt.Axis(tickCount=8),
    )  # fmt: skip
    y = alt.Y("score:Q", title="", scale=alt.Scale(zero=False))
    made_by = {ways[0]: INK, **colours_of(ways[1:])}  # as in every plot
    colours = alt.Scale(domain=ways, range=[made_by[name] for name in ways])
    base = alt.Chart(alt.NamedData("points")).encode(x=x, y=y)
    coloured = {
        "color": alt.Color("way:N", title="made by", scale=colours, sort=ways),
        "opacity": alt.condition(chosen, alt.value(1.0), alt.value(0.12)),
    }
    shape, dash = alt.Shape("way:N", title="made by", sort=ways, scale=alt.Scale(domain=ways)), {}
    if len(caches) > 1:
        legend: dict[str, Any] = {"title": "cache", "sort": caches}
        shape = alt.Shape("cache:N", scale=alt.Scale(domain=caches), **legend)
        dashes = alt.Scale(domain=caches, range=[DASHES[i % len(DASHES)] for i in range(len(caches))])
        dash = {"strokeDash": alt.StrokeDash("cache:N", scale=dashes, **legend)}
    frontier = (
        base.transform_filter("datum.frontier")
        .mark_line(strokeWidth=9, opacity=0.18, color="#888888", strokeCap="round")
        .encode(order="kib:Q")
    )
    lines = (
        base.transform_filter("datum.way != 'original'")
        .mark_line(strokeWidth=2)
        .encode(**coloured, **dash, detail="cache:N", order="kib:Q")
    )
    marks = base.mark_point(filled=True, size=90).encode(
        **coloured,
        shape=shape,
        tooltip=[
            alt.Tooltip("name:N", title="checkpoint"),
            alt.Tooltip("shown:N", title="score"),
            alt.Tooltip("bytes:Q", title="KV bytes per token", format=","),
            alt.Tooltip("ratio:Q", title="of the source", format=".1%"),
        ],
    )
    # A legend can be clicked where the first layer that has it is the one with the choice.
    return _spec((frontier + lines.add_params(chosen) + marks).properties(width="container", height=380))


def groups() -> dict[str, Any]:
    """Which heads share: a row per layer, a column per source head, its group as colour and number.

    Fields of a datum: `layer`, `order`, `head`, `group`, `side`, `error`.
    """
    alt = altair()
    data = alt.NamedData("heads")
    base = alt.Chart().encode(
        x=alt.X("head:O", title="KV head of the source", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layer:N", title="layer", sort=alt.EncodingSortField("order")),
        tooltip=[
            alt.Tooltip("layer:N"),
            alt.Tooltip("side:N", title="of"),
            alt.Tooltip("head:O", title="source head"),
            alt.Tooltip("group:O", title="shared head"),
            alt.Tooltip("error:Q", title="relative error of the layer", format=".3g"),
        ],
    )
    cells = base.mark_rect(stroke="#8886", strokeWidth=0.5).encode(
        color=alt.Color("group:O", title="shared head", scale=alt.Scale(scheme="tableau20"), legend=None)
    )
    numbers = base.mark_text(fontSize=9, color="#000", opacity=0.7).encode(text="group:O")
    side = alt.Column("side:N", title=None, sort=["keys", "values"])
    drawn = alt.layer(cells, numbers, data=data).properties(width=340, height={"step": 14})
    return _spec(drawn.facet(column=side))


def kept() -> dict[str, Any]:
    """The heads that each layer keeps. Fields of a datum: `layer`, `order`, `side`, `kept`, `error`."""
    return _by_layer("kept", "KV heads kept", tickMinStep=1)


def errors() -> dict[str, Any]:
    """The error of each layer's merges, relative to losing all heads. Fields as of `kept`."""
    return _by_layer("error", "relative error")


def _by_layer(name: str, title: str, **axis: Any) -> dict[str, Any]:
    alt = altair()
    colours = alt.Scale(domain=["keys", "values"], range=[KEYS, VALUES])
    bars = (
        alt.Chart(alt.NamedData("layers"))
        .mark_bar()
        .encode(
            x=alt.X(
                "layer:N", title="layer", sort=alt.EncodingSortField("order"), axis=alt.Axis(labelAngle=0)
            ),
            xOffset=alt.XOffset("side:N"),
            y=alt.Y(f"{name}:Q", title=title, axis=alt.Axis(tickCount=4, **axis)),
            color=alt.Color("side:N", title=None, scale=colours),
            tooltip=["layer:N", "side:N", "kept:Q", alt.Tooltip("error:Q", format=".3g")],
        )
    )
    return _spec(bars.properties(width="container", height=130))


def alike() -> dict[str, Any]:
    """Similarity of heads of one layer. Fields of a datum: `a`, `b`, `value`."""
    alt = altair()
    cells = (
        alt.Chart(alt.NamedData("pairs"))
        .mark_rect()
        .encode(
            x=alt.X("a:O", title="KV head", sort=None, axis=alt.Axis(labelAngle=0)),
            y=alt.Y("b:O", title="KV head", sort=None),
            color=alt.Color("value:Q", title="similarity", scale=alt.Scale(scheme="viridis", domainMax=1)),
            tooltip=[
                alt.Tooltip("a:O", title="head"),
                alt.Tooltip("b:O", title="head"),
                alt.Tooltip("value:Q", title="similarity", format=".3f"),
            ],
        )
    )
    return _spec(cells.properties(width=300, height=300))


def tree() -> dict[str, Any]:
    """The dendrogram of a layer: brackets as lines. Fields of a datum: `bracket`, `at`, `step`, `distance`."""
    alt = altair()
    bare = alt.Axis(
        labels=False, ticks=False, grid=False, titlePadding=24
    )  # the names of heads stand between
    lines = (
        alt.Chart(alt.NamedData("brackets"))
        .mark_line(interpolate="linear", strokeWidth=1.5, color=INK)
        .encode(
            x=alt.X("at:Q", title="KV heads, alike beside each other", axis=bare),
            y=alt.Y("distance:Q", title="1 - similarity"),
            detail="bracket:N",
            order="step:Q",
        )
    )
    names = (
        alt.Chart(alt.NamedData("leaves"))
        .mark_text(dy=10, fontSize=10, baseline="top")
        .encode(x="at:Q", y=alt.datum(0), text="head:N")
    )
    return _spec((lines + names).properties(width=300, height=280))


def _spec(chart: Any) -> dict[str, Any]:
    """The specification without data of its own and without a theme: the page brings both."""
    made = chart.to_dict(validate=True)
    made.pop("config", None)
    return made
