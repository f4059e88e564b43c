"""The plan file: what goes in comes out, and nothing else goes in."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gqakit.errors import PlanError
from gqakit.planning.plan import PLAN_VERSION, Plan, diff_plans


def plan_data(**changes) -> dict:
    """A plan of two layers with four KV heads, as a dict."""
    layer = {"key": [0, 1, 0, 1], "value": [0, 1, 0, 1], "key_error": 0.125, "value_error": 0.5}
    return {
        "gqakit_plan": 1,
        "source": {
            "name": "tiny",
            "model_type": "llama",
            "fingerprint": "sha256:" + "ab" * 32,
            "num_layers": 2,
            "num_heads": 8,
            "num_kv_heads": 4,
            "head_dim": 16,
        },
        "budget": {
            "asked": "kv_ratio 0.5",
            "kv_ratio_asked": 0.5,
            "kv_ratio": 0.5,
            "kv_bytes_per_token_before": 512,
            "kv_bytes_per_token": 256,
        },
        "format": "uniform",
        "method": "optimal",
        "allocation": "uniform",
        "merging": {"rule": "fold", "key": "fold", "value": "fold"},
        "seed": 0,
        "moments": {"path": "m.safetensors", "fingerprint": "sha256:" + "cd" * 32, "tokens": 100},
        "versions": {"gqakit": "1"},
        "notes": [],
        "layers": [layer, {**layer, "key_error": 0.25}],
        **changes,
    }


def written(tmp_path, data) -> Plan:
    path = tmp_path / "plan.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return Plan.load(path)


positive, ratios, errors = st.integers(1, 10**12), st.floats(1e-6, 1), st.floats(0, 1e6)


def first_occurrence(labels: list[int]) -> list[int]:
    """Canonical labels, without the core: its signature checks draw random numbers, forbidden in a strategy."""
    order = list(dict.fromkeys(labels))
    return [order.index(label) for label in labels]


@st.composite
def plans(draw) -> dict:
    heads, layers = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    labels = st.lists(st.integers(0, 8), min_size=heads, max_size=heads).map(first_occurrence)
    layer = st.fixed_dictionaries(
        {"key": labels, "value": labels, "key_error": errors, "value_error": errors}
    )
    source = {"num_layers": layers, "num_heads": heads, "num_kv_heads": heads, "head_dim": draw(positive)}
    words = {key: draw(st.text()) for key in ("name", "model_type", "fingerprint")}
    return plan_data(
        source=source | words,
        budget={
            "asked": draw(st.text()),
            "kv_ratio_asked": draw(ratios),
            "kv_ratio": draw(ratios),
            "kv_bytes_per_token_before": draw(positive),
            "kv_bytes_per_token": draw(positive),
        },
        format="grouped",
        method=draw(st.text()),
        seed=draw(st.integers()),
        moments=draw(
            st.none() | st.just({"path": draw(st.text()), "fingerprint": "x", "tokens": draw(positive)})
        ),
        versions=draw(st.dictionaries(st.text(), st.text(), max_size=3)),
        notes=draw(st.lists(st.text(), max_size=3)),
        layers=draw(st.lists(layer, min_size=layers, max_size=layers)),
    )


@given(plans())
@settings(max_examples=80)
def test_round_trip(tmp_path_factory, data):
    plan = Plan.model_validate(data)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.save(path)
    again = Plan.load(path)
    assert again == plan
    assert again.to_json() == plan.to_json() == path.read_bytes().decode()
    assert again.fingerprint == plan.fingerprint
    assert list(diff_plans(plan, again)) == []
    assert json.loads(plan.to_json()) == plan.model_dump(mode="json")


@pytest.mark.parametrize("text", ["runs [ 3 ]/m", "[1,  2]", "[ ]", "[\n1,\n2\n]", "a [1"])
def test_brackets_in_names_stay_as_they_are(tmp_path, text):
    data = plan_data(notes=[text])
    data["source"]["name"] = text
    assert Plan.model_validate(json.loads(Plan.model_validate(data).to_json())).source.name == text
    assert written(tmp_path, Plan.model_validate(data).to_json()).notes == (text,)


def test_same_content_same_bytes():
    shuffled = dict(reversed(plan_data().items()))
    assert Plan.model_validate(plan_data()).to_json() == Plan.model_validate(shuffled).to_json()


def test_fingerprint_tells_plans_apart():
    one, two = Plan.model_validate(plan_data()), Plan.model_validate(plan_data(seed=1))
    assert one.fingerprint != two.fingerprint
    assert one.fingerprint.startswith("sha256:")


def test_lists_of_heads_stand_on_one_line():
    text = Plan.model_validate(plan_data()).to_json()
    assert text.count('"key": [0, 1, 0, 1],\n') == 2
    assert '"notes": [],\n' in text
    assert text.endswith("}\n")
    assert '\n  "source": {\n    "name": "tiny",\n' in text


def test_groupings_are_the_layers():
    plan = Plan.model_validate(plan_data())
    assert [g.key.groups for g in plan.groupings] == [((0, 2), (1, 3))] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown key 'extra'"),
        ({"source": {**plan_data()["source"], "colour": 1}}, r"unknown key 'source\.colour'"),
        ({"layers": [{**plan_data()["layers"][0], "heads": 1}] * 2}, r"unknown key 'layers\.0\.heads'"),
        ({"budget": {**plan_data()["budget"], "kv_ratio": 1.5}}, r"budget\.kv_ratio"),
        ({"format": "gguf"}, "format: "),
        ({"moments": 3}, "moments: "),
        ({"layers": plan_data()["layers"][:1]}, "1 layers planned, the source has 2"),
        ({"source": {**plan_data()["source"], "num_kv_heads": 8}}, "layer 0 groups 4 heads of 8"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    with pytest.raises(PlanError, match=message):
        written(tmp_path, plan_data(**change))


def layers_with(**change) -> dict:
    layer = plan_data()["layers"][0]
    return {"layers": [layer, layer | change]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": [1, 0, 1, 0]}, r"layers\.1.*\[1, 0, 1, 0\] are not canonical"),
        ({"value": [0, 2, 0, 2]}, r"layers\.1.*not canonical"),
        ({"value": [0, 1, 0]}, r"4 key heads but 3 value heads"),
        ({"key_error": -0.1}, r"layers\.1\.key_error"),
        ({"key": [], "value": []}, "at least one head"),
        ({"key": [0, 0, 0, 1]}, "format 'uniform' asks for the same number of equal groups"),
        ({"key": [0, 0, 0, 0], "value": [0, 0, 0, 0]}, "format 'uniform' asks for the same number"),
        ({"value": [0, 0, 1, 1]}, "format 'uniform' asks for"),
    ],
)
def test_layers_that_make_no_plan(tmp_path, change, message):
    with pytest.raises(PlanError, match=message):
        written(tmp_path, plan_data(**layers_with(**change)))


def test_every_offending_key_is_named(tmp_path):
    with pytest.raises(PlanError) as caught:
        written(tmp_path, plan_data(extra=1, format="gguf", seed="x"))
    assert all(key in str(caught.value) for key in ("extra", "format", "seed"))


def test_uneven_layers_fit_the_grouped_format(tmp_path):
    data = plan_data(format="grouped", **layers_with(key=[0, 0, 0, 1], value=[0, 1, 2, 3]))
    assert written(tmp_path, data).groupings[1].value.is_identity


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "no key 'gqakit_plan'"),
        ("{}", "no key 'gqakit_plan'"),
        (json.dumps(plan_data(gqakit_plan=2)), f"has version 2, this gqakit reads version {PLAN_VERSION}"),
        (json.dumps(plan_data(gqakit_plan="1")), "has version '1'"),
    ],
)
def test_files_that_are_no_plan_of_this_version(tmp_path, content, message):
    with pytest.raises(PlanError, match=message):
        written(tmp_path, content)


def test_missing_file(tmp_path):
    with pytest.raises(PlanError, match=r"cannot read plan .*nowhere\.json: No such file"):
        Plan.load(tmp_path / "nowhere.json")


def test_plans_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Plan.model_validate(plan_data()).seed = 3


def test_only_for_the_model_it_was_made_for():
    plan = Plan.model_validate(plan_data())
    plan.check_source(plan.source.fingerprint, "tiny")
    with pytest.raises(PlanError, match=r"made for tiny \(sha256:abababababab…\), other is another model"):
        plan.check_source("sha256:" + "00" * 32, "other")


def test_diff():
    one = Plan.model_validate(plan_data())
    two = Plan.model_validate(plan_data(seed=3, moments=None, **layers_with(key_error=9.0)))
    assert list(diff_plans(one, two)) == [
        ("seed", "0", "3"),
        ("moments", json.dumps(plan_data()["moments"]), "null"),
        ("layers.1.key_error", "0.25", "9.0"),
    ]
    source = {**plan_data()["source"], "num_layers": 1}
    shorter = Plan.model_validate(plan_data(source=source, layers=plan_data()["layers"][:1]))
    fields = [field for field, _, _ in diff_plans(one, shorter)]
    assert fields == ["source.num_layers", "layers.1"]
