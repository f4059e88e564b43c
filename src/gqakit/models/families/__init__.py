"""The families by `model_type`. A new family is one more entry here and its data in a file beside this one."""

from gqakit.models.families.base import Family
from gqakit.models.families.bert import (
    BERT,
    CAMEMBERT,
    DISTILBERT,
    ELECTRA,
    MODERNBERT,
    MPNET,
    ROBERTA,
    ROBERTA_PRELAYERNORM,
    XLM_ROBERTA,
)
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
from gqakit.models.families.seq2seq import (
    BART,
    BLENDERBOT,
    BLENDERBOT_SMALL,
    M2M_100,
    MARIAN,
    MBART,
    MOONSHINE,
    PEGASUS,
    T5,
    WHISPER,
)
from gqakit.models.families.speech import HUBERT, WAV2VEC2
from gqakit.models.families.vision import (
    CLIP,
    CLIP_TEXT,
    CLIP_VISION,
    DEIT,
    DINOV2,
    DINOV2_REGISTERS,
    SIGLIP,
    SIGLIP_TEXT,
    SIGLIP_VISION,
    VIT,
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *(LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, GEMMA2, GEMMA3, OLMO2, STABLELM),
        *(GEMMA, OLMO, MIXTRAL, QWEN2_MOE, STARCODER2, GRANITE, SMOLLM3, PHI, COHERE, GPTJ, CODEGEN),
        HUNYUAN,
        *RECENT,
        *(GPT2, GPT_NEOX, OPT, BLOOM, FALCON, GPT_BIGCODE, MPT),
        *MULTIMODAL,
        *(WHISPER, MOONSHINE, WAV2VEC2, HUBERT),
        *(T5, BART, MBART, MARIAN, PEGASUS, M2M_100, BLENDERBOT, BLENDERBOT_SMALL),
        *(
            BERT,
            ROBERTA,
            XLM_ROBERTA,
            CAMEMBERT,
            ROBERTA_PRELAYERNORM,
            ELECTRA,
            DISTILBERT,
            MPNET,
            MODERNBERT,
        ),
        *(VIT, DEIT, DINOV2, DINOV2_REGISTERS, CLIP_VISION, SIGLIP_VISION),
        *(CLIP_TEXT, SIGLIP_TEXT, CLIP, SIGLIP),
    )
}
