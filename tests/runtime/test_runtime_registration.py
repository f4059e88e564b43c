"""Registration: importing is cheap, and the auto classes know the families in either import order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gqakit

SOURCE = str(Path(gqakit.__file__).parents[1])

USE = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING
kind = type(AutoConfig.for_model("gqakit_qwen3"))
assert MODEL_FOR_CAUSAL_LM_MAPPING[kind].__name__ == "GqakitQwen3ForCausalLM"
assert MODEL_MAPPING[kind].__name__ == "GqakitQwen3Model"
assert "numba" not in sys.modules  # not before it is needed
"""
REGISTER = "from gqakit.models.registration import register_lazily\nregister_lazily()\nregister_lazily()\n"
STOCK = "from transformers.models.llama.modeling_llama import LlamaForCausalLM\n"


def run(code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": SOURCE}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True, check=False
    )


def test_importing_and_registering_lazily_imports_neither_torch_nor_transformers():
    done = run(
        "import sys, gqakit.models.registration\n"
        + REGISTER
        + "print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(
    "code",
    ["from transformers import AutoModelForCausalLM\n" + REGISTER + USE, REGISTER + STOCK + USE],
    ids=["after transformers", "before a stock model"],
)
def test_auto_classes_know_the_families(code):
    done = run(code)
    assert done.returncode == 0, done.stderr
