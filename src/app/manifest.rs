//! `nadir generate --manifest`: the pictures of a file, by one process or by many that know nothing of each other.
//!
//! A picture is called after its whole request, so that a name that is there is done, whoever made it. Who draws one holds a
//! lock on its claim: of two processes one draws it, and what a killed one left is drawn by another.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use nadir::io::claim::Claim;
use nadir::io::geotiff::{Georeference, picture};
use nadir::io::picture::{Picture, ShownBands};
use nadir::io::{atomic, png};
use nadir::nn::lora;
use nadir::pipeline::manifest::{self, Row};
use nadir::pipeline::{
    Control, Event, ImagePrompt, LoadOptions, Preprocessor, Request, Run, SlotId, TextToImage,
};
use nadir::tensor::DType;
use nadir::{Error, Result};

use super::args::{self, ControlArgs, ImagePromptArgs, Seed};
use super::destination::Destination;
use super::model::Model;
use super::progress::Progress;
use super::recipe::{ControlSource, Embedding, Lora, Recipe, Source};
use super::{draw, interrupt, limits};

/// Where claims are, within the folder of the pictures.
const CLAIMS: &str = ".nadir-claims";

/// How often it is looked whether another process is done.
const LOOK: Duration = Duration::from_millis(100);

/// A part of a manifest: the rows `index`, `index + count`, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// Of all.
    pub count: usize,
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').map(|(i, n)| (i.parse::<usize>(), n.parse::<usize>()));
        match parts {
            Some((Ok(i), Ok(count))) if (1..=count).contains(&i) => {
                Ok(Self { index: i - 1, count })
            }
            _ => Err(Error::argument("shard", text, "I/N, the I-th of N parts: 1/8 to 8/8")),
        }
    }
}

/// A picture that is to be there in the end.
struct Wanted {
    recipe: Recipe,
    /// Its name in the folder.
    name: String,
    size: (usize, usize),
    /// The rows that ask for it.
    rows: Vec<usize>,
}

pub fn run(args: args::Generate, manifest: &Path) -> anyhow::Result<()> {
    // 1. what needs no model
    let unfit = [
        ("num_images", args.num_images != 1),
        ("init_image", args.init_image.is_some()),
        ("grid", args.grid),
        ("bbox", args.bbox.is_some()),
        ("deadline_ms", args.time.deadline_ms.is_some()),
        ("images_per_second", args.time.images_per_second.is_some()),
    ];
    if let Some((name, _)) = unfit.into_iter().find(|(_, given)| *given) {
        return Err(Error::argument(
            name,
            "a value",
            "with a manifest it is not possible: pictures are its rows, one by one",
        )
        .into());
    }
    let folder = args.output.clone().unwrap_or_else(|| PathBuf::from("."));
    fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let Destination::Folder(_) = Destination::resolve(Some(&folder))? else {
        let expected = "a folder, for the pictures of a manifest";
        return Err(Error::argument("output", folder.display(), expected).into());
    };
    args.numbers.samples.unwrap_or_default().own_scale(args.numbers.scale)?;
    let seed = match args.seed {
        Some(Seed::Number(seed)) => seed,
        Some(Seed::Random) | None => 0,
    };
    let shard = args.shard.unwrap_or(Shard { index: 0, count: 1 });
    let rows = manifest::read(manifest, &args.settings, seed)?;
    let batch = limits::check_batch(args.execution.batch, rows.len())?;
    limits::set_threads(args.execution.threads)?;
    let progress = Progress::new(args.execution.quiet);
    // 2. the model, and what each row asks it for
    let model = Model::find(args.model.as_deref())?.with(&args.original);
    let device = draw::choose_device(&args.execution.device, |line| progress.say(line))?;
    let dtype = args.execution.dtype.unwrap_or(DType::F32);
    let options = LoadOptions {
        dtype,
        device,
        variant: args.variant.clone(),
        supplement: model.supplement.clone(),
        adapters: args.lora.clone(),
        embeddings: args.embedding.clone(),
        controlnets: args.control.controlnet.clone(),
        vae: args.vae.clone(),
        ip_adapter: args.image_prompt.ip_adapter.clone(),
        image_encoder: args.image_prompt.image_encoder.clone(),
        ..LoadOptions::default()
    };
    let mut lora: Vec<Lora> = args.lora.iter().cloned().map(Lora::from).collect();
    for (lora, adapter) in lora.iter_mut().zip(&args.lora) {
        lora.hash = adapter.checksum()?;
    }
    let ip_adapter = args.image_prompt.ip_adapter.clone().map(|path| {
        let hash = lora::checksum(&path)?;
        Ok::<_, Error>(Source { path, hash })
    });
    let pipeline = TextToImage::load(&model.folder, &options)?;
    let base = Recipe {
        model_hash: pipeline.fingerprint().to_owned(),
        variant: args.variant,
        tokenizer: args.original.tokenizer,
        prediction: args.original.prediction,
        vae: args.vae,
        lora,
        embedding: Embedding::all(&args.embedding)?,
        controlnet: args.control.controlnet.clone(),
        guess_mode: args.control.guess_mode,
        ip_adapter: ip_adapter.transpose()?,
        image_encoder: args.image_prompt.image_encoder.clone(),
        samples: args.numbers.samples,
        scale: args.numbers.scale,
        preview_bands: args.numbers.preview_bands,
        dtype,
        device: device.to_string(),
        ..Recipe::new(model.name.clone(), args.settings, 0)
    };
    let own = |number: &usize| number % shard.count == shard.index;
    let shown = Shown { control: args.control, prompt: args.image_prompt };
    let prepare = |row: &Row| prepare(&pipeline, &base, &shown, row, &progress);
    let wanted = wanted(manifest, prepare, &rows, own)?;
    if wanted.iter().any(|wanted| !is_raster(&wanted.recipe)) {
        ShownBands::of(base.preview_bands, pipeline.bands())?;
    }
    // 3. the pictures
    let claims = folder.join(CLAIMS);
    fs::create_dir_all(&claims).map_err(|e| Error::io(&claims, e))?;
    let mut work =
        Work { folder: &folder, model: &model, pipeline: &pipeline, batch, progress, written: 0 };
    let drawn = work.all(&wanted);
    work.progress.finish();
    // Others may be about theirs: then it stays.
    let _ = fs::remove_dir(&claims);
    let written = work.written;
    let told = format!("{written} of {} pictures drawn, the others were there", wanted.len());
    match drawn {
        Err(Error::Interrupted) => {
            Err(anyhow::Error::from(Error::Interrupted).context(format!("drew {written} pictures")))
        }
        other => {
            other?;
            write_index(&folder, shard, &rows, &wanted)?;
            work.progress.say(&told);
            Ok(())
        }
    }
}

/// What the command line says of pictures that are followed and seen, for rows that do not.
struct Shown {
    control: ControlArgs,
    prompt: ImagePromptArgs,
}

impl Shown {
    /// What a row follows and sees.
    fn tell(&self, row: &Row, recipe: &mut Recipe) -> Result<()> {
        fn replace<T: Clone>(own: &mut Vec<T>, said: &[T]) {
            if !said.is_empty() {
                *own = said.to_vec();
            }
        }
        let mut control = self.control.clone();
        replace(&mut control.control_image, &row.control_image);
        replace(&mut control.control_scale, &row.control_scale);
        replace(&mut control.control_start, &row.control_start);
        replace(&mut control.control_end, &row.control_end);
        recipe.control = control.sources()?;
        let seen = row.ip_image.clone().or_else(|| self.prompt.ip_image.clone());
        recipe.ip_image = seen.map(|path| Source { path, hash: String::new() });
        recipe.ip_scale = row.ip_scale.or(self.prompt.ip_scale);
        if recipe.ip_scale.is_some() && recipe.ip_image.is_none() {
            return Err(Error::argument("ip_image", "none", "a picture, with a scale"));
        }
        Ok(())
    }
}

/// What a row asks for, once it is sure that it can be drawn: recipe, name and size.
fn prepare(
    pipeline: &TextToImage,
    base: &Recipe,
    shown: &Shown,
    row: &Row,
    progress: &Progress,
) -> Result<(Recipe, String, (usize, usize))> {
    let Row { settings, seed, bbox, epsg, .. } = row.clone();
    let mut recipe = Recipe { settings, seed, bbox, epsg, ..base.clone() };
    shown.tell(row, &mut recipe)?;
    recipe.check()?;
    let controls = draw::read_controls(&mut recipe, progress)?;
    let image_prompt = draw::read_image_prompt(&mut recipe, progress)?;
    recipe.settings = pipeline.resolve(&recipe.settings, None)?;
    pipeline.sampler(&Request {
        settings: recipe.settings.clone(),
        controls,
        guess_mode: recipe.guess_mode,
        image_prompt,
        ..Request::default()
    })?;
    let size = pipeline.size(&recipe.settings)?;
    place(&recipe, size)?;
    if is_raster(&recipe) {
        recipe.preview_bands = None;
    }
    let name = name(&recipe)?;
    Ok((recipe, name, size))
}

/// Each picture once, in the order of the rows.
fn wanted(
    manifest: &Path,
    prepare: impl Fn(&Row) -> Result<(Recipe, String, (usize, usize))>,
    rows: &[Row],
    own: impl Fn(&usize) -> bool,
) -> Result<Vec<Wanted>> {
    let mut wanted: Vec<Wanted> = Vec::new();
    let mut known = BTreeMap::new();
    for number in (0..rows.len()).filter(own) {
        let (recipe, name, size) = prepare(&rows[number]).map_err(|error: Error| {
            let expected = "a picture that the model can draw";
            let advice = "Correct the row.";
            Error::file(
                manifest,
                format!("row {}", number + 1),
                expected,
                error.to_string(),
                advice,
            )
        })?;
        match known.get(&name) {
            Some(&i) => wanted[i as usize].rows.push(number),
            None => {
                known.insert(name.clone(), wanted.len() as u64);
                wanted.push(Wanted { recipe, name, size, rows: vec![number] });
            }
        }
    }
    Ok(wanted)
}

/// Whether a picture is a GeoTIFF: one that lies somewhere, or whose numbers were named.
fn is_raster(recipe: &Recipe) -> bool {
    recipe.bbox.is_some() || recipe.samples.is_some()
}

fn place(recipe: &Recipe, (width, height): (usize, usize)) -> Result<Option<Georeference>> {
    let (Some(bbox), Some(epsg)) = (recipe.bbox, recipe.epsg) else { return Ok(None) };
    Georeference::from_bbox(bbox, epsg, width, height).map(Some)
}

/// A picture's name: of all that it depends on, and of nothing else, as where the model lies.
fn name(recipe: &Recipe) -> Result<String> {
    let lora = |lora: &Lora| Lora { path: PathBuf::new(), ..lora.clone() };
    let embedding = |embedding: &Embedding| Embedding { path: PathBuf::new(), ..embedding.clone() };
    let source = |source: &Source| Source { path: PathBuf::new(), ..source.clone() };
    // The hash is of what a preprocessor has made.
    let control = |control: &ControlSource| ControlSource {
        path: PathBuf::new(),
        preprocessor: Preprocessor::default(),
        ..control.clone()
    };
    let essence = Recipe {
        nadir: String::new(),
        model: String::new(),
        variant: None,
        tokenizer: None,
        vae: None,
        device: String::new(),
        lora: recipe.lora.iter().map(lora).collect(),
        embedding: recipe.embedding.iter().map(embedding).collect(),
        controlnet: Vec::new(),
        control: recipe.control.iter().map(control).collect(),
        ip_adapter: recipe.ip_adapter.as_ref().map(source),
        image_encoder: None,
        ip_image: recipe.ip_image.as_ref().map(source),
        ..recipe.clone()
    };
    let json = serde_json::to_vec(&essence).map_err(|e| Error::io("recipe", e.into()))?;
    let digest = Sha256::digest(json);
    let hex: String = digest[..12].iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{hex}.{}", if is_raster(recipe) { "tif" } else { "png" }))
}

struct Work<'a> {
    folder: &'a Path,
    model: &'a Model,
    pipeline: &'a TextToImage,
    batch: usize,
    progress: Progress,
    written: usize,
}

impl Work<'_> {
    /// Sees to it that all are there.
    fn all(&mut self, wanted: &[Wanted]) -> Result<()> {
        let mut left: Vec<&Wanted> = wanted.iter().collect();
        self.progress.start(left.len());
        loop {
            let before = left.len();
            for same in by_size(&left) {
                self.draw(same)?;
            }
            left.retain(|wanted| !self.folder.join(&wanted.name).exists());
            (left.len()..before).for_each(|_| self.progress.step());
            if left.is_empty() {
                return Ok(());
            }
            // Other processes are about these, or were.
            interrupt::switch().check()?;
            std::thread::sleep(LOOK);
        }
    }

    /// What a picture follows and sees: of all rows at once it would be too much to keep.
    fn pictures(&self, known: &Recipe) -> Result<(Vec<Control>, Option<ImagePrompt>)> {
        let mut recipe = known.clone();
        recipe.control.iter_mut().for_each(|source| source.hash.clear());
        recipe.ip_image.iter_mut().for_each(|source| source.hash.clear());
        let controls = draw::read_controls(&mut recipe, &self.progress)?;
        let image_prompt = draw::read_image_prompt(&mut recipe, &self.progress)?;
        let hashes = |recipe: &Recipe| {
            let followed = recipe.control.iter().map(|source| (&source.path, &source.hash));
            let seen = recipe.ip_image.iter().map(|source| (&source.path, &source.hash));
            let all = followed.chain(seen).map(|(path, hash)| (path.clone(), hash.clone()));
            all.collect::<Vec<_>>()
        };
        match hashes(&recipe).into_iter().zip(hashes(known)).find(|(now, before)| now != before) {
            None => Ok((controls, image_prompt)),
            Some(((path, _), _)) => {
                let expected = "the one that was there when the manifest was checked";
                let advice = "Begin again: what is drawn stays.";
                Err(Error::file(path, "picture", expected, "another", advice))
            }
        }
    }

    /// Draws those of one size that nobody else does.
    fn draw(&mut self, mut queue: VecDeque<&Wanted>) -> Result<()> {
        let Some(first) = queue.front() else { return Ok(()) };
        let mut run = Run::new(self.pipeline, first.size, self.batch)?;
        let mut begun: BTreeMap<SlotId, (&Wanted, Claim)> = BTreeMap::new();
        loop {
            while run.len() < self.batch
                && let Some(wanted) = queue.pop_front()
            {
                let path = self.folder.join(&wanted.name);
                let Some(claim) = Claim::take(&self.folder.join(CLAIMS), &path)? else { continue };
                let (controls, image_prompt) = self.pictures(&wanted.recipe)?;
                let slot = run.join(Request {
                    settings: wanted.recipe.settings.clone(),
                    seed: wanted.recipe.seed,
                    controls,
                    guess_mode: wanted.recipe.guess_mode,
                    image_prompt,
                    cancel: interrupt::switch(),
                    ..Request::default()
                })?;
                begun.insert(slot, (wanted, claim));
            }
            if run.is_empty() {
                return Ok(());
            }
            for event in run.step()? {
                let Event::Finished { slot, result } = event else { continue };
                let Some((wanted, claim)) = begun.remove(&slot) else { continue };
                let sampler =
                    self.model.sampler_name(wanted.recipe.settings.scheduler.as_deref())?;
                let texts = wanted.recipe.texts(&sampler)?;
                write(claim.path(), &result?, wanted, &texts)?;
                self.written += 1;
                self.progress.print(claim.path().display());
            }
        }
    }
}

fn write(
    path: &Path,
    picture: &Picture,
    wanted: &Wanted,
    texts: &[(&'static str, String)],
) -> Result<()> {
    let recipe = &wanted.recipe;
    if is_raster(recipe) {
        let samples = recipe.samples.unwrap_or_default();
        let (scale, place) = (samples.scale(recipe.scale)?, place(recipe, wanted.size)?);
        let units = picture::units(None, None, (samples, scale), picture.bands())?;
        let form = picture::Form { samples, scale, units, place };
        return picture::write(path, picture, &form, texts);
    }
    let texts: Vec<_> = texts.iter().map(|(keyword, text)| (*keyword, text.as_str())).collect();
    png::write(path, &picture.shown(recipe.preview_bands)?, &texts)
}

fn by_size<'w>(wanted: &[&'w Wanted]) -> Vec<VecDeque<&'w Wanted>> {
    let mut sizes: BTreeMap<(usize, usize), VecDeque<&Wanted>> = BTreeMap::new();
    wanted.iter().for_each(|wanted| sizes.entry(wanted.size).or_default().push_back(wanted));
    sizes.into_values().collect()
}

/// Which picture is which row's, as data sets have it: with all shards' lines in one metadata.jsonl the folder is one.
fn write_index(folder: &Path, shard: Shard, rows: &[Row], wanted: &[Wanted]) -> Result<()> {
    let mut lines: Vec<(usize, Value)> = Vec::new();
    for wanted in wanted {
        for &number in &wanted.rows {
            let row = &rows[number];
            let mut line = json!({
                "file_name": wanted.name, "text": row.settings.prompt, "seed": row.seed,
                "row": number + 1,
            });
            if let (Some(bbox), Some(epsg)) = (row.bbox, row.epsg) {
                (line["bbox"], line["epsg"]) = (json!(bbox), json!(epsg));
            }
            for (name, value) in &row.rest {
                line[name] = value.clone();
            }
            lines.push((number, line));
        }
    }
    lines.sort_by_key(|(number, _)| *number);
    let path = folder.join(match shard.count {
        1 => "metadata.jsonl".to_owned(),
        count => format!("metadata-{}-of-{count}.jsonl", shard.index + 1),
    });
    atomic::write(&path, |out| lines.iter().try_for_each(|(_, line)| writeln!(out, "{line}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_counted_from_one() {
        assert_eq!("2/8".parse::<Shard>().unwrap(), Shard { index: 1, count: 8 });
        for wrong in ["0/8", "9/8", "1", "1/0", "a/b", "-1/2", "1/2/3", ""] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_follows_from_what_a_picture_depends_on() {
        let recipe = Recipe::new("a/model".into(), Default::default(), 1);
        let of = |change: &dyn Fn(&mut Recipe)| {
            let mut recipe = recipe.clone();
            change(&mut recipe);
            name(&recipe).unwrap()
        };
        let same = of(&|_| ());
        assert_eq!(same.len(), 28);
        assert_eq!(of(&|r| r.model = "elsewhere/model".into()), same);
        assert_eq!(of(&|r| r.nadir = "9.9".into()), same);
        let changes: [&dyn Fn(&mut Recipe); 6] = [
            &|r| r.seed = 2,
            &|r| r.model_hash = "x".into(),
            &|r| r.dtype = DType::BF16,
            &|r| r.settings.prompt = "x".into(),
            &|r| r.settings.steps = Some(3),
            &|r| r.settings.scheduler = Some("ddim".into()),
        ];
        for (i, change) in changes.into_iter().enumerate() {
            assert_ne!(of(change), same, "{i}");
        }
    }
}
