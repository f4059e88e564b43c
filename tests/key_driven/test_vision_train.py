"""`vision-train` on tiny models: what it learns and writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import gqakit, refused, succeeds
from family_models import HEADS, build_family
from tiny_models import all_tensors, hashes
from transformers import AutoModelForImageClassification

from gqakit.checkpoint import Checkpoint, output_lock
from gqakit.data.labelled import read_labelled_images
from gqakit.data.pixels import PixelTransform
from gqakit.errors import OutputError
from gqakit.key_driven.attention import UpdateSchedule
from gqakit.key_driven.classifier import save_classifier
from gqakit.key_driven.install import VARIANTS, freeze, install
from gqakit.key_driven.train import VisionResult, vision_train
from gqakit.models.inspection import inspect
from gqakit.models.load import load
from gqakit.models.remote_code.attention import GroupedHeads
from gqakit.models.source import Source
from gqakit.pipeline import convert
from gqakit.planning.make import plan

SHORT: dict[str, Any] = {
    "batch_size": 8,
    "uptrain_steps": 4,
    "max_steps": 8,
    "window": 3,
    "learning_rate": 1e-3,
    "eval_steps": 4,
    "save_steps": 2,
}
# "dgqa-ema" differs from "dgqa-diff" in one number, which test_key_driven_attention.py looks at.
OURS = [(name, False) for name in ("gqa", "kdgqa", "dgqa-diff", "pgqa")]
PUBLISHED = [(name, True) for name in ("kdgqa", "dgqa-diff", "pgqa")]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny ViT and a tiny DINOv2, without classifiers."""
    folder = tmp_path_factory.mktemp("sources")
    return {family: build_family(folder / family, family) for family in ("vit", "dinov2")}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, brighter by class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    pixels = np.clip(rng.normal(70 + 50 * labels[:, None, None, None], 30, (60, 24, 24, 3)), 0, 255)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, images=pixels.astype(np.uint8), labels=labels, classes=np.array(["dark", "grey", "light"]))
    return path


class Killed(Exception):  # noqa: N818
    """Stands for whatever ends a process."""


def run(source: Path, images: Path, out: str = "out", **changes: Any) -> VisionResult:
    return vision_train(
        source, out, **{**SHORT, "images": images, "device": "cpu", "progress": False, **changes}
    )


def killed_at(phase: str, step: int) -> Any:
    def notice(name: str, at: int, scores: Any) -> None:
        if (name, at) == (phase, step):
            raise Killed

    return notice


def logits(model: Any, path: Path, images: Path) -> torch.Tensor:
    transform = PixelTransform(Checkpoint.open(str(path)))
    with torch.inference_mode():
        return model(pixel_values=transform(read_labelled_images(images).images.pixels[:12])).logits


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_it_learns_and_writes_a_grouped_classifier(sources, images, family):
    result = run(
        sources[family], images, method="kdgqa", uptrain_steps=30, max_steps=60, eval_steps=30, save_steps=60,
        uptrain_learning_rate=1e-3,
    )  # fmt: skip
    out = Path("out")
    assert result.features is not None
    assert result.features[1] < result.features[0]
    assert result.accuracy > 0.8
    assert result.steps == {"uptrain": 30, "finetune": 60}
    assert (result.train_images, result.held_out_images) == (48, 12)
    assert not out.with_name(out.name + ".vision").exists()
    found = inspect(out)
    assert found.model_type == f"gqakit_{family}"
    assert found.key_heads == found.value_heads == (4, 4)
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "dark", "1": "grey", "2": "light"}
    for layer, counts in zip(config["gqakit"]["layers"], result.allocation, strict=True):
        assert sum(counts) == HEADS
        assert min(counts) >= 1
        expected = [head for head, count in enumerate(counts) for _ in range(count)]
        assert layer["key_head_of_query"] == layer["value_head_of_query"] == expected
    ours = load(out, dtype=torch.float32)
    assert type(ours).__name__.endswith("ForImageClassification")
    shipped = AutoModelForImageClassification.from_pretrained("out", trust_remote_code=True)
    assert torch.equal(logits(shipped, out, images), logits(ours, out, images))
    record = json.loads((out / "gqakit-vision.json").read_text())
    assert record["result"]["accuracy"] == result.accuracy
    assert record["images"]["classes"] == ["dark", "grey", "light"]
    assert "method `kdgqa`" in (out / "README.md").read_text()


@pytest.mark.parametrize(("method", "as_published"), [*OURS, *PUBLISHED])
def test_what_is_written_is_what_was_trained(sources, images, method, as_published):
    result = run(sources["dinov2"], images, method=method, as_published=as_published, max_steps=7)
    out = Path("out")
    held_out = read_labelled_images(images)
    model = load(out, dtype=torch.float32)
    assert [tuple(each) for each in result.allocation] == [
        tuple(heads.key_head_of_query.count(g) for g in range(heads.num_key_heads))
        for heads in model.config.layer_heads()
    ]
    if not as_published:
        assert result.in_training == {"loss": result.loss, "accuracy": result.accuracy}
    # The same images by hand: they are held out by a shuffle that is always the same.
    order = np.random.default_rng(0).permutation(60)[:12]
    transform = PixelTransform(Checkpoint.open("out"))
    with torch.inference_mode():
        seen = model(pixel_values=transform(held_out.images.pixels[order])).logits
    right = seen.argmax(-1).numpy() == held_out.labels[order]
    assert result.accuracy == pytest.approx(right.mean())


@pytest.mark.parametrize("method", VARIANTS)
def test_a_frozen_model_computes_what_it_did_in_memory(sources, images, method, tmp_path):
    model, spec = grouped(sources["dinov2"], tmp_path)
    install(model, spec, method, UpdateSchedule(window=2, decay=0.5), as_published=False)
    transform = PixelTransform(Checkpoint.open(str(tmp_path / "student")))
    pixels = transform(read_labelled_images(images).images.pixels)
    with torch.no_grad():
        for module in attention(model, spec):
            module.k_proj.weight[:8] *= 5  # the first KV head has long keys
    model.train()
    for part in pixels.split(15):
        model(pixel_values=part * torch.linspace(0.2, 3, len(part)).view(-1, 1, 1, 1))
    model.eval()
    before = logits(model, tmp_path / "student", images)
    allocation = freeze(model, spec)
    assert torch.equal(logits(model, tmp_path / "student", images), before)
    if method != "pgqa":
        assert any(len(set(each)) > 1 for each in allocation)
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", dtype=torch.float32)
    assert all(isinstance(m.grouped_heads, GroupedHeads) for m in attention(again, spec))
    assert torch.equal(logits(again, tmp_path / "student", images), before)


def test_kv_heads_that_nothing_reads_leave_a_published_checkpoint(sources, images, tmp_path):
    model, spec = grouped(sources["vit"], tmp_path)
    install(model, spec, "kdgqa", UpdateSchedule(), as_published=True)
    model.train()
    batch = PixelTransform(Checkpoint.open(str(tmp_path / "student")))(
        read_labelled_images(images).images.pixels[:12]
    )
    with torch.no_grad():
        before = model(pixel_values=batch).logits
    allocation = freeze(model.eval(), spec)
    assert all(0 not in each for each in allocation)
    assert min(map(len, allocation)) < 4
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=batch).logits, before)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(
        logits(load(tmp_path / "saved"), tmp_path / "student", images),
        logits(model, tmp_path / "student", images),
    )
    assert Source.open(tmp_path / "saved").spec.key_heads == tuple(map(len, allocation))


def grouped(source: Path, folder: Path) -> tuple[Any, Any]:
    """A classifier of three classes, converted to 4 KV heads."""
    save_classifier(Checkpoint.open(str(source)), folder / "teacher", ["a", "b", "c"], 0, 0)
    how = {"method": "neighbour", "merge": "mean", "allocation": "uniform", "format": "grouped"}
    made = plan(folder / "teacher", kv_heads=4, progress=False, **how)
    convert(folder / "teacher", folder / "student", plan=made, evaluate=False, progress=False)
    return load(folder / "student", dtype=torch.float32), Source.open(folder / "student").spec


def attention(model: Any, spec: Any) -> list[Any]:
    return [spec.attention_module(model, layer) for layer in range(spec.num_layers)]


@pytest.mark.parametrize(
    ("method", "as_published"), [("dgqa-diff", False), ("pgqa", False), ("dgqa-ema", True)]
)
def test_a_killed_run_comes_to_the_same_bits(sources, images, method, as_published):
    changes = {"method": method, "as_published": as_published}
    whole = run(sources["dinov2"], images, "whole", **changes)
    for where in (("uptrain", 4), ("finetune", 4), ("finetune", 8)):
        with pytest.raises(Killed):
            run(sources["dinov2"], images, "killed", notice=killed_at(*where), **changes)
    again = run(sources["dinov2"], images, "killed", **changes)
    assert again.resumed
    assert not whole.resumed
    assert (again.accuracy, again.loss, again.features) == (whole.accuracy, whole.loss, whole.features)
    assert again.allocation == whole.allocation
    assert again.in_training == whole.in_training
    ours, theirs = hashes(Path("killed")), hashes(Path("whole"))
    assert ours["model.safetensors"] == theirs["model.safetensors"]
    assert ours["config.json"] == theirs["config.json"]


def test_another_run_is_not_continued(sources, images):
    with pytest.raises(Killed):
        run(sources["dinov2"], images, notice=killed_at("finetune", 4))
    with pytest.raises(OutputError, match=r"window was 3, is now 2.*`restart=True`"):
        run(sources["dinov2"], images, window=2)
    assert not run(sources["dinov2"], images, window=2, restart=True).resumed


def test_one_run_at_a_time(sources, images):
    with (
        ThreadPoolExecutor(1) as other,
        output_lock(Path("out")),
        pytest.raises(OutputError, match="in use by another run"),
    ):
        other.submit(run, sources["dinov2"], images).result()


def test_seeds_decide(sources, images):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(sources["vit"], images, name, seed=seed)
    weights = {name: hashes(Path(name))["model.safetensors"] for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_another_resolution(sources, images, family, tmp_path):
    source = Checkpoint.open(str(sources[family]))
    save_classifier(source, tmp_path / "same", ["a", "b"], 0, 0)
    save_classifier(source, tmp_path / "larger", ["a", "b"], 40, 0)
    pixels = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    same, larger = (load(tmp_path / name, dtype=torch.float32) for name in ("same", "larger"))
    told = {"interpolate_pos_encoding": True} if family == "vit" else {}
    with torch.inference_mode():
        torch.testing.assert_close(
            larger(pixel_values=pixels).logits, same(pixel_values=pixels, **told).logits
        )
    assert larger.config.image_size == 40
    result = run(sources[family], images, image_size=40)
    assert json.loads(Path("out/config.json").read_text())["image_size"] == 40
    assert result.held_out_images == 12


def test_an_image_processor_follows_the_resolution(sources, images, tmp_path):
    pytest.importorskip("PIL")
    from transformers import ViTImageProcessor

    source = tmp_path / "source"
    build_family(source, "vit")
    ViTImageProcessor(
        size={"height": 24, "width": 24}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(source)
    run(source, images, image_size=16, uptrain_steps=1, max_steps=1)
    settings = json.loads(Path("out/preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 16, "width": 16}
    assert PixelTransform(Checkpoint.open("out"))(np.zeros((2, 24, 24, 3), np.uint8)).shape == (2, 3, 16, 16)


def test_a_classifier_of_the_same_classes_is_kept(sources, images, tmp_path):
    run(sources["dinov2"], images, "first", uptrain_epochs=0, uptrain_steps=0)
    first = Checkpoint.open("first")
    save_classifier(first, tmp_path / "kept", ["dark", "grey", "light"], 0, 1)
    save_classifier(first, tmp_path / "other", ["dark", "grey", "lighter"], 0, 1)
    before, kept, other = (
        all_tensors(path)["classifier.weight"]
        for path in (Path("first"), tmp_path / "kept", tmp_path / "other")
    )
    assert torch.equal(before, kept)
    assert not torch.equal(before, other)


def test_a_conversion_goes_on_where_it_is(sources, images):
    first = run(sources["dinov2"], images, "fold", method="fold", kv_heads=3)
    assert all(len(each) == 3 for each in first.allocation)
    second = run(Path("fold"), images, "again", teacher=str(sources["dinov2"]))
    assert second.allocation == first.allocation
    equal = run(sources["dinov2"], images, "equal", method="gqa")
    assert equal.allocation == ((2, 2, 2, 2),) * 2
    third = run(Path("equal"), images, "driven", method="kdgqa", uptrain_epochs=0, uptrain_steps=0)
    assert third.features is None
    assert third.steps == {"finetune": 8}


def test_the_command(sources, images):
    options = [
        "--method",
        "dgqa-ema",
        "--window",
        "3",
        "--max-steps",
        "6",
        "--uptrain-steps",
        "2",
        "--batch-size",
        "8",
    ]
    ran = succeeds("vision-train", sources["vit"], "-o", "out", "--images", images, "--json", *options)
    said = json.loads(ran.out)
    assert said["method"] == "dgqa-ema"
    assert 0 <= said["accuracy"] <= 1
    assert said["steps"] == {"uptrain": 2, "finetune": 6}
    assert "finetune, step 6, held out: loss" in ran.err
    shown = succeeds("inspect", "out")
    assert "KV heads per layer" in shown.out
    again = succeeds(
        "vision-train", sources["vit"], "-o", "out", "--images", images, "-q", "--overwrite", *options
    )
    assert "accuracy" in again.out
    assert "Query heads that read each KV head" in again.out


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (
            2,
            ["--window", "0", "--decay", "1"],
            ["--window is 0, expected a number at least 1", "--decay is 1.0"],
        ),
        (2, ["--as-published"], ["--as-published is for kdgqa, dgqa-ema"]),
        (2, ["--image-size", "20"], ["--image-size 20 is no multiple", "patches of 8"]),
        (2, ["--teacher", "x"], ["--teacher is for a conversion"]),
        (5, ["--kv-heads", "8"], ["--kv-heads 8 of 8: expected 1 to 7"]),
        (9, ["--images", "missing.npz"], ["missing.npz is neither an .npz"]),
        (9, ["--held-out", "60"], ["60, of which 60 are to be held out"]),
        (9, ["--test-images", "missing"], ["missing is neither"]),
    ],
)
def test_what_is_refused(sources, images, code, arguments, says):
    refused(code, "vision-train", sources["dinov2"], "-o", "out", "--images", images, *arguments, says=says)


def test_what_is_refused_of_other_models(sources, images, model):
    run(sources["dinov2"], images, "made", method="kdgqa", kv_heads=2)
    run(sources["dinov2"], images, "other", max_steps=1, uptrain_steps=1)
    unequal = json.loads(Path("made/config.json").read_text())
    unequal["gqakit"]["layers"][0]["key_head_of_query"] = [0, 1, 1, 1, 1, 1, 1, 1]
    Path("made/config.json").write_text(json.dumps(unequal))
    told = ["-o", "out", "--images", images]
    for code, source, arguments, says in (
        (2, model(), [], ["vision-train is for ViT and DINOv2", "llama"]),
        (2, "other", [], ["give it as --teacher, or --uptrain-epochs 0"]),
        (2, "made", ["--method", "fold"], ["--method fold is for a model that is converted first"]),
        (2, "made", ["--kv-heads", "1"], ["--kv-heads is for a model"]),
        (7, sources["dinov2"], ["-o", "made"], ["made"]),
        (7, "made", ["--teacher", "other", "-o", "other", "--overwrite"], ["other: is the teacher"]),
        (3, "nowhere", [], ["nowhere"]),
    ):
        refused(code, "vision-train", source, *told, *arguments, says=says)
    others = ["method kdgqa begins with consecutive equal groups; layer 0 has others"]
    refused(2, "vision-train", "made", *told, "--uptrain-epochs", "0", "--method", "kdgqa", says=others)


def test_a_loss_that_is_no_number_stops_the_run(sources, images):
    ran = gqakit(
        "vision-train", sources["dinov2"], "-o", "out", "--images", images, "--method", "kdgqa", "--learning-rate", "1e30",
        "--uptrain-steps", "1", "--max-steps", "30", "--save-steps", "1", "--warmup-steps", "0", "--max-grad-norm", "0",
    )  # fmt: skip
    assert ran.code == 11
    assert "the last good state is kept in" in ran.err or "no state was saved" in ran.err
    assert not Path("out").exists()
