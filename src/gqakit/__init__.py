"""gqakit: trained attention checkpoints with fewer key/value heads.

`gqakit.api` holds one function for each command; `gqakit.load` loads a converted checkpoint. After `import gqakit`
transformers' own `Auto*.from_pretrained` loads `grouped` checkpoints too. Importing this imports neither torch
nor transformers.
"""

from __future__ import annotations

from gqakit.models.load import load
from gqakit.models.registration import register_lazily
from gqakit.version import __version__

register_lazily()

__all__ = ["__version__", "load"]
