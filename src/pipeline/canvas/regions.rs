//! What a canvas shows where: areas of a GeoJSON, or the levels of a raster, each with words of its own.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Canvas, Window};
use crate::error::{Error, Result};
use crate::io::geotiff::Georeference;
use crate::io::projection::Projection;
use crate::io::raster::{Mask, open_mask};
use crate::io::read_file;
use crate::pipeline::settings::Settings;
use crate::pipeline::told::{Date, Metres, Place};

/// The longest file of areas or of words.
const MAX_FILE: u64 = 256 << 20;

/// A window is what most of so many by so many places in it are.
const LOOKS: usize = 16;

/// What is said of an area or a level, in place of what is said of the whole scene.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Words {
    prompt: Option<String>,
    negative_prompt: Option<String>,
    prompt_2: Option<String>,
    negative_prompt_2: Option<String>,
    level: Option<u32>,
    gsd: Option<Metres>,
    place: Option<Place>,
    date: Option<Date>,
    cloud: Option<f64>,
    class_labels: Option<Vec<f32>>,
}

const FIELDS: [&str; 10] = [
    "prompt",
    "negative_prompt",
    "prompt_2",
    "negative_prompt_2",
    "level",
    "gsd",
    "place",
    "date",
    "cloud",
    "class_labels",
];

impl Words {
    fn over(&self, base: &Settings) -> Settings {
        let Self { prompt, negative_prompt, prompt_2, negative_prompt_2, .. } = self.clone();
        let Self { level, gsd, place, date, cloud, class_labels, .. } = self.clone();
        let said = |own: Option<String>, base: &String| own.unwrap_or_else(|| base.clone());
        Settings {
            prompt: said(prompt, &base.prompt),
            negative_prompt: said(negative_prompt, &base.negative_prompt),
            prompt_2: said(prompt_2, &base.prompt_2),
            negative_prompt_2: said(negative_prompt_2, &base.negative_prompt_2),
            level: level.or(base.level),
            gsd: gsd.or(base.gsd),
            place: place.or(base.place),
            date: date.or(base.date),
            cloud: cloud.or(base.cloud),
            class_labels: class_labels.or_else(|| base.class_labels.clone()),
            ..base.clone()
        }
    }
}

/// What is said of each, with what errors call it.
type AllWords = Vec<(String, Words)>;

/// What is where.
pub struct Regions {
    words: AllWords,
    shape: Shape,
    canvas: Canvas,
    fingerprint: String,
}

enum Shape {
    Areas {
        areas: Vec<Area>,
        place: Georeference,
        projection: Box<Projection>,
    },
    /// Over all of the canvas; what is said of each level.
    Levels {
        mask: Mask,
        words: BTreeMap<u16, usize>,
    },
}

/// A polygon, or several.
struct Area {
    /// Of all its polygons, outer and inner, in degrees east and north: what is inside of an odd number is inside.
    rings: Vec<Vec<[f64; 2]>>,
    /// Least and greatest of both.
    bounds: [[f64; 2]; 2],
}

impl Regions {
    /// The areas of a GeoJSON file, over a canvas that lies at `place`. Of areas that overlap the last holds.
    ///
    /// # Errors
    /// A file that is no GeoJSON of areas, or says nothing of one; a canvas in a reference system that cannot be computed in, or
    /// off the globe.
    pub fn open_areas(path: &Path, canvas: &Canvas, place: &Georeference) -> Result<Self> {
        let text = read_file(path, MAX_FILE)?;
        let epsg = place.epsg().unwrap_or_default();
        let projection = Box::new(Projection::from_epsg(epsg.into())?);
        // Corners may be off the globe where the middle is not, or the other way round.
        let sides = [canvas.width as f64, canvas.height as f64];
        let some = [[0.5, 0.5], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]];
        let is_there = |part: &[f64; 2]| {
            degrees(place, &projection, [part[0] * sides[0], part[1] * sides[1]]).is_some()
        };
        if !some.iter().any(is_there) {
            let found = format!("{:?}", place.transform.unwrap_or_default());
            let expected = format!("a place on the globe, in the coordinates of EPSG:{epsg}");
            return Err(Error::argument("bbox", found, expected));
        }
        let (words, areas) = parse(&text).map_err(|(what, expected, found)| {
            let advice = "RFC 7946 says what such a file holds; QGIS and ogr2ogr write it.";
            Error::file(path, what, expected, found, advice)
        })?;
        let shape = Shape::Areas { areas, place: place.clone(), projection };
        Ok(Self { words, shape, canvas: canvas.clone(), fingerprint: fingerprint(&[&text]) })
    }

    /// The levels of a raster of one band, which is stretched over the canvas, and a TOML file of what is said of each; what it
    /// says nothing of is the whole scene's, if that `has_words`.
    ///
    /// # Errors
    /// A file that cannot be read; a level of which nothing is said.
    pub fn open_levels(
        raster: &Path,
        words: &Path,
        canvas: &Canvas,
        has_words: bool,
    ) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Prompt(String),
            Words(Words),
        }
        let text = read_file(words, MAX_FILE)?;
        let wrong = |what: String, found: String| {
            let advice = "Write 3 = \"a forest\" for level 3, or a table [3] with prompt, level, gsd, place, date, cloud.";
            Error::file(words, what, "what is said of each level", found, advice)
        };
        let read: BTreeMap<String, Either> =
            toml::from_str(&text).map_err(|e| wrong("TOML".into(), e.to_string()))?;
        let (mut all, mut known) = (Vec::new(), BTreeMap::new());
        for (name, said) in read {
            let level = name.parse::<u16>().map_err(|_| wrong("level".into(), name.clone()))?;
            let said = match said {
                Either::Prompt(prompt) => Words { prompt: Some(prompt), ..Words::default() },
                Either::Words(words) => words,
            };
            known.insert(level, all.len());
            all.push((format!("{}, level {level}", words.display()), said));
        }
        let mask = open_mask(raster)?;
        let mut levels: Vec<u16> = mask.classes.clone();
        levels.sort_unstable();
        levels.dedup();
        let unknown: Vec<String> =
            levels.iter().filter(|l| !known.contains_key(l)).map(u16::to_string).collect();
        if !has_words && !unknown.is_empty() {
            let found = format!("nothing of {}, which the raster has", unknown.join(", "));
            return Err(wrong("levels".into(), found));
        }
        let levels: String = mask.classes.iter().map(|l| format!("{l} ")).collect();
        let size = format!("{}x{}", mask.width, mask.height);
        let fingerprint = fingerprint(&[&text, &size, &levels]);
        let shape = Shape::Levels { mask, words: known };
        Ok(Self { words: all, shape, canvas: canvas.clone(), fingerprint })
    }

    /// Tells regions apart.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// How each is drawn, with what errors call it; `base` is how the whole scene is.
    pub fn all<'a>(&'a self, base: &'a Settings) -> impl Iterator<Item = (&'a str, Settings)> {
        self.words.iter().map(|(name, words)| (name.as_str(), words.over(base)))
    }

    /// How a window is drawn: as the region that has most of it.
    pub fn settings(&self, window: Window, base: &Settings) -> Settings {
        let mut counts: BTreeMap<Option<usize>, usize> = BTreeMap::new();
        for i in 0..LOOKS * LOOKS {
            let at = |from: usize, len: usize, i: usize| {
                from as f64 + len as f64 * (i as f64 + 0.5) / LOOKS as f64
            };
            let y = at(window.y, window.height, i / LOOKS);
            let x = at(window.x, window.width, i % LOOKS);
            if let Some(region) = self.at([x, y]) {
                *counts.entry(region).or_default() += 1;
            }
        }
        let most = counts.into_iter().max_by_key(|(region, count)| (*count, Reverse(*region)));
        match most {
            Some((Some(region), _)) => self.words[region].1.over(base),
            _ => base.clone(),
        }
    }

    /// The region at a place in pixels, none where there is none of its own; nothing beyond the canvas.
    fn at(&self, place: [f64; 2]) -> Option<Option<usize>> {
        let sides = [self.canvas.width as f64, self.canvas.height as f64];
        let mut at = place;
        for axis in 0..2 {
            if self.canvas.wrap[axis] {
                at[axis] = at[axis].rem_euclid(sides[axis]);
            }
            if at[axis] >= sides[axis] {
                return None;
            }
        }
        Some(match &self.shape {
            Shape::Levels { mask, words } => {
                let pixel = |at: f64, side: f64, len: usize| {
                    ((at / side * len as f64) as usize).min(len - 1)
                };
                let x = pixel(at[0], sides[0], mask.width);
                let y = pixel(at[1], sides[1], mask.height);
                words.get(&mask.classes[y * mask.width + x]).copied()
            }
            Shape::Areas { areas, place, projection } => {
                let degrees = degrees(place, projection, at);
                degrees.and_then(|degrees| areas.iter().rposition(|area| area.holds(degrees)))
            }
        })
    }
}

/// Longitude and latitude of a place in pixels; none of one off the globe.
fn degrees(place: &Georeference, projection: &Projection, at: [f64; 2]) -> Option<[f64; 2]> {
    let [x, a, b, y, d, e] = place.transform?;
    projection.degrees([x + a * at[0] + b * at[1], y + d * at[0] + e * at[1]])
}

fn fingerprint(texts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for text in texts {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Area {
    fn new(rings: Vec<Vec<[f64; 2]>>) -> Self {
        let mut bounds = [[f64::INFINITY; 2], [f64::NEG_INFINITY; 2]];
        for point in rings.iter().flatten() {
            for axis in 0..2 {
                bounds[0][axis] = bounds[0][axis].min(point[axis]);
                bounds[1][axis] = bounds[1][axis].max(point[axis]);
            }
        }
        Self { rings, bounds }
    }

    /// Whether a place is inside: a ray to the east crosses an odd number of sides.
    fn holds(&self, [x, y]: [f64; 2]) -> bool {
        let [least, most] = self.bounds;
        if x < least[0] || x > most[0] || y < least[1] || y > most[1] {
            return false;
        }
        let crossed = |side: &[[f64; 2]]| {
            let ([ax, ay], [bx, by]) = (side[0], side[1]);
            (ay > y) != (by > y) && x < ax + (y - ay) / (by - ay) * (bx - ax)
        };
        let sides = self.rings.iter().flat_map(|ring| ring.windows(2));
        sides.filter(|side| crossed(side)).count() % 2 == 1
    }
}

/// What is wrong: what it is, what is expected, what was found.
type Wrong = (String, String, String);

/// The areas of a GeoJSON (RFC 7946), and what is said of each.
fn parse(text: &str) -> std::result::Result<(AllWords, Vec<Area>), Wrong> {
    let wrong = |what: &str, expected: &str, found: &dyn ToString| -> Wrong {
        (what.to_owned(), expected.to_owned(), found.to_string())
    };
    let root: Value = serde_json::from_str(text).map_err(|e| wrong("JSON", "GeoJSON", &e))?;
    // What the format's predecessor allowed.
    if let Some(crs) = root.get("crs").filter(|crs| !crs.is_null()) {
        let name = crs.pointer("/properties/name").and_then(Value::as_str).unwrap_or_default();
        if !["CRS84", "4326"].iter().any(|known| name.ends_with(known)) {
            let expected = "none, or longitude and latitude on WGS 84 (ogr2ogr -t_srs EPSG:4326)";
            return Err(wrong("crs", expected, crs));
        }
    }
    let kind = root["type"].as_str().unwrap_or_default();
    let features: Vec<&Value> = match (kind, root["features"].as_array()) {
        ("Feature", _) => vec![&root],
        ("FeatureCollection", Some(features)) => features.iter().collect(),
        _ => return Err(wrong("type", "a Feature or a FeatureCollection", &root["type"])),
    };
    if features.is_empty() {
        return Err(wrong("features", "at least one", &"none"));
    }
    let (mut words, mut areas) = (Vec::new(), Vec::new());
    for (number, feature) in (1..).zip(features) {
        let name = format!("feature {number}");
        let empty = Map::new();
        let properties = feature["properties"].as_object().unwrap_or(&empty);
        // A feature may have any properties; those that are ours have to be right.
        let own: Map<String, Value> = properties
            .iter()
            .filter(|(name, value)| FIELDS.contains(&name.as_str()) && !value.is_null())
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if own.is_empty() {
            let expected = format!("some of the properties {}", FIELDS.join(", "));
            let found = properties.keys().cloned().collect::<Vec<_>>().join(", ");
            let found = if found.is_empty() { "none".to_owned() } else { found };
            return Err((name, expected, found));
        }
        let said: Words = serde_json::from_value(own.into())
            .map_err(|e| wrong(&name, "properties that a model can be told", &e))?;
        let geometry = &feature["geometry"];
        let polygons: Vec<&Value> =
            match (geometry["type"].as_str(), geometry["coordinates"].as_array()) {
                (Some("Polygon"), Some(_)) => vec![&geometry["coordinates"]],
                (Some("MultiPolygon"), Some(polygons)) => polygons.iter().collect(),
                _ => {
                    let found = geometry["type"].as_str().unwrap_or("none");
                    return Err(wrong(
                        &name,
                        "a Polygon or a MultiPolygon with coordinates",
                        &found,
                    ));
                }
            };
        let mut rings = Vec::new();
        for polygon in polygons {
            for ring in polygon.as_array().map(Vec::as_slice).unwrap_or_default() {
                let ring: Option<Vec<[f64; 2]>> =
                    ring.as_array().and_then(|ring| ring.iter().map(position).collect());
                let Some(ring) = ring else {
                    let expected = "rings of [longitude, latitude] within 180 and 90 degrees";
                    return Err(wrong(&name, expected, &"other coordinates (are they projected?)"));
                };
                if ring.len() < 4 || ring.first() != ring.last() {
                    let expected = "rings of four positions or more, whose last is the first";
                    return Err(wrong(
                        &name,
                        expected,
                        &format!("one of {} positions", ring.len()),
                    ));
                }
                rings.push(ring);
            }
        }
        if rings.is_empty() {
            return Err(wrong(&name, "an area", &"none"));
        }
        words.push((name, said));
        areas.push(Area::new(rings));
    }
    Ok((words, areas))
}

fn position(value: &Value) -> Option<[f64; 2]> {
    let [lon, lat] = [value.get(0)?.as_f64()?, value.get(1)?.as_f64()?];
    let inside = (-180.0..=180.0).contains(&lon) && (-90.0..=90.0).contains(&lat);
    inside.then_some([lon, lat])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn canvas(wrap: [bool; 2]) -> Canvas {
        Canvas { width: 200, height: 100, wrap, overlap: None }
    }

    fn at(regions: &Regions, [x, y]: [usize; 2]) -> String {
        let base = Settings { prompt: "base".into(), level: Some(12), ..Settings::default() };
        let found = regions.settings(Window { x, y, width: 16, height: 16 }, &base);
        format!("{} {}", found.prompt, found.level.unwrap_or_default())
    }

    fn square(west: f64, south: f64, side: f64, properties: Value) -> Value {
        let (east, north) = (west + side, south + side);
        let ring =
            json!([[west, south], [east, south], [east, north], [west, north], [west, south]]);
        let geometry = json!({ "type": "Polygon", "coordinates": [ring] });
        json!({ "type": "Feature", "properties": properties, "geometry": geometry })
    }

    fn opened(features: Value, epsg: u32, bbox: [f64; 4]) -> Result<Regions> {
        let place = Georeference::from_bbox(bbox, epsg, 200, 100).unwrap();
        opened_at(features, &place)
    }

    fn opened_at(features: Value, place: &Georeference) -> Result<Regions> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("areas.geojson");
        std::fs::write(&path, features.to_string()).unwrap();
        Regions::open_areas(&path, &canvas([false, false]), place)
    }

    #[test]
    fn areas_are_found_where_they_lie() {
        // Two degrees by one, a pixel a hundredth; north is up.
        let bbox = [10.0, 50.0, 12.0, 51.0];
        let mut ring = square(11.0, 50.0, 1.0, json!({ "prompt": "ring", "name": "x" }));
        let hole = json!([[11.3, 50.3], [11.7, 50.3], [11.7, 50.7], [11.3, 50.7], [11.3, 50.3]]);
        ring["geometry"]["coordinates"].as_array_mut().unwrap().push(hole);
        let features = json!({ "type": "FeatureCollection", "features": [
            square(10.0, 50.5, 0.5, json!({ "prompt": "upper left", "level": 16 })),
            ring,
            square(10.2, 50.7, 0.3, json!({ "level": 17 })),
        ]});
        let regions = opened(features.clone(), 4326, bbox).unwrap();
        assert_eq!(at(&regions, [0, 0]), "upper left 16");
        assert_eq!(at(&regions, [0, 80]), "base 12");
        assert_eq!(at(&regions, [100, 84]), "ring 12");
        assert_eq!(at(&regions, [142, 42]), "base 12");
        // The last of those that overlap.
        assert_eq!(at(&regions, [26, 6]), "base 17");
        // What most of a window is: 9 of 16 columns, then 7.
        assert_eq!(at(&regions, [93, 84]), "ring 12");
        assert_eq!(at(&regions, [91, 84]), "base 12");

        // The same from a plane: UTM zone 32 has its middle at 9 degrees.
        let regions = opened(features, 32632, [571_000.0, 5_539_000.0, 715_000.0, 5_655_000.0]);
        let regions = regions.unwrap();
        assert_eq!(at(&regions, [10, 20]), "upper left 16");
        assert_eq!(at(&regions, [10, 80]), "base 12");
        assert_eq!(at(&regions, [110, 84]), "ring 12");
    }

    /// A canvas that is turned, and one whose rows are shifted.
    #[test]
    fn areas_are_found_on_a_canvas_that_is_turned() {
        let mut place = Georeference::from_bbox([10.0, 50.0, 12.0, 51.0], 4326, 200, 100).unwrap();
        // Columns lead north, rows east: the canvas is a degree wide and two high on the globe.
        place.transform = Some([10.0, 0.0, 0.01, 50.0, 0.01, 0.0]);
        let feature = square(10.0, 51.0, 0.5, json!({ "prompt": "north west" }));
        let regions = opened_at(feature.clone(), &place).unwrap();
        let found = [[120, 10], [184, 10], [10, 10], [120, 70]].map(|place| at(&regions, place));
        assert_eq!(found, ["north west 12", "base 12", "base 12", "base 12"]);
        // A row is a hundredth of a degree south, and twice that east.
        place.transform = Some([9.0, 0.01, 0.02, 52.0, 0.0, -0.01]);
        let regions = opened_at(feature, &place).unwrap();
        // Row 60 to 76 is 51.4 to 51.24, and begins at 10.2 to 10.52 degrees.
        let found = [[0, 60], [30, 60], [0, 10], [110, 10]].map(|place| at(&regions, place));
        assert_eq!(found, ["north west 12", "base 12", "base 12", "base 12"]);
    }

    #[test]
    fn what_lies_beyond_the_canvas_counts_nothing() {
        // 1. levels: of a window at the right edge 7 columns are a, 5 b, and 4 beyond
        let folder = tempfile::tempdir().unwrap();
        let (raster, words) = (folder.path().join("a.png"), folder.path().join("a.toml"));
        let level = |x: u32, y: u32| image::Luma([u8::from(x == 39) + 2 * u8::from(y == 19)]);
        image::GrayImage::from_fn(40, 20, level).save(&raster).unwrap();
        let text = "0 = \"a\"\n1 = \"right\"\n2 = \"lower\"\n3 = \"corner\"\n";
        std::fs::write(&words, text).unwrap();
        let regions = Regions::open_levels(&raster, &words, &canvas([false; 2]), false).unwrap();
        assert_eq!(at(&regions, [188, 40]), "a 12");
        assert_eq!(at(&regions, [40, 88]), "a 12");
        assert_eq!(at(&regions, [196, 40]), "right 12");
        // 2. areas, which go on there
        let bbox = [10.0, 50.0, 12.0, 51.0];
        let regions = opened(square(11.95, 50.0, 1.0, json!({ "prompt": "right" })), 4326, bbox);
        let regions = regions.unwrap();
        assert_eq!(at(&regions, [188, 40]), "base 12");
        assert_eq!(at(&regions, [192, 40]), "right 12");
        // 3. a window that is beyond as a whole is the scene's
        assert_eq!(at(&regions, [208, 40]), "base 12");
    }

    /// Of the record that a scene is gone on with by.
    #[test]
    fn whatever_is_said_shows_in_the_fingerprint() {
        let folder = tempfile::tempdir().unwrap();
        let (raster, words) = (folder.path().join("a.png"), folder.path().join("a.toml"));
        let levels = |size: [u32; 2], levels: [u8; 4], text: &str| {
            let picture = image::GrayImage::from_raw(size[0], size[1], levels.to_vec()).unwrap();
            picture.save(&raster).unwrap();
            std::fs::write(&words, text).unwrap();
            let regions = Regions::open_levels(&raster, &words, &canvas([false; 2]), true);
            regions.unwrap().fingerprint().to_owned()
        };
        let first = levels([2, 2], [0, 3, 3, 7], "[3]\nlevel = 16\n");
        assert_eq!(first, levels([2, 2], [0, 3, 3, 7], "[3]\nlevel = 16\n"));
        let areas = |properties: Value| {
            let bbox = [10.0, 50.0, 12.0, 51.0];
            let regions = opened(square(10.0, 50.0, 0.5, properties), 4326, bbox).unwrap();
            regions.fingerprint().to_owned()
        };
        let prints = [
            first,
            levels([2, 2], [0, 3, 3, 7], "[3]\nlevel = 17\n"),
            levels([2, 2], [0, 3, 7, 3], "[3]\nlevel = 16\n"),
            levels([4, 1], [0, 3, 3, 7], "[3]\nlevel = 16\n"),
            areas(json!({ "level": 16 })),
            areas(json!({ "level": 17 })),
            areas(json!({ "gsd": 1.5 })),
        ];
        for (i, print) in prints.iter().enumerate() {
            assert!(!prints[..i].contains(print), "{i}: {prints:?}");
        }
    }

    #[test]
    fn a_canvas_off_the_globe_is_refused() {
        let good = || square(10.0, 50.0, 1.0, json!({ "prompt": "a" }));
        for far in [1e300, 1e12] {
            let refused = opened(good(), 32614, [far, far, 2.0 * far, 2.0 * far]);
            let error = refused.err().unwrap().to_string();
            assert!(error.contains("bbox") && error.contains("EPSG:32614"), "{error}");
        }
        let mut place = Georeference::from_bbox([10.0, 50.0, 12.0, 51.0], 4326, 200, 100).unwrap();
        assert!(opened_at(good(), &place).is_ok());
        place.transform = None;
        assert!(opened_at(good(), &place).is_err());
    }

    #[test]
    fn levels_cover_the_canvas() {
        let folder = tempfile::tempdir().unwrap();
        let (raster, words) = (folder.path().join("a.png"), folder.path().join("a.toml"));
        image::GrayImage::from_raw(2, 2, vec![0, 3, 3, 7]).unwrap().save(&raster).unwrap();
        std::fs::write(&words, "0 = \"zero\"\n[3]\nprompt = \"three\"\nlevel = 16\nprompt_2 = \"3\"\nnegative_prompt_2 = \"snow\"\n").unwrap();
        let open =
            |wrap, has_words| Regions::open_levels(&raster, &words, &canvas(wrap), has_words);
        let regions = open([false, false], true).unwrap();
        let found = [[0, 0], [184, 0], [0, 84], [184, 84]].map(|place| at(&regions, place));
        assert_eq!(found, ["zero 12", "three 16", "three 16", "base 12"]);
        let base = Settings { prompt_2: "all".into(), ..Settings::default() };
        let second = [[0, 0], [184, 0]].map(|[x, y]| {
            let found = regions.settings(Window { x, y, width: 16, height: 16 }, &base);
            format!("{} {}", found.prompt_2, found.negative_prompt_2)
        });
        assert_eq!(second, ["all ", "3 snow"]);
        // A window over the end: only what is on the canvas counts, or what is at its beginning.
        assert_eq!(at(&regions, [199, 0]), "three 16");
        assert_eq!(at(&open([true, false], true).unwrap(), [199, 0]), "zero 12");
        let error = open([false, false], false).err().unwrap().to_string();
        assert!(error.contains("nothing of 7"), "{error}");
        let names: Vec<_> =
            regions.all(&Settings::default()).map(|(name, _)| name.to_owned()).collect();
        assert!(names[1].ends_with("a.toml, level 3"), "{names:?}");
        for wrong in ["a = \"x\"", "70000 = \"x\"", "[3]\npromt = \"x\"", "3 = 4", "="] {
            std::fs::write(&words, wrong).unwrap();
            assert!(open([false, false], true).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_that_say_something_else_are_errors() {
        let refused = |root: Value| {
            let opened = opened(root.clone(), 4326, [10.0, 50.0, 12.0, 51.0]);
            opened.err().unwrap_or_else(|| panic!("{root}")).to_string()
        };
        let good = || square(10.0, 50.0, 1.0, json!({ "prompt": "a" }));
        assert!(opened(good(), 4326, [10.0, 50.0, 12.0, 51.0]).is_ok());
        let with = |path: &str, value: Value| {
            let mut feature = good();
            *feature.pointer_mut(path).unwrap() = value;
            feature
        };
        for (root, expected) in [
            (json!([]), "FeatureCollection"),
            (json!({ "type": "FeatureCollection", "features": [] }), "at least one"),
            (with("/properties", json!({ "promt": "a" })), "promt"),
            (with("/properties", Value::Null), "feature 1"),
            (with("/properties/prompt", json!(7)), "feature 1"),
            (with("/geometry", Value::Null), "Polygon"),
            (with("/geometry/type", json!("Point")), "Point"),
            (with("/geometry/coordinates/0/1", json!([500_000.0, 50.0])), "projected"),
            (with("/geometry/coordinates/0/4", json!([10.0, 50.1])), "last is the first"),
            (with("/geometry/coordinates", json!([])), "an area"),
        ] {
            let error = refused(root);
            assert!(error.contains(expected) && error.contains("areas.geojson"), "{error}");
        }
        let mut other = good();
        other["crs"] =
            json!({ "type": "name", "properties": { "name": "urn:ogc:def:crs:EPSG::32632" } });
        assert!(refused(other).contains("longitude and latitude"));
        let error = opened(good(), 1024, [0.0, 0.0, 1.0, 1.0]).err().unwrap().to_string();
        assert!(error.contains("epsg: 1024"), "{error}");
    }
}
