"""Rasters as rasterio sees them, for `tests/bands.rs`.

    python check_rasters.py write OUT.tif     four bands of 16 bits, 24 x 24 pixels, with corners that have no data
    python check_rasters.py units OUT.tif     the same, with a scale and an offset
    python check_rasters.py mixed OUT.tif     with others of each band
    python check_rasters.py float OUT.tif     the same as floats from 0 to 1, where what has no data is NaN
    python check_rasters.py same A.tif B.tif  fails, and says why, unless both hold the same numbers at the same place
    python check_rasters.py about IN.tif      prints what it is, as JSON
"""

import json
import sys

import numpy as np
import rasterio
from rasterio.transform import Affine

WIDTH, HEIGHT = 24, 24
# Turned by a little, so that nothing depends on north being up.
PLACE = Affine(10.0, 0.5, 399960.25, -0.25, -10.0, 5300040.75)


def reflectances():
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    bands = np.stack([(173 * x + 389 * y * (band + 1)) % 10001 for band in range(4)]).astype(np.uint16)
    bands[bands == 0] = 1
    bands[0, 10, 12] = 12000  # brighter than white
    bands[:, :4, :6] = 0
    bands[2, -1, -1] = 0  # of one band alone
    return bands


def write(path, bands, nodata, scales=None, offsets=None):
    count, height, width = bands.shape
    profile = dict(driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype.name, nodata=nodata)
    with rasterio.open(path, "w", crs="EPSG:32632", transform=PLACE, **profile) as out:
        out.write(bands)
        if scales:
            out.scales, out.offsets = scales, offsets


def same(one, other):
    with rasterio.open(one) as a, rasterio.open(other) as b:
        for name in "count width height dtypes nodata crs transform scales offsets".split():
            mine, theirs = getattr(a, name), getattr(b, name)
            assert mine == theirs, f"{name}: {mine} and {theirs}"
        assert a.crs.to_epsg() == 32632 and a.transform == PLACE
        different = np.argwhere(a.read() != b.read())
        assert len(different) == 0, f"{len(different)} numbers differ, the first at {different[0]}"
        masks = (a.dataset_mask() != b.dataset_mask()).sum()
        assert masks == 0, f"{masks} pixels have data in one of them"


def about(path):
    with rasterio.open(path) as raster:
        numbers = raster.read(masked=True).astype(float)
        return dict(
            count=raster.count,
            size=[raster.width, raster.height],
            dtype=raster.dtypes[0],
            nodata=raster.nodata if raster.nodata is None or raster.nodata == raster.nodata else "nan",
            epsg=raster.crs and raster.crs.to_epsg(),
            transform=list(raster.transform)[:6],
            scales=raster.scales,
            offsets=raster.offsets,
            missing=int(np.ma.getmaskarray(numbers).sum()),
            least=float(numbers.min()),
            most=float(numbers.max()),
            overviews=raster.overviews(1),
        )


def main(command, *paths):
    if command == "write":
        write(*paths, reflectances(), 0)
    elif command == "units":
        write(*paths, reflectances(), 0, [1e-4] * 4, [-0.1] * 4)
    elif command == "mixed":
        write(*paths, reflectances(), 0, [1e-4, 2e-4, 1e-4, 1e-4], [0.0, 0.0, 0.5, 0.0])
    elif command == "float":
        bands = reflectances()
        write(*paths, np.where(bands == 0, np.nan, bands / 10000).astype(np.float32), float("nan"))
    elif command == "same":
        same(*paths)
    else:
        print(json.dumps(about(*paths)))


if __name__ == "__main__":
    main(*sys.argv[1:])
