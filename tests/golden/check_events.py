"""Reads the events of a run by TensorBoard's own reader, and compares them with the run's metrics.csv.

    python tests/golden/check_events.py RUN
"""

import csv
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = pathlib.Path(sys.argv[1])
events = EventAccumulator(str(run / "logs"), size_guidance={"scalars": 0, "images": 0})
events.Reload()

expected = {}
for row in csv.DictReader((run / "metrics.csv").open()):
    # Events hold f32.
    value = struct.unpack("f", struct.pack("f", float(row["value"])))[0]
    expected.setdefault(row["name"], []).append((int(row["step"]), value))
found = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
assert found == expected, f"TensorBoard reads {found}, not {expected}"

pictures = {name: events.Images(name) for name in events.Tags()["images"]}
assert pictures, "no pictures"
for name, images in pictures.items():
    for image in images:
        file = run / "validation" / f"step-{image.step:08}-{int(name.split('/')[1]):02}.png"
        assert image.encoded_image_string == file.read_bytes(), f"{name} is not {file}"
print(f"{run}: {sum(map(len, found.values()))} numbers and {sum(map(len, pictures.values()))} pictures, as TensorBoard reads them")
