//! Where on Earth the pixels of a raster lie.

use super::directory::{
    GEO_ASCII, GEO_DOUBLES, GEO_KEYS, PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, Value,
};
use crate::error::{Error, Result};

const MODEL_TYPE: u16 = 1024;
const RASTER_TYPE: u16 = 1025;
const GEOGRAPHIC: u16 = 2048;
const PROJECTED: u16 = 3072;
const LINEAR_UNITS: u16 = 3076;

/// The code of what has none.
const USER_DEFINED: u16 = 32767;

/// Where pixels lie, and what the numbers that say so mean.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Georeference {
    /// Of a pixel's corner: x = t0 + t1 * column + t2 * row, y = t3 + t4 * column + t5 * row. None where a file has control
    /// points, or nothing.
    pub transform: Option<[f64; 6]>,
    /// The reference system, as its file has it: directory of keys, numbers and texts that they point to.
    keys: Vec<u16>,
    doubles: Vec<f64>,
    ascii: String,
}

impl Georeference {
    /// Of `width` x `height` pixels that fill `bbox`, [west, south, east, north] in units of the reference system of this EPSG
    /// code: degrees or metres, x before y in either case.
    ///
    /// # Errors
    /// A box without an inside, or off the Earth; a code that is none of a plane or geographic system.
    pub fn from_bbox(bbox: [f64; 4], epsg: u32, width: usize, height: usize) -> Result<Self> {
        let [west, south, east, north] = bbox;
        let found = || format!("{west},{south},{east},{north}");
        if !(west < east && south < north && bbox.iter().all(|x| x.is_finite())) {
            let expected = "west,south,east,north, with west < east and south < north";
            return Err(Error::argument("bbox", found(), expected));
        }
        let code = u16::try_from(epsg).ok().filter(|code| (1024..USER_DEFINED).contains(code));
        let Some(code) = code else {
            return Err(Error::argument("epsg", epsg, "an EPSG code from 1024 to 32766"));
        };
        let geographic = is_geographic(code);
        let within = |x: f64, most: f64| (-most..=most).contains(&x);
        let on_earth = within(south, 90.0) && within(north, 90.0);
        if geographic && !(on_earth && within(west, 360.0) && within(east, 360.0)) {
            let expected = format!("degrees, longitude before latitude, as EPSG:{code} has them");
            return Err(Error::argument("bbox", found(), expected));
        }
        if width == 0 || height == 0 {
            return Err(Error::argument("bbox", format!("{width}x{height} pixels"), "some pixels"));
        }
        let step = [(east - west) / width as f64, (south - north) / height as f64];
        let mut keys = vec![1, 1, 0, 3];
        let (model, key) = if geographic { (2, GEOGRAPHIC) } else { (1, PROJECTED) };
        for (key, value) in [(MODEL_TYPE, model), (RASTER_TYPE, 1), (key, code)] {
            keys.extend([key, 0, 1, value]);
        }
        let transform = Some([west, step[0], 0.0, north, 0.0, step[1]]);
        Ok(Self { transform, keys, ..Self::default() })
    }

    /// As the entries of a file have it; none if they say nothing.
    pub(super) fn read(
        scale: Option<Vec<f64>>,
        tiepoints: Option<Vec<f64>>,
        transformation: Option<Vec<f64>>,
        keys: Option<Vec<u16>>,
        doubles: Option<Vec<f64>>,
        ascii: Option<String>,
    ) -> Option<Self> {
        let mut transform = match (transformation.as_deref(), tiepoints.as_deref()) {
            (Some([a, b, _, d, e, f, _, h, ..]), _) => Some([*d, *a, *b, *h, *e, *f]),
            (None, Some([column, row, _, x, y, _])) => scale.as_deref().and_then(|scale| {
                let (dx, dy) = (scale.first()?, scale.get(1)?);
                Some([x - column * dx, *dx, 0.0, y + row * dy, 0.0, -dy])
            }),
            _ => None,
        };
        let keys = keys.unwrap_or_default();
        let (doubles, ascii) = (doubles.unwrap_or_default(), ascii.unwrap_or_default());
        let mut found = Self { transform: None, keys, doubles, ascii };
        if found.is_of_points() {
            transform = transform.map(|t| moved(t, -0.5));
        }
        // Numbers that lead nowhere are none.
        let good =
            |t: &[f64; 6]| t.iter().all(|x| x.is_finite()) && t[1] * t[5] - t[2] * t[4] != 0.0;
        found.transform = transform.filter(good);
        (found.transform.is_some() || !found.keys.is_empty()).then_some(found)
    }

    /// The entries of a file that say so, sorted.
    pub(super) fn entries(&self) -> Vec<(u16, Value)> {
        let mut entries = Vec::new();
        let transform = self.transform.map(|t| if self.is_of_points() { moved(t, 0.5) } else { t });
        match transform {
            Some([x, dx, 0.0, y, 0.0, dy]) if dx > 0.0 && dy < 0.0 => {
                entries.push((PIXEL_SCALE, Value::Double(vec![dx, -dy, 0.0])));
                entries.push((TIEPOINTS, Value::Double(vec![0.0, 0.0, 0.0, x, y, 0.0])));
            }
            Some([x, a, b, y, d, e]) => {
                #[rustfmt::skip]
                let matrix = vec![
                    a, b, 0.0, x,
                    d, e, 0.0, y,
                    0.0, 0.0, 0.0, 0.0,
                    0.0, 0.0, 0.0, 1.0,
                ];
                entries.push((TRANSFORMATION, Value::Double(matrix)));
            }
            None => {}
        }
        if !self.keys.is_empty() {
            entries.push((GEO_KEYS, Value::Short(self.keys.clone())));
        }
        if !self.doubles.is_empty() {
            entries.push((GEO_DOUBLES, Value::Double(self.doubles.clone())));
        }
        if !self.ascii.is_empty() {
            entries.push((GEO_ASCII, Value::Ascii(self.ascii.clone())));
        }
        entries
    }

    /// A key's number.
    fn key(&self, wanted: u16) -> Option<u16> {
        let keys = self.keys.get(4..)?.chunks_exact(4);
        keys.filter(|key| key[0] == wanted && key[1] == 0).map(|key| key[3]).next()
    }

    /// Whether the file's places are those of pixels' centres.
    fn is_of_points(&self) -> bool {
        self.key(RASTER_TYPE) == Some(2)
    }

    /// The EPSG code of the reference system, where it has one.
    pub fn epsg(&self) -> Option<u16> {
        let code = match self.key(MODEL_TYPE) {
            Some(1) => self.key(PROJECTED),
            Some(2) => self.key(GEOGRAPHIC),
            _ => None,
        };
        code.filter(|code| (1..USER_DEFINED).contains(code))
    }

    /// Of the raster that is made of the pixels from `column` and `row` on, `step` by `step` of them one.
    pub fn part(&self, column: f64, row: f64, step: f64) -> Self {
        let part = |[x, a, b, y, d, e]: [f64; 6]| {
            let (x, y) = (x + a * column + b * row, y + d * column + e * row);
            [x, a * step, b * step, y, d * step, e * step]
        };
        Self { transform: self.transform.map(part), ..self.clone() }
    }

    /// Of the raster whose pixels are so many of these wide and high.
    pub fn scaled(&self, [across, down]: [f64; 2]) -> Self {
        let scaled =
            |[x, a, b, y, d, e]: [f64; 6]| [x, a * across, b * down, y, d * across, e * down];
        Self { transform: self.transform.map(scaled), ..self.clone() }
    }

    /// West, south, east and north of `width` x `height` pixels.
    pub fn bbox(&self, width: usize, height: usize) -> Option<[f64; 4]> {
        let [x, a, b, y, d, e] = self.transform?;
        let (w, h) = (width as f64, height as f64);
        let corners = [(0.0, 0.0), (w, 0.0), (0.0, h), (w, h)];
        let places = corners.map(|(c, r)| (x + a * c + b * r, y + d * c + e * r));
        let of = |place: fn(&(f64, f64)) -> f64, pick: fn(f64, f64) -> f64, start| {
            places.iter().map(place).fold(start, pick)
        };
        Some([
            of(|p| p.0, f64::min, f64::INFINITY),
            of(|p| p.1, f64::min, f64::INFINITY),
            of(|p| p.0, f64::max, f64::NEG_INFINITY),
            of(|p| p.1, f64::max, f64::NEG_INFINITY),
        ])
    }

    /// Square metres of a pixel, or why they are not known.
    ///
    /// # Errors
    /// No transform, degrees, units that the file does not tell, or a system whose metres are none on the ground.
    pub fn pixel_area(&self) -> std::result::Result<f64, String> {
        let [_, a, b, _, d, e] = self.transform.ok_or("no transform: pixels have no size")?;
        match self.key(MODEL_TYPE) {
            Some(1) => {}
            Some(2) => return Err("degrees: project the scene to a system in metres".to_owned()),
            _ => return Err("no projected reference system".to_owned()),
        }
        let code = self.key(PROJECTED).unwrap_or(USER_DEFINED);
        // Web Mercator stretches by 1 / cos(latitude).
        if [3395, 3785, 3857].contains(&code) {
            return Err(format!("EPSG:{code}, whose metres are none on the ground"));
        }
        let metre = match self.key(LINEAR_UNITS) {
            Some(9001) => 1.0,
            Some(9002) => 0.3048,
            Some(9003) => 1200.0 / 3937.0,
            Some(9036) => 1000.0,
            // UTM on WGS 84, NAD83 and ETRS89, and Europe's equal-area grid are in metres.
            None if matches!(code, 32601..=32660 | 32701..=32760 | 26901..=26923 | 25828..=25838 | 3035) => {
                1.0
            }
            _ => return Err("units of length that the file does not tell".to_owned()),
        };
        Ok((a * e - b * d).abs() * metre * metre)
    }
}

/// A transform whose pixels begin `by` pixels further.
fn moved([x, a, b, y, d, e]: [f64; 6], by: f64) -> [f64; 6] {
    [x + by * (a + b), a, b, y + by * (d + e), d, e]
}

/// Whether an EPSG code is of a geographic system: degrees, not a plane.
fn is_geographic(code: u16) -> bool {
    GEOGRAPHIC_CODES.iter().any(|(first, last)| (*first..=*last).contains(&code))
}

/// First and last codes of the geographic systems (EPSG data set 10, with no projected system between).
#[rustfmt::skip]
const GEOGRAPHIC_CODES: [(u16, u16); 111] = [
    (3819, 3824), (3889, 3889), (3906, 3906), (4001, 4025), (4027, 4036), (4041, 4047), (4052, 4055), (4075, 4081),
    (4120, 4216), (4218, 4326), (4463, 4463), (4470, 4470), (4475, 4483), (4490, 4490), (4555, 4558), (4600, 4646),
    (4657, 4765), (4801, 4811), (4813, 4821), (4823, 4824), (4901, 5013), (5132, 5132), (5228, 5233), (5246, 5246),
    (5252, 5252), (5264, 5264), (5324, 5324), (5340, 5340), (5354, 5354), (5360, 5360), (5365, 5365), (5371, 5381),
    (5393, 5393), (5451, 5451), (5464, 5464), (5467, 5467), (5489, 5489), (5524, 5527), (5546, 5546), (5561, 5561),
    (5593, 5593), (5681, 5681), (5886, 5886), (6135, 6135), (6207, 6207), (6311, 6311), (6318, 6325), (6365, 6365),
    (6668, 6668), (6706, 6706), (6783, 6783), (6881, 6883), (6892, 6894), (6980, 6983), (6987, 6990), (7035, 7041),
    (7073, 7073), (7084, 7088), (7133, 7139), (7373, 7373), (7683, 7686), (7798, 7798), (7844, 7844), (7881, 7881),
    (7886, 7886), (8042, 8043), (8086, 8086), (8232, 8255), (8351, 8351), (8427, 8431), (8449, 8449), (8545, 8545),
    (8685, 8685), (8694, 8818), (8860, 8902), (8907, 8907), (8949, 8949), (8972, 9019), (9053, 9140), (9148, 9148),
    (9153, 9153), (9184, 9184), (9248, 9248), (9251, 9251), (9253, 9253), (9294, 9294), (9299, 9299), (9309, 9309),
    (9333, 9333), (9364, 9364), (9372, 9372), (9380, 9384), (9403, 9403), (9453, 9453), (9470, 9470), (9474, 9475),
    (9547, 9547), (9696, 9696), (9702, 9702), (9739, 9739), (9755, 9758), (9763, 9763), (9777, 9784), (9866, 9866),
    (9871, 9871), (9939, 9939), (9964, 9964), (9969, 9969), (9974, 9974), (9990, 9990), (20033, 20041),
];
