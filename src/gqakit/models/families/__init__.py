"""The families by `model_type`. A new family is one more entry here and its data in a file beside this one."""

from gqakit.models.families.base import Family
from gqakit.models.families.bert import BERT, DISTILBERT, ELECTRA, MPNET, ROBERTA, XLM_ROBERTA
from gqakit.models.families.gpt import BLOOM, FALCON, GPT2, GPT_BIGCODE, GPT_NEOX, MPT, OPT
from gqakit.models.families.llama import GEMMA2, GEMMA3, LLAMA, MISTRAL, OLMO2, PHI3, QWEN2, QWEN3, STABLELM
from gqakit.models.families.multimodal import MULTIMODAL
from gqakit.models.families.normalised import HUNYUAN
from gqakit.models.families.recent import RECENT
from gqakit.models.families.rotary import (
    CODEGEN,
    COHERE,
    GEMMA,
    GPTJ,
    GRANITE,
    MIXTRAL,
    OLMO,
    PHI,
    QWEN2_MOE,
    SMOLLM3,
    STARCODER2,
)
from gqakit.models.families.seq2seq import T5, WHISPER
from gqakit.models.families.vision import CLIP_VISION, DEIT, DINOV2, DINOV2_REGISTERS, VIT

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *(LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, GEMMA2, GEMMA3, OLMO2, STABLELM),
        *(GEMMA, OLMO, MIXTRAL, QWEN2_MOE, STARCODER2, GRANITE, SMOLLM3, PHI, COHERE, GPTJ, CODEGEN),
        HUNYUAN,
        *RECENT,
        *(GPT2, GPT_NEOX, OPT, BLOOM, FALCON, GPT_BIGCODE, MPT),
        *MULTIMODAL,
        *(WHISPER, T5),
        *(BERT, ROBERTA, XLM_ROBERTA, ELECTRA, DISTILBERT, MPNET),
        *(VIT, DEIT, DINOV2, DINOV2_REGISTERS, CLIP_VISION),
    )
}
