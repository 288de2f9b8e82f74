"""Writes fragments.txt: the element of A, B and C that each lane and value of mma.sync holds, from the MMA
atoms of PyPI tensor-layouts 0.3.2 (they follow CuTe's mma_traits_sm80.hpp).

    pip install tensor-layouts==0.3.2 && python fragments.py

A line: shape, element type, matrix, lane, value, row (of A: m, of B: n, of C: m), column (k, k, n).
"""

from pathlib import Path

from tensor_layouts import atoms_nv

ATOMS = {
    "m16n8k8 f16": atoms_nv.SM80_16x8x8_F32F16F16F32_TN,
    "m16n8k16 f16": atoms_nv.SM80_16x8x16_F32F16F16F32_TN,
    "m16n8k8 bf16": atoms_nv.SM80_16x8x8_F32BF16BF16F32_TN,
    "m16n8k16 bf16": atoms_nv.SM80_16x8x16_F32BF16BF16F32_TN,
    "m16n8k4 tf32": atoms_nv.SM80_16x8x4_F32TF32TF32F32_TN,
    "m16n8k8 tf32": atoms_nv.SM80_16x8x8_F32TF32TF32F32_TN,
    "m16n8k16 s8": atoms_nv.SM80_16x8x16_S32S8S8S32_TN,
    "m16n8k32 s8": atoms_nv.SM80_16x8x32_S32S8S8S32_TN,
}

lines = []
for name, atom in ATOMS.items():
    k = int(name.split()[0].split("k")[1])
    for matrix, layout, rows, columns in [("A", atom.a_layout, 16, k), ("B", atom.b_layout, 8, k), ("C", atom.c_layout, 16, 8)]:
        for lane in range(32):
            for value in range(rows * columns // 32):
                # Layouts map to column-major positions.
                at = layout(lane, value)
                lines.append(f"{name} {matrix} {lane} {value} {at % rows} {at // rows}")
Path(__file__).with_name("fragments.txt").write_text("\n".join(lines) + "\n")
