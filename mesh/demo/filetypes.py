"""Files made in code, and magika's answer to what kind of file each one is.

Features follow the package's ``Magika._extract_features_from_seekable`` for ``standard_v3_3``: the first and the last
1024 bytes of the file without its outer white space, 256 where there is none. Not here: files on disk; magika's own
thresholds and overrides, the verdict is the best class alone.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
import wave
import zipfile
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image

from mesh.demo.request import Request, Tensors, distribution
from mesh.demo.text_images import WORDS

INPUT, OUTPUT = "bytes", "target_label"
BLOCK, SIDE, PADDING = 4096, 1024, 256
"""Bytes read from each end; bytes kept of each; the token for none."""

Maker = Callable[[np.random.Generator], bytes]


def features(content: bytes) -> npt.NDArray[np.int32]:
    """i32[1,2048] of a file's bytes, as the model reads them."""
    start = content[:BLOCK].lstrip()[:SIDE]
    end = content[-BLOCK:].rstrip()[-SIDE:]
    tokens = np.full((1, 2 * SIDE), PADDING, np.int32)
    tokens[0, : len(start)] = np.frombuffer(start, np.uint8)
    tokens[0, 2 * SIDE - len(end) :] = np.frombuffer(end, np.uint8)
    return tokens


def kind_request(labels: Sequence[str]) -> Callable[[np.random.Generator], Request]:
    """What kind of file is this? ``labels`` are magika's kinds by class."""

    def read(outputs: Tensors) -> str:
        return labels[int(distribution(outputs, OUTPUT, (1, len(labels)))[0].argmax())]

    def request(rng: np.random.Generator) -> Request:
        kind = str(rng.choice(list(MAKERS)))
        return Request({INPUT: features(MAKERS[kind](rng))}, kind, read)

    return request


def _words(rng: np.random.Generator, count: int) -> list[str]:
    return [str(word) for word in rng.choice(WORDS, count, replace=False)]


def _sentence(rng: np.random.Generator) -> str:
    return " ".join(_words(rng, 8)).capitalize() + "."


def _records(rng: np.random.Generator) -> list[dict[str, str | int | float]]:
    return [
        {"id": n, "name": word, "count": int(rng.integers(1, 500)), "price": round(float(rng.uniform(1, 90)), 2)}
        for n, word in enumerate(_words(rng, 15))
    ]


def make_python(rng: np.random.Generator) -> bytes:
    first, second, *rest = _words(rng, 8)
    text = f'"""{_sentence(rng)}"""\n\nimport os\nimport sys\nfrom collections import defaultdict\n\n\n'
    text += (
        f"class {first.capitalize()}:\n    def __init__(self, {second}=None):\n        self.{second} = {second} or []\n"
    )
    for name in rest:
        text += f"\n    def {name}(self, value: int) -> list[int]:\n        if value > {rng.integers(99)}:\n"
        text += (
            f"            raise ValueError(f'{{value}} is no {name}')\n        return [x for x in self.{second} if x]\n"
        )
    return f"{text}\n\nif __name__ == '__main__':\n    print({first.capitalize()}(sys.argv[1:]))\n".encode()


def make_json(rng: np.random.Generator) -> bytes:
    return json.dumps({"site": _words(rng, 1)[0], "total": 15, "items": _records(rng)}, indent=2).encode()


def make_csv(rng: np.random.Generator) -> bytes:
    table, records = io.StringIO(), _records(rng)
    writer = csv.DictWriter(table, records[0].keys())
    writer.writeheader()
    writer.writerows(records)
    return table.getvalue().encode()


def make_html(rng: np.random.Generator) -> bytes:
    title = _sentence(rng)
    text = f'<!DOCTYPE html>\n<html lang="en">\n<head>\n  <meta charset="utf-8">\n  <title>{title}</title>\n'
    text += '  <link rel="stylesheet" href="style.css">\n  <script src="main.js"></script>\n</head>\n'
    text += f'<body>\n  <h1 id="top">{title}</h1>\n  <ul>\n'
    for word in _words(rng, 6):
        text += f'    <li><a href="/{word}.html">{word}</a></li>\n'
    text += "  </ul>\n"
    for _ in range(4):
        text += f"  <p>{_sentence(rng)}<br>{_sentence(rng)}</p>\n"
    return f"{text}</body>\n</html>\n".encode()


def make_xml(rng: np.random.Generator) -> bytes:
    root = ElementTree.Element("catalogue")
    for record in _records(rng):
        item = ElementTree.SubElement(root, "item", id=str(record["id"]))
        ElementTree.SubElement(item, "name").text = str(record["name"])
        ElementTree.SubElement(item, "price").text = str(record["price"])
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def make_c(rng: np.random.Generator) -> bytes:
    text = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\n"
    for name in _words(rng, 5):
        text += f"static int {name}(const char *text, size_t n)\n{{\n    int sum = {rng.integers(99)};\n"
        text += "    for (size_t i = 0; i < n; i++) {\n        sum += text[i];\n    }\n    return sum;\n}\n\n"
    return f'{text}int main(int argc, char **argv)\n{{\n    printf("%d\\n", argc);\n    return 0;\n}}\n'.encode()


def make_shell(rng: np.random.Generator) -> bytes:
    text = "#!/bin/sh\nset -eu\n\n"
    for name in _words(rng, 6):
        text += (
            f'{name}="${{1:-{rng.integers(999)}}}"\nif [ -z "${name}" ]; then\n  echo "no {name}" >&2\n  exit 1\nfi\n'
        )
    return f'{text}for file in *.txt; do\n  grep -q "$1" "$file" && cat "$file"\ndone\n'.encode()


def make_sql(rng: np.random.Generator) -> bytes:
    table = _words(rng, 1)[0]
    text = (
        f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, name VARCHAR(40) NOT NULL, count INT, price DECIMAL(8, 2));\n"
    )
    for r in _records(rng):
        text += f"INSERT INTO {table} VALUES ({r['id']}, '{r['name']}', {r['count']}, {r['price']});\n"  # noqa: S608 - a text to classify
    text += f"SELECT name, SUM(count) FROM {table} WHERE price > 10 GROUP BY name ORDER BY 2 DESC;\n"  # noqa: S608
    return text.encode()


def make_zip(rng: np.random.Generator) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _words(rng, 2):
            archive.writestr(zipfile.ZipInfo(f"{name}.txt", (2024, 1, 1, 0, 0, 0)), _sentence(rng) * 20)
    return packed.getvalue()


def make_gzip(rng: np.random.Generator) -> bytes:
    return gzip.compress("\n".join(_sentence(rng) for _ in range(60)).encode(), mtime=0)


def make_png(rng: np.random.Generator) -> bytes:
    picture = io.BytesIO()
    side = int(rng.integers(16, 48))
    Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(picture, "PNG")
    return picture.getvalue()


def make_wav(rng: np.random.Generator) -> bytes:
    sound = io.BytesIO()
    with wave.open(sound, "wb") as writer:
        writer.setparams((1, 2, 16_000, 0, "NONE", ""))
        tone = np.sin(np.arange(4000) * rng.uniform(0.02, 0.3)) * 9000
        writer.writeframes(tone.astype("<i2").tobytes())
    return sound.getvalue()


def make_elf(rng: np.random.Generator) -> bytes:
    """A 64-bit x86 executable: header, one loaded segment of machine code that exits, a section string table."""
    code = b"".join(b"\xbf" + struct.pack("<I", int(rng.integers(256))) + b"\xb8\x3c\0\0\0\x0f\x05" for _ in range(90))
    names = b"\0.text\0.rodata\0.data\0.bss\0.comment\0.symtab\0.strtab\0.shstrtab\0"
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x400078, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    size = 120 + len(code) + len(names)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, size, size, 0x1000)
    return ident + header + segment + code + names


MAKERS: dict[str, Maker] = {
    "python": make_python, "json": make_json, "csv": make_csv, "html": make_html, "xml": make_xml, "c": make_c,
    "shell": make_shell, "sql": make_sql, "zip": make_zip, "gzip": make_gzip, "png": make_png, "wav": make_wav,
    "elf": make_elf,
}  # fmt: skip
"""By magika's label, the kinds it is sure of."""
