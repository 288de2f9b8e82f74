//! What some models are told of a picture beside its prompt, in the words of those who ask: a place, a date, metres; and
//! the numbers that the models were trained with.
//!
//! | model | is told | the unconditional half |
//! |---|---|---|
//! | Text2Earth (`class_embed_type: timestep`) | a zoom level, 10 to 18, or 0 for none | 0 |
//! | DiffusionSat (`SatUNet`) | longitude, latitude, metres a pixel, clouds, year, month, day; 0 for what is not known | zeros |
//! | a table of classes | its class | the same |
//! | numbers as they are, or projected | those | zeros |
//!
//! Sources: Text2Earth's README (Liu et al. 2025; a level stands for 2^(17 - level) metres a pixel) and its
//! `pipeline_text2earth_diffusion.py`; DiffusionSat's `diffusionsat/data_util.py` (`fmow_numerical_metadata`,
//! `metadata_normalize`) and `pipeline.py` (`prepare_metadata`); diffusers' `pipeline_stable_diffusion_upscale.py` (one
//! label for both halves) and `pipeline_stable_unclip.py` (zeros for the unconditional one).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::error::{Error, Result};
use crate::models::unet::{ClassEmbedding, Vector, VectorConfig};
use crate::pipeline::settings::Settings;

/// The zoom levels of Google's maps that Text2Earth was trained with.
pub const LEVELS: std::ops::RangeInclusive<u32> = 10..=18;

/// What Text2Earth's prompts have behind the level.
const LEVEL: &str = "_GOOGLE_LEVEL_";

/// Longest side of a pixel on the ground in metres, which is that of the coarsest satellites.
const MAX_GSD: f64 = 10_000.0;

/// A place on the globe; as text `LATITUDE,LONGITUDE` in degrees.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Place {
    latitude: f64,
    longitude: f64,
}

impl Place {
    /// From degrees north and east.
    ///
    /// # Errors
    /// `Argument` for a place off the globe.
    pub fn new(latitude: f64, longitude: f64) -> Result<Self> {
        if (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude) {
            return Ok(Self { latitude, longitude });
        }
        let expected = "a latitude from -90 to 90 and a longitude from -180 to 180, in degrees";
        Err(Error::argument("place", format!("{latitude},{longitude}"), expected))
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let degrees = |text: &str| text.trim().parse::<f64>();
        match text.split_once(',').map(|(a, b)| (degrees(a), degrees(b))) {
            Some((Ok(latitude), Ok(longitude))) => Self::new(latitude, longitude),
            _ => {
                let expected = "LATITUDE,LONGITUDE in degrees, such as 48.85,2.35 or -33.9,18.4";
                Err(Error::argument("place", text, expected))
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.latitude, self.longitude)
    }
}

/// A day; as text `YEAR-MONTH-DAY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

impl FromStr for Date {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected = "a day of the calendar as YEAR-MONTH-DAY, such as 2021-07-04";
        let wrong = || Error::argument("date", text, expected);
        // Digits alone: a sign would be read as part of a number.
        let number = |text: &str, digits: usize| {
            let fits = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
            fits.then(|| text.parse::<u16>().ok()).flatten()
        };
        let parts: Vec<&str> = text.split('-').collect();
        let &[year, month, day] = &*parts else { return Err(wrong()) };
        let parts = (number(year, 4), number(month, 2), number(day, 2));
        let (Some(year), Some(month), Some(day)) = parts else { return Err(wrong()) };
        let leap =
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let days = match month {
            2 => 28 + u16::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if !(1..=12).contains(&month) || !(1..=days).contains(&day) {
            return Err(wrong());
        }
        Ok(Self { year, month: month as u8, day: day as u8 })
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// The side of a pixel on the ground; as text in metres or centimetres, in JSON a number of metres too.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
pub struct Metres(f64);

impl Metres {
    /// From metres.
    ///
    /// # Errors
    /// `Argument` for what is no length above 0, or above 10 km.
    pub fn new(metres: f64) -> Result<Self> {
        if metres > 0.0 && metres <= MAX_GSD {
            return Ok(Self(metres));
        }
        let expected = format!("a number of metres above 0 and up to {MAX_GSD}");
        Err(Error::argument("gsd", metres, expected))
    }
}

impl FromStr for Metres {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (number, unit) = match (text.strip_suffix("cm"), text.strip_suffix('m')) {
            (Some(number), _) => (number, 0.01),
            (_, number) => (number.unwrap_or(text), 1.0),
        };
        match number.trim().parse::<f64>() {
            Ok(number) => Self::new(number * unit),
            Err(_) => Err(Error::argument("gsd", text, "metres a pixel, such as 1.2m or 30cm")),
        }
    }
}

impl fmt::Display for Metres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}m", self.0)
    }
}

impl<'de> Deserialize<'de> for Metres {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(f64),
            Text(String),
        }
        let read = match Either::deserialize(from)? {
            Either::Number(metres) => Self::new(metres),
            Either::Text(text) => text.parse(),
        };
        read.map_err(de::Error::custom)
    }
}

/// How serde reads and writes what has a text.
macro_rules! as_text {
    ($($T:ty),+) => {$(
        impl TryFrom<String> for $T {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$T> for String {
            fn from(value: $T) -> Self {
                value.to_string()
            }
        }
    )+};
}

as_text!(Place, Date);

/// Checks what needs no model.
pub(super) fn check(settings: &Settings) -> Result<()> {
    if let Some(level) = settings.level.filter(|level| !LEVELS.contains(level)) {
        return Err(Error::argument("level", level, levels()));
    }
    if let Some(cloud) = settings.cloud.filter(|cloud| !(0.0..=1.0).contains(cloud)) {
        return Err(Error::argument("cloud", cloud, "the share that clouds cover, 0 to 1"));
    }
    let labels = settings.class_labels.iter().flatten();
    if let Some(label) = labels.into_iter().find(|label| !label.is_finite()) {
        return Err(Error::argument("class_labels", label, "finite numbers"));
    }
    Ok(())
}

fn levels() -> String {
    format!("a zoom level from {} to {}", LEVELS.start(), LEVELS.end())
}

/// What is said with a prompt, as a model takes it.
pub(super) struct Told<'a> {
    /// The prompt, without what the model is told otherwise.
    pub prompt: Cow<'a, str>,
    /// Without the prompt, with it.
    pub vectors: [Vector; 2],
}

impl<'a> Told<'a> {
    /// What `settings` say to a model of `config`.
    ///
    /// # Errors
    /// `Argument`, naming the first field that the model takes no part of, or has to be given.
    pub fn new(config: &VectorConfig, settings: &'a Settings) -> Result<Self> {
        let taken = |field: &str| match field {
            "level" => config.class == Some(ClassEmbedding::Timestep),
            "class_labels" => config.class.is_some(),
            "gsd" => config.metadata > 0 || config.class == Some(ClassEmbedding::Timestep),
            _ => config.metadata > 0,
        };
        let given: [(&'static str, Option<String>); 6] = [
            ("level", settings.level.map(|level| level.to_string())),
            ("gsd", settings.gsd.map(|gsd| gsd.to_string())),
            ("place", settings.place.map(|place| place.to_string())),
            ("date", settings.date.map(|date| date.to_string())),
            ("cloud", settings.cloud.map(|cloud| cloud.to_string())),
            ("class_labels", settings.class_labels.as_ref().map(|labels| format!("{labels:?}"))),
        ];
        let is_given = |field: &str| given.iter().any(|(name, x)| *name == field && x.is_some());
        for (field, found) in &given {
            if let Some(found) = found
                && !taken(field)
            {
                let takes: Vec<_> =
                    given.iter().map(|(name, _)| *name).filter(|name| taken(name)).collect();
                let expected = match takes.is_empty() {
                    true => "nothing: this model is told no more than a prompt".to_owned(),
                    false => format!("nothing: of such this model takes {}", takes.join(", ")),
                };
                return Err(Error::argument(field, found, expected));
            }
        }

        let mut prompt = Cow::Borrowed(settings.prompt.as_str());
        let mut class = [Vec::new(), Vec::new()];
        if let Some(kind) = config.class {
            let labels = settings.class_labels.as_deref();
            if let Some(labels) = labels.filter(|labels| labels.len() != kind.inputs()) {
                let expected = format!("{} numbers, which this model takes", kind.inputs());
                return Err(Error::argument("class_labels", format!("{labels:?}"), expected));
            }
            class = match kind {
                ClassEmbedding::Timestep => {
                    let (level, rest) = level(settings, config.metadata == 0)?;
                    prompt = rest;
                    [vec![0.0], vec![level]]
                }
                ClassEmbedding::Table(classes) => {
                    let label = labels.and_then(|labels| labels.first().copied());
                    let is_class = |x: &f32| x.fract() == 0.0 && (0.0..classes as f32).contains(x);
                    let Some(label) = label.filter(is_class) else {
                        let found = label.map_or("none".to_owned(), |label| label.to_string());
                        let expected = format!("the class, from 0 to {}", classes - 1);
                        return Err(Error::argument("class_labels", found, expected));
                    };
                    [vec![label], vec![label]]
                }
                _ => {
                    let Some(labels) = labels else {
                        let expected = format!("{} numbers, which this model needs", kind.inputs());
                        return Err(Error::argument("class_labels", "none", expected));
                    };
                    [vec![0.0; labels.len()], labels.to_vec()]
                }
            };
        }
        let mut metadata = [Vec::new(), Vec::new()];
        if config.metadata > 0 {
            if !["place", "gsd", "cloud", "date"].into_iter().any(is_given) {
                // Where DiffusionSat's own pipeline fails an assertion.
                let expected = "this model needs some of place, gsd, date and cloud";
                return Err(Error::argument("place", "none", expected));
            }
            metadata = [vec![0.0; config.metadata], numbers_of(settings)?.to_vec()];
        }
        let ([labels, class], [unknown, metadata]) = (class, metadata);
        // The rest follows from the picture, and from what is made of the prompt.
        let vector = |class, metadata| Vector { class, metadata, ..Vector::default() };
        let vectors = [vector(labels, unknown), vector(class, metadata)];
        Ok(Self { prompt, vectors })
    }
}

/// The level that is asked for in one of several ways, 0 for none, and the prompt without it. Metres stand for a level where
/// they are `for_level`.
fn level(settings: &Settings, for_level: bool) -> Result<(f32, Cow<'_, str>)> {
    let mut found: Vec<(&'static str, f32)> = Vec::new();
    found.extend(settings.level.map(|level| ("level", level as f32)));
    if let (Some(Metres(metres)), true) = (settings.gsd, for_level) {
        let level = 17.0 - metres.log2().round();
        if !(f64::from(*LEVELS.start())..=f64::from(*LEVELS.end())).contains(&level) {
            let expected = "0.5m to 128m, which this model knows as the zoom levels 18 to 10";
            return Err(Error::argument("gsd", Metres(metres), expected));
        }
        found.push(("gsd", level as f32));
    }
    let labels = settings.class_labels.iter().flatten();
    found.extend(labels.map(|label| ("class_labels", *label)));
    let mut prompt = Cow::Borrowed(settings.prompt.as_str());
    if let Some((before, _)) = settings.prompt.split_once(LEVEL) {
        let level = before.trim().parse::<u32>().ok();
        let Some(level) = level.filter(|level| *level == 0 || LEVELS.contains(level)) else {
            let expected = format!("{}, or 0 for none, before {LEVEL}", levels());
            return Err(Error::argument("prompt", before, expected));
        };
        found.push(("prompt", level as f32));
        // What is behind the last, as Text2Earth's pipeline has it.
        prompt = settings.prompt.rsplit(LEVEL).next().unwrap_or_default().into();
    }
    let level = found.first().map_or(0.0, |&(_, level)| level);
    if let Some((name, other)) = found.iter().find(|&&(_, other)| other != level) {
        let expected = format!("the level {level} that {} asks for", found[0].0);
        return Err(Error::argument(name, format!("level {other}"), expected));
    }
    Ok((level, prompt))
}

/// DiffusionSat's numbers: longitude, latitude, metres a pixel, clouds, year, month, day, each 1000 at its end; what is not
/// known is 0, as where its data sets do not say.
fn numbers_of(settings: &Settings) -> Result<[f32; 7]> {
    /// The first year, and how many there are.
    const YEARS: (u16, u16) = (1980, 120);
    if let Some(date) = settings.date
        && !(YEARS.0..=YEARS.0 + YEARS.1).contains(&date.year)
    {
        let expected = format!("a date from {} to {}", YEARS.0, YEARS.0 + YEARS.1);
        return Err(Error::argument("date", date, expected));
    }
    let place = |of: fn(Place) -> f64| settings.place.map(of);
    let date = |of: fn(Date) -> f64| settings.date.map(of);
    let shares = [
        place(|place| (place.longitude + 180.0) / 360.0),
        place(|place| (place.latitude + 90.0) / 180.0),
        settings.gsd.map(|gsd| gsd.0),
        settings.cloud,
        date(|date| f64::from(date.year - YEARS.0) / f64::from(YEARS.1)),
        date(|date| f64::from(date.month) / 12.0),
        date(|date| f64::from(date.day) / 31.0),
    ];
    Ok(shares.map(|share| (share.unwrap_or_default() * 1000.0) as f32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(class: Option<ClassEmbedding>, metadata: usize) -> VectorConfig {
        VectorConfig { class, metadata, ..VectorConfig::default() }
    }

    fn field(error: Error) -> &'static str {
        match error {
            Error::Argument { name, .. } => name,
            other => panic!("{other}"),
        }
    }

    fn refused(config: VectorConfig, settings: Settings) -> &'static str {
        field(Told::new(&config, &settings).err().unwrap())
    }

    #[test]
    fn texts_are_read_as_they_are_written() {
        let place: Place = " -33.9, 18.4 ".parse().unwrap();
        assert_eq!(
            (place, place.to_string()),
            (Place::new(-33.9, 18.4).unwrap(), "-33.9,18.4".into())
        );
        assert_eq!("2024-02-29".parse::<Date>().unwrap().to_string(), "2024-02-29");
        for (text, metres) in [("1.2m", 1.2), ("1.2", 1.2), ("30cm", 0.3), ("10 m", 10.0)] {
            assert_eq!(text.parse::<Metres>().unwrap(), Metres(metres), "{text}");
        }
        for text in ["91,0", "-90.1,0", "0,180.5", "0,-181", "NaN,0", "0,inf", "48.85", "a,b", ""] {
            assert_eq!(field(text.parse::<Place>().unwrap_err()), "place", "{text}");
        }
        for text in
            ["2023-02-29", "1900-02-29", "2021-13-01", "2021-00-01", "2021-04-31", "2021-1-1"]
        {
            assert_eq!(field(text.parse::<Date>().unwrap_err()), "date", "{text}");
        }
        for text in ["yesterday", "", "2021-07", "2021-07-04-", "+021-07-04", "2021-07-00"] {
            assert_eq!(field(text.parse::<Date>().unwrap_err()), "date", "{text}");
        }
        for text in ["0", "-1m", "NaN", "inf", "20000m", "1km", "m", ""] {
            assert_eq!(field(text.parse::<Metres>().unwrap_err()), "gsd", "{text}");
        }
    }

    /// The example of DiffusionSat's notebook (`notebooks/single-image.ipynb`), an amusement park in Australia.
    #[test]
    fn numbers_are_those_of_diffusionsat() {
        let settings = Settings {
            place: Some("-27.862,153.3167".parse().unwrap()),
            gsd: Some("0.4114541m".parse().unwrap()),
            cloud: Some(0.0),
            date: Some("2017-02-11".parse().unwrap()),
            ..Settings::default()
        };
        let told = Told::new(&config(None, 7), &settings).unwrap();
        let theirs = [925.8798f32, 345.2111, 411.4541, 0.0, 308.3333, 166.6667, 354.8387];
        let [without, with] = told.vectors;
        assert_eq!(without.metadata, [0.0; 7]);
        for (ours, theirs) in with.metadata.iter().zip(theirs) {
            assert!((ours - theirs).abs() < 1e-3, "{ours} {theirs}");
        }
        // What is not known is 0.
        let settings = Settings { cloud: Some(0.25), ..Settings::default() };
        let told = Told::new(&config(None, 7), &settings).unwrap();
        assert_eq!(told.vectors[1].metadata, [0.0, 0.0, 0.0, 250.0, 0.0, 0.0, 0.0]);
        assert_eq!(refused(config(None, 7), Settings::default()), "place");
        let early = Settings { date: Some("1979-12-31".parse().unwrap()), ..Settings::default() };
        assert_eq!(refused(config(None, 7), early), "date");
    }

    #[test]
    fn a_level_is_asked_for_in_several_ways() {
        let timestep = config(Some(ClassEmbedding::Timestep), 0);
        let of = |settings: &Settings| {
            let Told { prompt, vectors: [without, with] } = Told::new(&timestep, settings).unwrap();
            assert_eq!(without.class, [0.0]);
            (prompt.into_owned(), with.class[0])
        };
        let prompt = |prompt: &str| Settings { prompt: prompt.into(), ..Settings::default() };
        assert_eq!(of(&prompt("16_GOOGLE_LEVEL_a farm")), ("a farm".into(), 16.0));
        assert_eq!(of(&prompt("18_GOOGLE_LEVEL_")), (String::new(), 18.0));
        assert_eq!(of(&prompt("a farm")), ("a farm".into(), 0.0));
        assert_eq!(of(&Settings { level: Some(10), ..prompt("a") }), ("a".into(), 10.0));
        for (gsd, level) in
            [("0.5m", 18.0), ("1.2m", 17.0), ("2m", 16.0), ("10m", 14.0), ("128", 10.0)]
        {
            let settings = Settings { gsd: Some(gsd.parse().unwrap()), ..prompt("a") };
            assert_eq!(of(&settings).1, level, "{gsd}");
        }
        let same = Settings { level: Some(16), ..prompt("16_GOOGLE_LEVEL_a") };
        assert_eq!(of(&same), ("a".into(), 16.0));
        let labels = Settings { class_labels: Some(vec![500.0]), ..prompt("a") };
        assert_eq!(of(&labels).1, 500.0);

        let other = Settings { level: Some(15), ..prompt("16_GOOGLE_LEVEL_a") };
        assert_eq!(refused(timestep, other), "prompt");
        for text in ["9_GOOGLE_LEVEL_a", "19_GOOGLE_LEVEL_a", "x_GOOGLE_LEVEL_a", "_GOOGLE_LEVEL_a"]
        {
            assert_eq!(refused(timestep, prompt(text)), "prompt", "{text}");
        }
        for gsd in ["0.3m", "300m"] {
            let settings = Settings { gsd: Some(gsd.parse().unwrap()), ..prompt("a") };
            assert_eq!(refused(timestep, settings), "gsd", "{gsd}");
        }
        // A model without levels reads the words.
        let settings = prompt("16_GOOGLE_LEVEL_a");
        let told = Told::new(&config(None, 0), &settings).unwrap();
        assert_eq!(
            (&*told.prompt, told.vectors),
            ("16_GOOGLE_LEVEL_a", [Vector::default(), Vector::default()])
        );
    }

    #[test]
    fn labels_are_those_that_the_model_takes() {
        let labels = |labels: &[f32]| Settings {
            class_labels: Some(labels.to_vec()),
            ..Settings::default()
        };
        let vectors = |class, settings: &Settings| {
            Told::new(&config(Some(class), 0), settings).unwrap().vectors.map(|vector| vector.class)
        };
        assert_eq!(vectors(ClassEmbedding::Table(7), &labels(&[6.0])), [[6.0], [6.0]]);
        assert_eq!(
            vectors(ClassEmbedding::Projection(2), &labels(&[3.0, 4.0])),
            [[0.0, 0.0], [3.0, 4.0]]
        );
        for (class, settings) in [
            (ClassEmbedding::Table(7), labels(&[7.0])),
            (ClassEmbedding::Table(7), labels(&[0.5])),
            (ClassEmbedding::Table(7), labels(&[-1.0])),
            (ClassEmbedding::Table(7), labels(&[1.0, 2.0])),
            (ClassEmbedding::Table(7), Settings::default()),
            (ClassEmbedding::Identity(2), labels(&[1.0])),
            (ClassEmbedding::SimpleProjection(2), Settings::default()),
        ] {
            assert_eq!(refused(config(Some(class), 0), settings), "class_labels", "{class:?}");
        }
    }

    #[test]
    fn a_model_that_does_not_take_a_field_refuses_it() {
        type Set = fn(&mut Settings);
        let all: [(&str, Set); 6] = [
            ("level", |s| s.level = Some(16)),
            ("gsd", |s| s.gsd = Some(Metres(1.2))),
            ("place", |s| s.place = Some(Place::new(0.0, 0.0).unwrap())),
            ("date", |s| s.date = "2021-07-04".parse().ok()),
            ("cloud", |s| s.cloud = Some(0.1)),
            ("class_labels", |s| s.class_labels = Some(vec![1.0])),
        ];
        let timestep = Some(ClassEmbedding::Timestep);
        for (config, takes) in [
            (config(None, 0), &[][..]),
            (config(timestep, 0), &["level", "gsd", "class_labels"]),
            (config(None, 7), &["gsd", "place", "date", "cloud"]),
            (config(Some(ClassEmbedding::Table(3)), 0), &["class_labels"]),
        ] {
            for (name, set) in all {
                let mut settings = Settings::default();
                set(&mut settings);
                match Told::new(&config, &settings) {
                    Ok(_) => assert!(takes.contains(&name), "{config:?} takes {name}"),
                    Err(error) => assert!(!takes.contains(&name), "{config:?}: {error}"),
                }
            }
        }
        let mut settings = Settings { level: Some(9), ..Settings::default() };
        assert_eq!(field(check(&settings).unwrap_err()), "level");
        settings = Settings { cloud: Some(f64::NAN), ..Settings::default() };
        assert_eq!(field(check(&settings).unwrap_err()), "cloud");
        settings = Settings { class_labels: Some(vec![f32::INFINITY]), ..Settings::default() };
        assert_eq!(field(check(&settings).unwrap_err()), "class_labels");
    }
}
