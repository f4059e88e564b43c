"""What lies beside the weights comes along through every command that writes a checkpoint; other weights do not."""

from __future__ import annotations

from pathlib import Path

from command import succeeds
from tiny_fixtures import Models

from gqakit.pipeline import convert
from gqakit.planning.make import plan
from gqakit.recovery.repair.repair import repair

ALONG = (
    *("modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "preprocessor_config.json"),
    *("LICENSE", "chat_template.jinja", "nobody-knows.xyz", "assets/picture.svg"),
)
OTHER_WEIGHTS = ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "model.onnx", "model-q8.gguf")
OF_TOOLS = (".cache/huggingface/download/x.metadata", ".git/config", ".git/objects/ab")


def test_everything_but_weights_comes_along_whole(copy: Models) -> None:
    source = copy("llama", intermediate_size=256)
    for name in (*ALONG, *OTHER_WEIGHTS, *OF_TOOLS):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[]" if name == "modules.json" else f'{{"name": "{name}"}}\n')
    made = plan(source, kv_heads=4, method="neighbour", merge="mean", format="grouped", progress=False)
    convert(source, "converted", plan=made, progress=False)
    size = {"tokens": 256, "window": 32, "steps": 2, "evaluate": False}
    repair("converted", "repaired", source=source, progress=False, **size)
    for target in ("uniform", "nemotron-nas"):
        succeeds("export", "repaired", "--to", target, "-o", target)
    for out in map(Path, ("converted", "repaired", "uniform", "nemotron-nas")):
        for name in ALONG:
            assert (out / name).read_bytes() == (source / name).read_bytes(), f"{out / name}"
        assert not [name for name in (*OTHER_WEIGHTS, *OF_TOOLS) if (out / name).exists()]
        assert not [folder for folder in (".cache", ".git", "onnx") if (out / folder).exists()]
