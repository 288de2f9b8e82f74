//! Which sampler, with which settings: `scheduler_config.json` and the names of the command line.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::io::config::{Config, parse, read_text};
use crate::io::folder::PipelineFolder;

use super::Sampler;
use super::ddim::ddim;
use super::ddpm::ddpm;
use super::dpmsolver::DpmSolver;
use super::euler::Euler;
use super::heun::Heun;
use super::lcm::{self, lcm};
use super::lms::Lms;
use super::pndm::Pndm;
use super::unipc::UniPc;

/// A class of samplers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamplerKind {
    /// DDPMScheduler.
    Ddpm,
    /// DDIMScheduler.
    Ddim,
    /// PNDMScheduler.
    Pndm,
    /// LMSDiscreteScheduler.
    Lms,
    /// HeunDiscreteScheduler.
    Heun,
    /// EulerDiscreteScheduler.
    Euler,
    /// EulerAncestralDiscreteScheduler.
    EulerAncestral,
    /// DPMSolverMultistepScheduler.
    DpmSolver,
    /// UniPCMultistepScheduler.
    UniPc,
    /// LCMScheduler.
    Lcm,
}

impl SamplerKind {
    const ALL: [Self; 10] = [
        Self::Ddpm,
        Self::Ddim,
        Self::Pndm,
        Self::Lms,
        Self::Heun,
        Self::Euler,
        Self::EulerAncestral,
        Self::DpmSolver,
        Self::UniPc,
        Self::Lcm,
    ];

    /// diffusers' name of the class.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Ddpm => "DDPMScheduler",
            Self::Ddim => "DDIMScheduler",
            Self::Pndm => "PNDMScheduler",
            Self::Lms => "LMSDiscreteScheduler",
            Self::Heun => "HeunDiscreteScheduler",
            Self::Euler => "EulerDiscreteScheduler",
            Self::EulerAncestral => "EulerAncestralDiscreteScheduler",
            Self::DpmSolver => "DPMSolverMultistepScheduler",
            Self::UniPc => "UniPCMultistepScheduler",
            Self::Lcm => "LCMScheduler",
        }
    }
}

/// A name of the command line.
struct Name {
    /// Our own name first; then what stable-diffusion.cpp, A1111 and diffusers' users write. Compared without case,
    /// spaces, hyphens and underscores.
    names: &'static [&'static str],
    kind: SamplerKind,
    /// `algorithm_type` and `solver_order` that the name stands for.
    solver: Option<(&'static str, usize)>,
}

const fn name(names: &'static [&'static str], kind: SamplerKind) -> Name {
    Name { names, kind, solver: None }
}

const fn solver(names: &'static [&'static str], algorithm: &'static str, order: usize) -> Name {
    Name { names, kind: SamplerKind::DpmSolver, solver: Some((algorithm, order)) }
}

const NAMES: [Name; 13] = [
    name(&["ddpm"], SamplerKind::Ddpm),
    name(&["ddim"], SamplerKind::Ddim),
    name(&["pndm", "plms"], SamplerKind::Pndm),
    name(&["lms", "k_lms"], SamplerKind::Lms),
    name(&["heun", "k_heun"], SamplerKind::Heun),
    name(&["euler", "k_euler"], SamplerKind::Euler),
    name(
        &["euler_a", "euler_ancestral", "k_euler_a", "k_euler_ancestral"],
        SamplerKind::EulerAncestral,
    ),
    solver(&["dpm++2m", "dpmpp_2m", "k_dpmpp_2m", "dpm++"], "dpmsolver++", 2),
    solver(&["dpm++2m_sde", "dpmpp_2m_sde", "k_dpmpp_2m_sde"], "sde-dpmsolver++", 2),
    solver(&["dpm++3m", "dpmpp_3m"], "dpmsolver++", 3),
    solver(&["dpm++3m_sde", "dpmpp_3m_sde"], "sde-dpmsolver++", 3),
    name(&["unipc", "uni_pc"], SamplerKind::UniPc),
    name(&["lcm"], SamplerKind::Lcm),
];

/// Samplers whose noise levels can lie on Karras's ramp.
const WITH_KARRAS: [SamplerKind; 5] = [
    SamplerKind::Lms,
    SamplerKind::Heun,
    SamplerKind::Euler,
    SamplerKind::DpmSolver,
    SamplerKind::UniPc,
];

/// The fields of a `scheduler_config.json`, and the sampler to build from them.
///
/// Fields of other classes are passed over, absent ones take the class's defaults, and a value that is not implemented is
/// an error when the sampler is built.
#[derive(Clone, Debug)]
pub struct SamplerConfig {
    path: PathBuf,
    kind: SamplerKind,
    fields: Map<String, Value>,
    /// Defaults that a pipeline has mended. They are this class's only: another made from these settings starts from its
    /// own defaults.
    mended: Map<String, Value>,
}

impl SamplerConfig {
    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors
    /// The file cannot be read, is no JSON object, or names no class that nadir knows.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = without_infinity(&read_text(path)?);
        Self::from_value(path, parse(path, &text)?)
    }

    /// The same from a parsed file; errors will say that it came from `path`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_value(path: impl AsRef<Path>, value: Value) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let fields = value.as_object().cloned().unwrap_or_default();
        let classes = SamplerKind::ALL.map(|kind| (kind.class_name(), kind));
        let kind = Config::from_value(&path, value)?.choice("_class_name", "", &classes)?;
        Ok(Self { path, kind, fields, mended: Map::new() })
    }

    /// The sampler of a pipeline: its `scheduler_config.json`, for the class that `model_index.json` names. Where the
    /// two differ diffusers draws with the latter, and takes the other's settings over.
    ///
    /// # Errors
    /// As for [`open`](Self::open), and a class in `model_index.json` that nadir does not know.
    pub fn of(folder: &PipelineFolder) -> Result<Self> {
        let (path, text) = folder.config_text("scheduler")?;
        let own = Self::from_value(&path, parse(&path, &without_infinity(&text))?)?;
        let class = folder.component("scheduler")?.unwrap_or_default();
        let known = SamplerKind::ALL.into_iter().find(|kind| kind.class_name() == class);
        let Some(kind) = known else {
            let index = folder.root().join("model_index.json");
            let names = SamplerKind::ALL.map(SamplerKind::class_name).join(", ");
            let advice = "Choose a sampler of these, and set it in the model.";
            return Err(Error::file(index, "scheduler", format!("one of {names}"), class, advice));
        };
        Ok(Self { kind, ..own })
    }

    /// The class.
    pub fn kind(&self) -> SamplerKind {
        self.kind
    }

    /// The settings as a `scheduler_config.json` holds them: read again, they make the same sampler.
    pub fn to_value(&self) -> Value {
        let mut fields = self.fields.clone();
        fields.extend(self.mended.clone());
        fields.insert("_class_name".to_owned(), self.kind.class_name().into());
        fields.into()
    }

    /// The settings as diffusers' Stable Diffusion pipelines mend those of old folders: `steps_offset` becomes 1;
    /// text-to-image and image-to-image turn `clip_sample` off, inpainting (`inpaint`) turns Runge-Kutta steps off.
    #[must_use]
    pub fn for_stable_diffusion(mut self, inpaint: bool) -> Self {
        let other =
            if inpaint { ("skip_prk_steps", true.into()) } else { ("clip_sample", false.into()) };
        for (name, value) in [("steps_offset", Value::from(1)), other] {
            let present = self.fields.get(name).is_some_and(|v| !v.is_null());
            let target = if present { &mut self.fields } else { &mut self.mended };
            target.insert(name.to_owned(), value);
        }
        self
    }

    /// The settings as diffusers' image-to-image pipeline of latent consistency models has them: all steps lie in the part of
    /// the schedule that the strength leaves. Samplers but LCM's pass it over.
    #[must_use]
    pub fn over_strength(mut self, strength: f64) -> Self {
        self.mended.insert(lcm::STRENGTH.to_owned(), strength.into());
        self
    }

    /// The same settings for the sampler of this name, as diffusers' `from_config`: a class's own name, one of
    /// [`names`](Self::names) or another spelling of it. "karras" at its end lays the noise levels on Karras's ramp.
    ///
    /// # Errors
    /// `Argument` when there is no such name; the message lists them.
    pub fn with_sampler(mut self, name: &str) -> Result<Self> {
        let plain = plain(name);
        let (base, karras) = match plain.strip_suffix("karras") {
            Some(base) => (base, true),
            None => (plain.as_str(), false),
        };
        let named =
            NAMES.iter().find(|n| n.names.iter().any(|spelling| self::plain(spelling) == base));
        let class =
            SamplerKind::ALL.into_iter().find(|kind| self::plain(kind.class_name()) == base);
        let kind = named.map(|named| named.kind).or(class);
        let Some(kind) = kind.filter(|kind| !karras || WITH_KARRAS.contains(kind)) else {
            let known = format!("known are {}", Self::names().collect::<Vec<_>>().join(", "));
            return Err(Error::argument("scheduler", name, known));
        };
        if kind != self.kind {
            self.kind = kind;
            self.mended.clear();
        }
        if let Some((algorithm, order)) = named.and_then(|named| named.solver) {
            self.set("algorithm_type", algorithm);
            self.set("solver_order", order);
        }
        if karras {
            self.set("use_karras_sigmas", true);
            self.set("use_exponential_sigmas", false);
            self.set("use_beta_sigmas", false);
        }
        Ok(self)
    }

    /// The sampler that makes more of few steps: DPM-Solver++ of second order (Lu et al. 2022), for one evaluation a step. None
    /// where this one is made for few itself.
    pub fn for_few_steps(&self) -> Option<&'static str> {
        match self.kind {
            SamplerKind::DpmSolver | SamplerKind::UniPc | SamplerKind::Lcm => None,
            _ => Some("dpm++2m"),
        }
    }

    /// The names that [`with_sampler`](Self::with_sampler) takes, one for each sampler.
    pub fn names() -> impl Iterator<Item = String> {
        NAMES.iter().flat_map(|name| {
            let karras =
                WITH_KARRAS.contains(&name.kind).then(|| format!("{}_karras", name.names[0]));
            [Some(name.names[0].to_owned()), karras].into_iter().flatten()
        })
    }

    /// The name that A1111 shows, as in the text chunk of a PNG: "DPM++ 2M Karras".
    pub fn display_name(&self) -> String {
        let text = |name: &str| self.fields.get(name).and_then(Value::as_str).unwrap_or_default();
        let flag = |name: &str| self.fields.get(name).and_then(Value::as_bool).unwrap_or_default();
        let mut shown = match self.kind {
            SamplerKind::Ddpm => "DDPM",
            SamplerKind::Ddim => "DDIM",
            SamplerKind::Pndm => "PLMS",
            SamplerKind::Lms => "LMS",
            SamplerKind::Heun => "Heun",
            SamplerKind::Euler => "Euler",
            SamplerKind::EulerAncestral => "Euler a",
            SamplerKind::UniPc => "UniPC",
            SamplerKind::Lcm => "LCM",
            SamplerKind::DpmSolver => "",
        }
        .to_owned();
        if self.kind == SamplerKind::DpmSolver {
            let order = self.fields.get("solver_order").and_then(Value::as_u64).unwrap_or(2);
            shown = match text("algorithm_type") {
                "dpmsolver" => format!("DPM {order}M"),
                "sde-dpmsolver" => format!("DPM {order}M SDE"),
                "sde-dpmsolver++" => format!("DPM++ {order}M SDE"),
                _ => format!("DPM++ {order}M"),
            };
        }
        if WITH_KARRAS.contains(&self.kind) {
            let ramps = [
                ("use_karras_sigmas", " Karras"),
                ("use_exponential_sigmas", " Exponential"),
                ("use_beta_sigmas", " Beta"),
            ];
            let ramp = ramps.into_iter().find(|(name, _)| flag(name));
            shown.push_str(ramp.map_or("", |(_, suffix)| suffix));
        }
        shown
    }

    /// The sampler for a run of `steps` steps; `eta`, DDIM's alone, is the share of DDPM's noise, from 0 to 1.
    ///
    /// # Errors
    /// A field has a type or a value that is not implemented, or there are no such steps.
    pub fn build(&self, steps: usize, eta: f64) -> Result<Box<dyn Sampler>> {
        let config = &Config::from_value(&self.path, self.to_value())?;
        Ok(match self.kind {
            SamplerKind::Ddpm => Box::new(ddpm(config, steps)?),
            SamplerKind::Ddim => Box::new(ddim(config, steps, eta)?),
            SamplerKind::Pndm => Box::new(Pndm::new(config, steps)?),
            SamplerKind::Lms => Box::new(Lms::new(config, steps)?),
            SamplerKind::Heun => Box::new(Heun::new(config, steps)?),
            SamplerKind::Euler => Box::new(Euler::new(config, steps)?),
            SamplerKind::EulerAncestral => Box::new(Euler::ancestral(config, steps)?),
            SamplerKind::DpmSolver => Box::new(DpmSolver::new(config, steps)?),
            SamplerKind::UniPc => Box::new(UniPc::new(config, steps)?),
            SamplerKind::Lcm => Box::new(lcm(config, steps)?),
        })
    }

    fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.fields.insert(name.to_owned(), value.into());
    }
}

/// A name without what spellings differ in.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, ' ' | '-' | '_')).flat_map(char::to_lowercase).collect()
}

/// Python writes `-Infinity`, which is no JSON; diffusers does so for `lambda_min_clipped`, where it is the default, as
/// null is. Anywhere else it stays, and is an error.
fn without_infinity(text: &str) -> String {
    const WORD: &str = "-Infinity";
    const FIELD: &str = "\"lambda_min_clipped\"";
    let is_meant = |before: &str| {
        let before = before.trim_end().strip_suffix(':').map(str::trim_end);
        before.is_some_and(|before| before.ends_with(FIELD))
    };
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    let mut quoted = false;
    while let Some(c) = rest.chars().next() {
        let taken = match c {
            _ if !quoted && rest.starts_with(WORD) && is_meant(&out) => {
                out.push_str("null");
                rest = &rest[WORD.len()..];
                continue;
            }
            '\\' if quoted => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            c => c.len_utf8(),
        };
        quoted ^= c == '"';
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out
}
