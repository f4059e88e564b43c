"""Running grouped checkpoints in transformers. Importing this imports neither torch nor transformers."""

from gqakit.runtime.grouped_config import grouped_config
from gqakit.runtime.load import load
from gqakit.runtime.registration import register, register_lazily
from gqakit.runtime.shipping import shipped_code

__all__ = ["grouped_config", "load", "register", "register_lazily", "shipped_code"]
