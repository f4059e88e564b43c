"""Running grouped checkpoints in transformers. Importing this imports neither torch nor transformers."""

from gqakit.runtime.load import load, look_on
from gqakit.runtime.registration import register, register_lazily
from gqakit.runtime.shipping import shipped_code

__all__ = ["load", "look_on", "register", "register_lazily", "shipped_code"]
