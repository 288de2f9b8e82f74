"""Writes cute.json: the fragment layouts of mma.sync and ldmatrix as CuTe defines them, read from the headers in
PyPI nvidia-cutlass 4.2.0.0 (cute/atom/mma_traits_sm80.hpp and copy_traits_sm75.hpp).

    pip download --no-deps nvidia-cutlass==4.2.0.0 && python cute.py nvidia_cutlass-4.2.0.0-py3-none-any.whl

mma: {"shape type": {"A" | "B" | "C": [lane][value] -> position}}, column-major in (m, k), (n, k), (m, n).
ldmatrix: {"x1" ... "x4.trans": {"source" | "destination": [lane][16-bit value] -> 16-bit element}}, elements
counted along the 8 of a row, the 8 rows of a matrix, the matrices.
"""

import json
import re
import sys
from pathlib import Path
from zipfile import ZipFile

ATOMS = {
    "m16n8k8 f16": "SM80_16x8x8_F32F16F16F32_TN",
    "m16n8k16 f16": "SM80_16x8x16_F32F16F16F32_TN",
    "m16n8k8 bf16": "SM80_16x8x8_F32BF16BF16F32_TN",
    "m16n8k16 bf16": "SM80_16x8x16_F32BF16BF16F32_TN",
    "m16n8k4 tf32": "SM80_16x8x4_F32TF32TF32F32_TN",
    "m16n8k8 tf32": "SM80_16x8x8_F32TF32TF32F32_TN",
    "m16n8k16 s8": "SM80_16x8x16_S32S8S8S32_TN",
    "m16n8k32 s8": "SM80_16x8x32_S32S8S8S32_TN",
}
COPIES = {
    "x1": "SM75_U32x1_LDSM_N",
    "x2": "SM75_U32x2_LDSM_N",
    "x4": "SM75_U32x4_LDSM_N",
    "x1.trans": "SM75_U16x2_LDSM_T",
    "x2.trans": "SM75_U16x4_LDSM_T",
    "x4.trans": "SM75_U16x8_LDSM_T",
}


def parse(text):
    """`Layout<Shape<...>, Stride<...>>` to nested tuples, or the alias that it names."""
    tokens = re.findall(r"\w+|[<>,]", text)

    def term():
        name = tokens.pop(0)
        if not tokens or tokens[0] != "<":
            return int(name[1:]) if re.fullmatch(r"_\d+", name) else name
        arguments = []
        while tokens.pop(0) != ">":
            arguments.append(term())
        return tuple(arguments)

    return term()


def using(text):
    return {name: parse(value) for name, value in re.findall(r"using\s+(\w+)\s*=\s*([^;]+);", text)}


def traits(text, kind):
    """Traits of each operation with those it inherits, and the file's own aliases."""
    text = re.sub(r"//[^\n]*", "", text)
    pattern = kind + r"<(\w+)>\s*(?::\s*" + kind + r"<(\w+)>\s*)?\{(.*?)\};"
    found = {}
    for name, parent, body in re.findall(pattern, text, re.S):
        found[name] = found.get(parent, {}) | using(body)
    return found, using(text.split("template", 1)[0])


def offset(shape, stride, index):
    """CuTe's map of a linear index into a nested shape, its first mode running fastest."""
    if isinstance(shape, int):
        return index * stride
    total = 0
    for part, step in zip(shape, stride, strict=True):
        total += offset(part, step, index % size(part))
        index //= size(part)
    return total


def size(shape):
    if isinstance(shape, int):
        return shape
    total = 1
    for part in shape:
        total *= size(part)
    return total


def table(layout, aliases, every=1):
    while isinstance(layout, str):
        layout = aliases[layout]
    (lanes, values), (by_lane, by_value) = layout
    lane = [offset(lanes, by_lane, i) for i in range(size(lanes))]
    value = [offset(values, by_value, i) for i in range(0, size(values), every)]
    return [[(a + b) // every for b in value] for a in lane]


def main(wheel):
    with ZipFile(wheel) as files:
        folder = "cutlass_library/source/include/cute/atom/"
        mma, aliases = traits(files.read(folder + "mma_traits_sm80.hpp").decode(), "MMA_Traits")
        copy, _ = traits(files.read(folder + "copy_traits_sm75.hpp").decode(), "Copy_Traits")
    golden = {
        "mma": {
            name: {matrix: table(mma[atom][matrix + "Layout"], aliases) for matrix in "ABC"}
            for name, atom in ATOMS.items()
        },
        # Those layouts count bits; the instruction moves 16 of them at a time.
        "ldmatrix": {
            name: {
                "source": table(copy[atom]["SrcLayout"], {}, 16),
                "destination": table(copy[atom]["DstLayout"], {}, 16),
            }
            for name, atom in COPIES.items()
        },
    }
    text = json.dumps(golden, separators=(",", ":"))
    # A matrix a line.
    text = re.sub(r'("\w[\w. ]*":)(?=[\[{])', r"\n\1", text)
    Path(__file__).with_name("cute.json").write_text(text + "\n")


main(sys.argv[1])
