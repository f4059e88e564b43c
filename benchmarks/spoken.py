"""Sentences of a text, read aloud by flite in four voices: recordings to calibrate a speech model on.

    python benchmarks/spoken.py TEXT OUT [--count 48]

Needs the program flite (Debian package of that name). Sentences have 60 to 200 characters and are spread over the text.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

VOICES = ("slt", "rms", "awb", "kal16")


def main() -> None:
    """Write OUT/000.wav and on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=48)
    options = parser.parse_args()
    found = sentences(options.text.read_text(encoding="utf-8"))
    chosen = found[:: max(1, len(found) // options.count)][: options.count]
    options.out.mkdir(parents=True, exist_ok=True)
    for index, sentence in enumerate(chosen):
        command = ["flite", "-voice", VOICES[index % len(VOICES)], "-t", sentence]
        subprocess.run([*command, "-o", str(options.out / f"{index:03d}.wav")], check=True)
    print(f"{len(chosen)} sentences in {options.out}")


def sentences(text: str) -> list[str]:
    """Sentences that can be read: no headings, no marks of unknown words, few digits."""
    parts = [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n", text)]
    plain = [re.sub(r"\s+([,.;:!?'])", r"\1", part.replace(" @-@ ", "-")) for part in parts]
    return [p for p in plain if 60 <= len(p) <= 200 and re.fullmatch(r"[A-Za-z][A-Za-z ,.;:!?'()\-]+", p)]


if __name__ == "__main__":
    main()
