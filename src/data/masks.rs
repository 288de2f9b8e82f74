//! Pictures with masks of classes, to learn from by the crop, and to measure by, tile by tile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::moments::Moments;
use super::random::{Draws, Purpose, permutation};
use super::{Batches, Examples, check_counts};
use crate::error::{Error, Result};
use crate::io::parquet::Pictures;
use crate::io::raster::{self, Mask, Raster};
use crate::tensor::Tensor;

/// The class of a pixel that counts for nothing.
pub const IGNORED: u32 = u32::MAX;

/// Memory that a data set's pictures take at most.
const MAX_MEMORY: usize = 8 << 30;

/// How often a place for a crop is drawn before one that has a class will do.
const DRAWS: usize = 32;

/// What the levels of a band are normalised by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Normal {
    /// Mean and deviation over all pictures
    #[default]
    Data,
    /// Those of each picture, which so count for nothing: pictures differ in light
    Picture,
}

impl Normal {
    /// Names in a network's `config.json`.
    pub const NAMES: [(&str, Self); 2] = [("data", Self::Data), ("picture", Self::Picture)];

    /// Its name there and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Picture => "picture",
        }
    }
}

/// How crops are made of pictures with masks.
#[derive(Clone, Debug, PartialEq, Args)]
#[command(next_help_heading = "Data")]
pub struct MaskSettings {
    /// Height and width of a crop in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 256, allow_negative_numbers = true)]
    pub resolution: usize,

    /// Names of the classes 0, 1, ..., by commas [default: the numbers that masks have]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub classes: Vec<String>,

    /// Level of a mask that stands for no class
    #[arg(long, value_name = "LEVEL", default_value_t = 255)]
    pub ignore_index: u16,

    /// What mean and deviation the levels of each band are normalised by; the network keeps to it
    #[arg(long, value_enum, default_value_t)]
    pub normalize: Normal,

    /// Mirror every other crop left to right
    #[arg(long, visible_alias = "horizontal-flip")]
    pub random_flip: bool,

    /// Mirror every other crop top to bottom
    #[arg(long)]
    pub vertical_flip: bool,

    /// Turn crops by quarters: from above there is no up
    #[arg(long)]
    pub random_rotate: bool,

    /// Multiply each band of a crop by a factor of its own of up to 1 +- X: light and haze differ by band and year
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub brightness: f32,

    /// Stretch each band of a crop about its mean by a factor of its own of up to 1 +- X
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub contrast: f32,
}

impl Default for MaskSettings {
    /// Crops as they are.
    fn default() -> Self {
        Self {
            resolution: 256,
            classes: Vec::new(),
            ignore_index: 255,
            normalize: Normal::default(),
            random_flip: false,
            vertical_flip: false,
            random_rotate: false,
            brightness: 0.0,
            contrast: 0.0,
        }
    }
}

/// A picture and its mask.
struct Pair {
    picture: Raster,
    mask: Mask,
}

/// A square part of a picture.
#[derive(Clone, Copy)]
struct Tile {
    pair: usize,
    y: usize,
    x: usize,
    /// Rows above and columns left of these are another tile's.
    own: [usize; 2],
}

/// Pictures with masks, or a part of them. Cheap to clone.
#[derive(Clone)]
pub struct MaskedPictures {
    all: Arc<All>,
    /// What an epoch draws crops for, and what a pass goes over.
    tiles: Arc<[Tile]>,
}

struct All {
    pairs: Vec<Pair>,
    /// Mean and deviation of each picture's bands, by which its levels are normalised; none where it is not by picture.
    normals: Vec<Vec<(f32, f32)>>,
    bands: usize,
    classes: Vec<String>,
    settings: MaskSettings,
}

/// Some crops with their classes.
pub struct MaskedBatch {
    /// [B, H, W, bands], levels from 0 to 1, or those of each picture [normalised](Normal::Picture)
    pub images: Tensor,
    /// [B, H, W], u32; [`IGNORED`] where there is none
    pub classes: Tensor,
}

impl MaskedPictures {
    /// Opens a folder with `images/` and `masks/`, in which a picture and its mask have one name but for the ending, or a
    /// parquet file with columns `image` and `mask`; all of it is held in memory.
    ///
    /// # Errors
    /// A file is missing or damaged; a picture without a mask, or of another size; a level that is no class; a class that no
    /// mask has; pictures of different bands, or smaller than a crop; more than 8 GiB.
    pub fn open(path: impl AsRef<Path>, settings: MaskSettings) -> Result<Self> {
        let path = path.as_ref();
        if !(1..=4096).contains(&settings.resolution) {
            return Err(Error::argument("resolution", settings.resolution, "1 to 4096 pixels"));
        }
        for (name, x) in [("brightness", settings.brightness), ("contrast", settings.contrast)] {
            if !(0.0..=1.0).contains(&x) {
                return Err(Error::argument(name, x, "0 to 1"));
            }
        }
        let (named, classes) = pairs(path, &settings, settings.resolution)?;
        let pairs: Vec<Pair> = named.into_iter().map(|(_, pair)| pair).collect();
        let bands = pairs[0].picture.bands;
        let normals = |pair: &Pair| -> Vec<(f32, f32)> {
            (0..bands).map(|band| moments(&pair.picture, band).normal()).collect()
        };
        let normals = match settings.normalize {
            Normal::Data => Vec::new(),
            Normal::Picture => pairs.iter().map(normals).collect(),
        };
        let all = All { pairs, normals, bands, classes, settings };
        let tiles = (0..all.pairs.len()).flat_map(|pair| all.tiles(pair)).collect();
        Ok(Self { all: Arc::new(all), tiles })
    }

    /// Bands of the pictures.
    pub fn bands(&self) -> usize {
        self.all.bands
    }

    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.all.classes
    }

    /// Height and width of a crop.
    pub fn resolution(&self) -> usize {
        self.all.settings.resolution
    }

    /// What levels are normalised by.
    pub fn normalize(&self) -> Normal {
        self.all.settings.normalize
    }

    /// Mean and deviation of each band's levels, 0 to 1, over all pictures.
    pub fn statistics(&self) -> (Vec<f32>, Vec<f32>) {
        let pairs: BTreeSet<usize> = self.tiles.iter().map(|tile| tile.pair).collect();
        let of_band = |band| {
            let of_picture = |pair: &usize| moments(&self.all.pairs[*pair].picture, band);
            pairs.iter().map(of_picture).fold(Moments::default(), Moments::and).normal()
        };
        (0..self.bands()).map(of_band).unzip()
    }

    /// Parts it in two at random, whole pictures: the second has the share `held_out` of them, at least one.
    ///
    /// # Errors
    /// A share that leaves one of them empty.
    pub fn split(&self, held_out: f64, seed: u64) -> Result<(Self, Self)> {
        let pictures = self.all.pairs.len();
        let n = ((pictures as f64 * held_out).round() as usize).max(1);
        if !(held_out > 0.0 && n < pictures) {
            let expected = format!("a share of {pictures} pictures that leaves some on both sides");
            return Err(Error::argument("validation_split", held_out, expected));
        }
        let order = permutation(pictures, seed, 0, Purpose::Split);
        let second: BTreeSet<usize> = order[..n].iter().copied().collect();
        let part = |held: bool| {
            let tiles = self.tiles.iter().filter(|tile| second.contains(&tile.pair) == held);
            Self { all: self.all.clone(), tiles: tiles.copied().collect() }
        };
        let (first, second) = (part(false), part(true));
        match first.is_empty() || second.is_empty() {
            false => Ok((first, second)),
            true => {
                let expected = "a share that leaves pixels with classes on both sides";
                Err(Error::argument("validation_split", held_out, expected))
            }
        }
    }

    /// The crop at `tile` as it lies, or one of the same picture that is drawn.
    fn crop(&self, tile: Tile, draws: Option<Draws>, images: &mut Vec<f32>, to: &mut Vec<u32>) {
        let (all, side) = (&self.all, self.resolution());
        let settings = &all.settings;
        let Pair { picture, mask } = &all.pairs[tile.pair];
        let mut place = tile;
        // 1. where, and how it is turned
        let mut turn = Turn::default();
        let mut light = vec![[1.0, 1.0]; all.bands];
        if let Some(mut draws) = draws {
            // All are drawn always, so that one setting leaves the others' numbers alone.
            let (horizontal, vertical, quarters) = (draws.coin(), draws.coin(), draws.below(4));
            turn = Turn {
                horizontal: settings.random_flip && horizontal,
                vertical: settings.vertical_flip && vertical,
                quarters: if settings.random_rotate { quarters } else { 0 },
            };
            for _ in 0..DRAWS {
                let y = draws.below(picture.height - side + 1);
                let x = draws.below(picture.width - side + 1);
                let drawn = Tile { y, x, own: [y, x], ..tile };
                if all.has_class(drawn) {
                    place = drawn;
                    break;
                }
                place = Tile { own: [tile.y, tile.x], ..tile };
            }
            let mut factor = |x: f32| draws.between(1.0 - x, 1.0 + x);
            light.fill_with(|| [settings.brightness, settings.contrast].map(&mut factor));
        }
        // 2. pixel by pixel
        let start = images.len();
        for i in 0..side * side {
            let (y, x) = turn.source(i / side, i % side, side);
            let (y, x) = (place.y + y, place.x + x);
            images.extend((0..all.bands).map(|band| picture.level(y, x, band)));
            let is_own = y >= place.own[0] && x >= place.own[1];
            to.push(if is_own { all.class(mask, y, x) } else { IGNORED });
        }
        // 3. band by band
        for (band, [brightness, contrast]) in light.into_iter().enumerate() {
            if [brightness, contrast] == [1.0, 1.0] {
                continue;
            }
            let mut own: Vec<&mut f32> =
                images[start..].iter_mut().skip(band).step_by(all.bands).collect();
            let mean = own.iter().map(|x| f64::from(**x)).sum::<f64>() / own.len() as f64;
            let mean = mean as f32;
            for x in &mut own {
                **x = (brightness * (mean + contrast * (**x - mean))).clamp(0.0, 1.0);
            }
        }
        if let Some(normals) = all.normals.get(tile.pair) {
            for pixel in images[start..].chunks_exact_mut(all.bands) {
                for (x, (mean, deviation)) in pixel.iter_mut().zip(normals) {
                    *x = (*x - mean) / deviation;
                }
            }
        }
    }

    fn batch(&self, places: impl Iterator<Item = (Tile, Option<Draws>)>) -> Result<MaskedBatch> {
        let (mut images, mut classes) = (Vec::new(), Vec::new());
        places.for_each(|(tile, draws)| self.crop(tile, draws, &mut images, &mut classes));
        let side = self.resolution();
        let batch = classes.len() / (side * side);
        Ok(MaskedBatch {
            images: Tensor::from_vec(images, [batch, side, side, self.bands()])?,
            classes: Tensor::from_vec(classes, [batch, side, side])?,
        })
    }
}

/// Those of a band.
fn moments(picture: &Raster, band: usize) -> Moments {
    let mut moments = Moments::default();
    for y in 0..picture.height {
        (0..picture.width).for_each(|x| moments.add(picture.level(y, x, band)));
    }
    moments
}

/// Mirrored and turned.
#[derive(Clone, Copy, Default)]
struct Turn {
    horizontal: bool,
    vertical: bool,
    quarters: usize,
}

impl Turn {
    /// Where the pixel (y, x) of a square comes from.
    fn source(self, y: usize, x: usize, side: usize) -> (usize, usize) {
        let last = side - 1;
        let (y, x) = match self.quarters {
            0 => (y, x),
            1 => (last - x, y),
            2 => (last - y, last - x),
            _ => (x, last - y),
        };
        let flip = |at, flipped| if flipped { last - at } else { at };
        (flip(y, self.vertical), flip(x, self.horizontal))
    }
}

impl All {
    fn class(&self, mask: &Mask, y: usize, x: usize) -> u32 {
        match mask.classes[y * mask.width + x] {
            level if level == self.settings.ignore_index => IGNORED,
            level => u32::from(level),
        }
    }

    /// Whether some pixel that a tile has for itself has a class.
    fn has_class(&self, tile: Tile) -> bool {
        let (side, mask) = (self.settings.resolution, &self.pairs[tile.pair].mask);
        let columns = tile.own[1]..tile.x + side;
        (tile.own[0]..tile.y + side)
            .any(|y| columns.clone().any(|x| self.class(mask, y, x) != IGNORED))
    }

    /// Tiles that cover a picture, the last of each row and column reaching back from the edge; those without a class are
    /// left out.
    fn tiles(&self, pair: usize) -> Vec<Tile> {
        let (side, Raster { height, width, .. }) =
            (self.settings.resolution, &self.pairs[pair].picture);
        let starts = |length: usize| {
            (0..length.div_ceil(side)).map(move |i| ((i * side).min(length - side), i * side))
        };
        let tile = move |(y, own_y): (usize, usize)| {
            starts(*width).map(move |(x, own_x)| Tile { pair, y, x, own: [own_y, own_x] })
        };
        starts(*height).flat_map(tile).filter(|tile| self.has_class(*tile)).collect()
    }
}

impl Examples for MaskedPictures {
    type Batch = MaskedBatch;

    fn len(&self) -> usize {
        self.tiles.len()
    }

    fn stream(
        &self,
        batch: usize,
        seed: u64,
        start: u64,
        threads: usize,
    ) -> Result<Batches<'_, MaskedBatch>> {
        check_counts(batch, threads)?;
        let (n, mut order) = (self.len() as u64, (u64::MAX, Vec::new()));
        let mut next = start;
        Ok(Box::new(std::iter::from_fn(move || {
            let places = (next..next + batch as u64).map(|i| {
                let (epoch, place) = (i / n, i % n);
                if order.0 != epoch {
                    order = (epoch, permutation(n as usize, seed, epoch, Purpose::Order));
                }
                let row = order.1[place as usize];
                (self.tiles[row], Some(Draws::new(seed, epoch, row as u32, Purpose::Row)))
            });
            let made = self.batch(places);
            next += batch as u64;
            Some(made)
        })))
    }

    fn pass(&self, batch: usize, threads: usize) -> Result<Batches<'_, MaskedBatch>> {
        check_counts(batch, threads)?;
        let tiles = self.tiles.chunks(batch);
        Ok(Box::new(tiles.map(|tiles| self.batch(tiles.iter().map(|&tile| (tile, None))))))
    }
}

/// The numbers below `count` in an order drawn by `seed`.
pub fn order(count: usize, seed: u64) -> Vec<usize> {
    permutation(count, seed, 0, Purpose::Split)
}

/// Whether a data set has masks: a folder of them, or a column.
///
/// # Errors
/// It cannot be read.
pub fn has_masks(path: &Path) -> Result<bool> {
    if path.is_dir() {
        Ok(path.join("masks").is_dir())
    } else {
        Ok(Pictures::open(path)?.has("mask"))
    }
}

/// A picture with its mask, whole.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// What errors call it: its file, or its row.
    pub name: PathBuf,
    /// The picture.
    pub picture: Raster,
    /// Its mask, of the same size.
    pub mask: Mask,
}

/// All pictures of a data set, as [`MaskedPictures::open`] takes them, and the names of the classes; of `settings` the classes
/// and the level of none count.
///
/// # Errors
/// As [`MaskedPictures::open`].
pub fn open_whole(path: &Path, settings: &MaskSettings) -> Result<(Vec<Labelled>, Vec<String>)> {
    let (named, classes) = pairs(path, settings, 1)?;
    let whole = |(name, Pair { picture, mask })| Labelled { name, picture, mask };
    Ok((named.into_iter().map(whole).collect(), classes))
}

/// Pictures by name.
type Named = Vec<(PathBuf, Pair)>;

/// Pictures of `side` pixels a side at least that fit their masks and each other, at least one, and the names of the classes.
fn pairs(path: &Path, settings: &MaskSettings, side: usize) -> Result<(Named, Vec<String>)> {
    let named = if path.is_dir() { folder(path)? } else { parquet(path)? };
    let Some((_, first)) = named.first() else {
        let advice = "A picture images/NAME.tif has its mask in masks/NAME.png.";
        return Err(Error::file(path, "pictures", "at least one", "none", advice));
    };
    let bands = first.picture.bands;
    for (name, pair) in &named {
        check(name, pair, bands, side)?;
    }
    let classes = classes(path, &named, settings)?;
    Ok((named, classes))
}

/// What files of a folder are called without their endings.
fn stems(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let io = |e| Error::io(folder, e);
    let mut stems = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let Some(stem) = stem.filter(|stem| path.is_file() && !stem.starts_with('.')) else {
            continue;
        };
        if let Some(other) = stems.insert(stem, path.clone()) {
            let found = format!("{} beside it", other.display());
            let advice = "Names differ in more than their endings.";
            return Err(Error::file(path, "name", "a name of its own", found, advice));
        }
    }
    Ok(stems)
}

fn folder(path: &Path) -> Result<Named> {
    let (pictures, mut masks) = (stems(&path.join("images"))?, stems(&path.join("masks"))?);
    let (mut named, mut bytes) = (Named::new(), 0);
    for (stem, picture) in pictures {
        let Some(mask) = masks.remove(&stem) else {
            let expected = format!("a mask {}", path.join("masks").join(stem).display());
            let advice = "A picture images/NAME.tif has its mask in masks/NAME.png.";
            return Err(Error::file(picture, "mask", expected, "none", advice));
        };
        let pair = Pair { picture: raster::open(&picture)?, mask: raster::open_mask(&mask)? };
        bytes += memory(&pair);
        check_memory(path, bytes)?;
        named.push((picture, pair));
    }
    match masks.into_values().next() {
        None => Ok(named),
        Some(mask) => {
            let advice = "Give it one in images/, or take the mask away.";
            Err(Error::file(mask, "picture", "a picture of its name", "none", advice))
        }
    }
}

fn parquet(path: &Path) -> Result<Named> {
    let file = Pictures::open(path)?;
    if !file.has("mask") {
        let found = format!("columns {}", file.columns().join(", "));
        let advice = "A mask is a column like image: an encoded PNG's bytes.";
        return Err(Error::file(path, "schema", "a column \"mask\"", found, advice));
    }
    let (mut named, mut bytes) = (Named::new(), 0);
    for (i, row) in file.iter().enumerate() {
        let row = row??;
        let name = PathBuf::from(format!("{}: row {}", path.display(), i + 1));
        let Some(mask) = row.mask else {
            let advice = "A mask is a column like image: an encoded PNG's bytes.";
            return Err(Error::file(name, "mask", "a mask", "none", advice));
        };
        let picture = raster::decode(&row.image, &name)?;
        let pair = Pair { picture, mask: raster::decode_mask(&mask, &name)? };
        bytes += memory(&pair);
        check_memory(path, bytes)?;
        named.push((name, pair));
    }
    Ok(named)
}

fn memory(pair: &Pair) -> usize {
    pair.picture.bytes() + 2 * pair.mask.classes.len()
}

fn check_memory(path: &Path, bytes: usize) -> Result<()> {
    if bytes <= MAX_MEMORY {
        return Ok(());
    }
    let expected = format!("pictures of at most {MAX_MEMORY} bytes, decoded");
    Err(Error::file(path, "size", expected, "more", "Train on a part of them."))
}

/// Whether a picture and its mask fit each other and the others.
fn check(name: &Path, Pair { picture, mask }: &Pair, bands: usize, side: usize) -> Result<()> {
    let size = |height: usize, width: usize| format!("{width}x{height} pixels");
    let own = size(picture.height, picture.width);
    if (mask.height, mask.width) != (picture.height, picture.width) {
        let advice = "A mask has a level for each pixel of its picture.";
        let found = size(mask.height, mask.width);
        return Err(Error::file(name, "mask", format!("{own}, as its picture"), found, advice));
    }
    if picture.bands != bands {
        let (expected, found) = (format!("{bands}, as the first"), picture.bands.to_string());
        let advice = "All pictures of a data set have the same bands.";
        return Err(Error::file(name, "bands", expected, found, advice));
    }
    if picture.height < side || picture.width < side {
        let expected = format!("at least {}, a crop's", size(side, side));
        let advice = "Give a smaller --resolution.";
        return Err(Error::file(name, "picture", expected, own, advice));
    }
    Ok(())
}

/// Names of the classes, after a look at every pixel.
fn classes(path: &Path, named: &[(PathBuf, Pair)], settings: &MaskSettings) -> Result<Vec<String>> {
    let mut seen = BTreeSet::new();
    for (name, Pair { mask, .. }) in named {
        for (at, &level) in mask.classes.iter().enumerate() {
            let known = settings.classes.is_empty() || usize::from(level) < settings.classes.len();
            if level != settings.ignore_index && !known {
                let count = settings.classes.len();
                let expected = format!("0 to {} ({})", count - 1, settings.classes.join(", "));
                let (x, y) = (at % mask.width, at / mask.width);
                let found = format!("{level} at column {x}, row {y}");
                let advice = "Name all classes, or the level of none: --ignore-index.";
                return Err(Error::file(name, "mask", expected, found, advice));
            }
            if level != settings.ignore_index {
                seen.insert(level);
            }
        }
    }
    let count = match settings.classes.len() {
        0 => seen.last().map_or(0, |&last| usize::from(last) + 1),
        count => count,
    };
    let names: Vec<String> = match settings.classes.is_empty() {
        true => (0..count).map(|class| class.to_string()).collect(),
        false => settings.classes.clone(),
    };
    let missing = (0..count).find(|&class| !seen.contains(&(class as u16)));
    match missing {
        _ if count < 2 => {
            let found = if count == 0 { "none".to_owned() } else { names.join(", ") };
            let advice = "What is not of a class is a class, too.";
            Err(Error::file(path, "classes", "at least two", found, advice))
        }
        Some(class) => {
            let expected = format!("pixels of each class ({})", names.join(", "));
            let found = format!("none of {:?}", names[class]);
            let advice = "Nothing can be learnt of it: number classes from 0 without gaps.";
            Err(Error::file(path, "classes", expected, found, advice))
        }
        None => Ok(names),
    }
}
