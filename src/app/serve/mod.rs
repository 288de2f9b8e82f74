//! `nadir serve`: the models as a service, and a page in front of it.
//!
//! request -> [`guard`] -> an interface of [`api`] -> what is [asked](picture) -> [`engine`]'s queue -> [`worker`] -> news ->
//! reply, or [`jobs`] and their events.

mod api;
mod body;
mod engine;
mod fault;
mod guard;
mod http;
mod job;
mod jobs;
mod metrics;
mod page;
mod picture;
mod queue;
mod store;
mod text;
mod worker;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

use nadir::nn::lora::Adapter;
use nadir::pipeline::classifier::Classifier;
use nadir::pipeline::language::{LanguageModel, LanguageOptions};
use nadir::pipeline::pixel_classifier::PixelClassifier;
use nadir::pipeline::scene::Palette;
use nadir::pipeline::{Inversion, LoadOptions, TextToImage};
use nadir::tensor::{DType, Device};
use nadir::{Error, Result};

use super::args::{adapter, beside, inversion, typed};
use super::model::{self, Model};
use super::recipe::{Embedding, Lora};
use super::{draw, interrupt, limits, terminal};
use engine::{Engine, Refusal, State};
use fault::Fault;
use guard::Guard;
use jobs::Jobs;
use metrics::Metrics;
use store::Store;
use worker::Models;

/// Serve the models to other programs, and to people by a page
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir serve                                            http://127.0.0.1:8080, the models that ship
  nadir serve -m models/my-sd --batch 4 --state jobs/    jobs outlive the server
  nadir serve -m models/my-sd --preview-vae models/taesd
  NADIR_API_KEY=$(openssl rand -hex 16) nadir serve --host 0.0.0.0 --allowed-host maps.example.org

Interfaces: a page at /, our own at /api, OpenAI's at /v1, the web UI's at /sdapi/v1, a reference of all at /docs,
/health/live, /health/ready and /metrics. Work shares the device step by step: a picture is the same, bit for bit, in any
company. The address goes to standard output once the server listens; all else goes to standard error.
SIGTERM or Ctrl-C: nothing more is taken, what has begun is finished for --drain-seconds; once more stops at once.
Exit codes: 0 stopped, 1 failed, 2 something that cannot be as it is, 130 or 143 after a signal.")]
pub struct Serve {
    /// Address to listen on; one that others can reach needs a key, or --insecure-no-auth
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Network")]
    host: IpAddr,

    /// Port to listen on; 0: any that is free
    #[arg(long, value_name = "N", default_value_t = 8080, help_heading = "Network")]
    port: u16,

    /// What clients have to send as `Authorization: Bearer KEY`
    ///
    /// Other users of this machine see what a command line says: NADIR_API_KEY keeps it from them.
    #[arg(long, value_name = "KEY", help_heading = "Network")]
    api_key: Option<String>,

    /// Serve others without a key
    #[arg(long, help_heading = "Network", conflicts_with = "api_key")]
    insecure_no_auth: bool,

    /// Name by which others call this server; may be repeated. Addresses and localhost are known
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    allowed_host: Vec<String>,

    /// Address of a proxy that says in X-Forwarded-For who asks, so that its clients take turns; may be repeated
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    trusted_proxy: Vec<IpAddr>,

    /// Model: a diffusers folder, an original checkpoint (.safetensors), `org/name` in the local hub cache, or one that ships
    #[arg(short, long, value_name = "MODEL", help_heading = "Models")]
    model: Option<String>,

    /// Weight files of this variant: `fp16` for `model.fp16.safetensors`
    #[arg(long, value_name = "NAME", help_heading = "Models")]
    variant: Option<String>,

    #[command(flatten)]
    original: super::args::Original,

    /// Autoencoder in the place of the model's: a diffusers folder with an AutoencoderKL or an AutoencoderTiny
    #[arg(long, value_name = "DIR", visible_alias = "taesd", help_heading = "Models", value_parser = beside)]
    vae: Option<PathBuf>,

    /// Likewise, for previews alone: with TAESD they cost next to nothing
    #[arg(long, value_name = "DIR", help_heading = "Models", value_parser = beside)]
    preview_vae: Option<PathBuf>,

    /// Add this low-rank adapter to the model's weights, WEIGHT times [default: 1]; may be repeated
    #[arg(long, value_name = "FILE[:WEIGHT]", help_heading = "Models", value_parser = adapter)]
    lora: Vec<Adapter>,

    /// Follow pictures by this ControlNet, a diffusers folder or an original file; may be repeated. One that the model has comes first
    #[arg(long, value_name = "PATH", help_heading = "Models", value_parser = beside)]
    controlnet: Vec<PathBuf>,

    /// Teach the model a word: a textual inversion, which stands in prompts as TOKEN; may be repeated
    #[arg(long, value_name = "FILE[:TOKEN]", help_heading = "Models", value_parser = inversion)]
    embedding: Vec<Inversion>,

    /// Language model, likewise; `none` for none
    #[arg(long, value_name = "MODEL", default_value = "rsicd-lm", help_heading = "Models")]
    lm: String,

    /// Classifier: a folder, or `none` [default: the one that ships]
    #[arg(long, value_name = "DIR", help_heading = "Models")]
    classifier: Option<PathBuf>,

    /// Segmenter: a folder that `nadir train segment` has written, or segmentation-models-pytorch
    #[arg(long, value_name = "DIR", help_heading = "Models")]
    segmenter: Option<PathBuf>,

    /// Show how the data set grows that `nadir synthesize` makes in this folder; may be repeated
    #[arg(long, value_name = "DIR", help_heading = "Jobs")]
    watch_set: Vec<PathBuf>,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Models")]
    device: String,

    /// Numbers that networks compute in: f32, bf16 or f16
    #[arg(long, value_name = "TYPE", default_value = "f32", help_heading = "Models")]
    #[arg(value_parser = typed::<DType>)]
    dtype: DType,

    /// CPU threads [default: all]; nothing depends on them but speed
    #[arg(short, long, value_name = "N", help_heading = "Models")]
    threads: Option<usize>,

    /// Pictures, or texts, in work at a time: more are faster together, and need more memory
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Limits")]
    batch: usize,

    /// Pictures and texts that wait; behind them others are asked to come again
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Limits")]
    queue: usize,

    /// Pixels of a picture
    #[arg(long, value_name = "N", default_value_t = 1 << 20, help_heading = "Limits")]
    max_pixels: usize,

    /// Pictures of a request
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Limits")]
    max_images: usize,

    /// Mebibytes of a request
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "Limits")]
    max_body_mib: usize,

    /// Folder for jobs, which are there again after a restart [default: a temporary one]
    #[arg(long, value_name = "DIR", help_heading = "Jobs")]
    state: Option<PathBuf>,

    /// What ids of jobs begin with: letters and digits [default: what the folder says, or a random one]
    #[arg(long, value_name = "NAME", help_heading = "Jobs")]
    replica: Option<String>,

    /// Mebibytes of finished jobs that are kept
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Jobs")]
    state_max_mib: u64,

    /// Hours for which they are kept
    #[arg(long, value_name = "N", default_value_t = 168, help_heading = "Jobs")]
    state_max_hours: u64,

    /// Finished jobs that are kept
    #[arg(long, value_name = "N", default_value_t = 10_000, help_heading = "Jobs")]
    state_max_jobs: usize,

    /// How long what has begun may take when the server is asked to stop
    #[arg(long, value_name = "N", default_value_t = 30, help_heading = "Jobs")]
    drain_seconds: u64,

    /// How the log is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text, help_heading = "Output")]
    log_format: LogFormat,

    /// Warnings and errors only
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// A line for people
    Text,
    /// A line of JSON
    Json,
}

/// What handlers share.
pub struct App {
    pub engine: Arc<Engine>,
    pub jobs: Arc<Jobs>,
    pub metrics: Arc<Metrics>,
    pub about: About,
    pub limits: Limits,
    pub guard: Guard,
    /// Data sets that are watched.
    pub sets: Vec<PathBuf>,
    pub waiting: api::webui::Waiting,
    models: OnceLock<Arc<Models>>,
    /// Uploads that are decoded at a time.
    pub decoders: Semaphore,
    /// KiB that all bodies may take together.
    pub bodies: Arc<Semaphore>,
}

/// What is loaded, by name.
pub struct About {
    pub model: Model,
    pub variant: Option<String>,
    pub original: super::args::Original,
    pub vae: Option<PathBuf>,
    pub lora: Vec<Lora>,
    /// Beside those of the model.
    pub controlnet: Vec<PathBuf>,
    pub embedding: Vec<Embedding>,
    pub device: Device,
    pub dtype: DType,
    pub text: Option<String>,
    pub classifier: Option<String>,
    pub segmenter: Option<String>,
}

/// What may be asked for.
pub struct Limits {
    pub pixels: usize,
    pub images: usize,
    pub body: usize,
    pub queue: usize,
}

impl App {
    /// What was loaded.
    ///
    /// # Errors
    /// 503 before it is.
    pub fn models(&self) -> Result<&Arc<Models>, Fault> {
        self.models.get().ok_or_else(|| Refusal::Loading.into())
    }
}

/// 64 bits that nobody foresees.
pub fn random() -> u64 {
    // The standard library keys its hash maps from the system's random numbers.
    RandomState::new().build_hasher().finish()
}

pub fn run(args: &Serve) -> anyhow::Result<()> {
    // 1. what needs no model
    let key = args.api_key.clone().or_else(|| std::env::var("NADIR_API_KEY").ok());
    let key = key.filter(|_| !args.insecure_no_auth);
    if key.as_ref().is_some_and(|key| key.len() < 8 || key.chars().any(|c| !c.is_ascii_graphic())) {
        let found = "one that is shorter, or has other characters";
        return Err(
            Error::argument("api_key", found, "at least 8 printable ASCII characters").into()
        );
    }
    if !args.host.is_loopback() && key.is_none() && !args.insecure_no_auth {
        let expected = "an address that others can reach needs --api-key (or NADIR_API_KEY), or --insecure-no-auth";
        return Err(Error::argument("host", args.host, expected).into());
    }
    for (name, n) in [
        ("batch", args.batch),
        ("queue", args.queue),
        ("max_images", args.max_images),
        ("max_pixels", args.max_pixels),
        ("max_body_mib", args.max_body_mib),
    ] {
        let most = if name == "max_body_mib" { 256 } else { 1 << 30 };
        if !(1..=most).contains(&n) {
            return Err(Error::argument(name, n, format!("1 to {most}")).into());
        }
    }
    log(args);
    limits::set_threads(args.threads)?;
    let model = Model::find(args.model.as_deref())?.with(&args.original);
    let lm = (args.lm != "none").then(|| Model::find(Some(&args.lm))).transpose()?;
    let classifier = match &args.classifier {
        Some(folder) if folder.as_os_str() == "none" => None,
        Some(folder) => Some(folder.clone()),
        None => Some(model::shipped_judge()?),
    };
    let device = draw::choose_device(&args.device, terminal::say)?;
    let limits = store::Limits {
        bytes: args.state_max_mib << 20,
        age: Duration::from_secs(args.state_max_hours.saturating_mul(3600)),
        jobs: args.state_max_jobs,
    };
    let (store, next) = Store::open(args.state.as_deref(), args.replica.as_deref(), limits)?;
    let name = |folder: &PathBuf| {
        folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let mut lora: Vec<Lora> = args.lora.iter().cloned().map(Lora::from).collect();
    for (lora, adapter) in lora.iter_mut().zip(&args.lora) {
        lora.hash = adapter.checksum()?;
    }
    let app = Arc::new(App {
        engine: Arc::new(Engine::new(args.batch, args.queue)),
        jobs: Arc::new(Jobs::new(store, next)),
        metrics: Metrics::new(),
        about: About {
            variant: args.variant.clone(),
            original: args.original.clone(),
            vae: args.vae.clone(),
            lora,
            controlnet: args.controlnet.clone(),
            embedding: Embedding::all(&args.embedding)?,
            device,
            dtype: args.dtype,
            text: lm.as_ref().map(|lm| lm.name.clone()),
            classifier: classifier.as_ref().map(name),
            segmenter: args.segmenter.as_ref().map(name),
            model,
        },
        limits: Limits {
            pixels: args.max_pixels,
            images: args.max_images,
            body: args.max_body_mib << 20,
            queue: args.queue,
        },
        guard: Guard { key, hosts: args.allowed_host.clone(), proxies: args.trusted_proxy.clone() },
        sets: args.watch_set.clone(),
        waiting: api::webui::Waiting::default(),
        models: OnceLock::new(),
        decoders: Semaphore::new(2),
        bodies: Arc::new(Semaphore::new(256 << 10)),
    });
    // 2. the network and the device, each with its threads
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| Error::io("runtime", e))?;
    let listener = runtime.block_on(TcpListener::bind((args.host, args.port)));
    let listener = listener.map_err(|e| Error::io(format!("{}:{}", args.host, args.port), e))?;
    let address = listener.local_addr().map_err(|e| Error::io("socket", e))?;
    announce(address)?;
    let (ended, over) = oneshot::channel();
    let worker = {
        let (app, options) = (app.clone(), options(args, &app.about));
        let folders = Folders {
            language: lm.map(|lm| lm.folder),
            classifier,
            segmenter: args.segmenter.clone(),
        };
        std::thread::Builder::new().name("worker".into()).spawn(move || {
            let done = catch_unwind(AssertUnwindSafe(|| {
                let models = Arc::new(load(&app.about, &options, &folders)?);
                worker::calibrate(&app.engine, &models)?;
                let _ = app.models.set(models.clone());
                // A signal may have come first.
                if app.engine.state() == State::Loading {
                    app.engine.set_state(State::Ready);
                    tracing::info!(model = app.about.model.name, "ready");
                }
                worker::work(&app.engine, &models, &app.metrics);
                Ok::<(), Error>(())
            }));
            app.engine.set_state(State::Stopped);
            let _ = ended.send(());
            done
        })
    };
    let worker = worker.map_err(|e| Error::io("thread", e))?;
    // 3. until a signal comes, or the worker fails
    let drain = Duration::from_secs(args.drain_seconds);
    let engine = app.engine.clone();
    runtime.block_on(http::serve(app.clone(), listener, until_stopped(engine, drain, over)));
    runtime.shutdown_timeout(Duration::from_secs(1));
    match worker.join() {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => return Err(error.into()),
        Ok(Err(panic)) | Err(panic) => std::panic::resume_unwind(panic),
    }
    match interrupt::switch().is_cancelled() {
        true => Err(Error::Interrupted.into()),
        false => Ok(()),
    }
}

fn log(args: &Serve) {
    let level = if args.quiet { tracing::Level::WARN } else { tracing::Level::INFO };
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    let log = log.with_ansi(is_terminal);
    // A second server of one process, as tests have it, keeps the first one's.
    let _ = match args.log_format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).with_target(false).try_init(),
    };
}

fn announce(address: SocketAddr) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "http://{address}")
        .and_then(|()| out.flush())
        .map_err(|e| Error::io("standard output", e))
}

fn options(args: &Serve, about: &About) -> LoadOptions {
    LoadOptions {
        dtype: about.dtype,
        device: about.device,
        variant: args.variant.clone(),
        supplement: about.model.supplement.clone(),
        adapters: args.lora.clone(),
        controlnets: args.controlnet.clone(),
        embeddings: args.embedding.clone(),
        vae: args.vae.clone(),
        preview_vae: args.preview_vae.clone(),
        ..LoadOptions::default()
    }
}

/// Where models are, besides the first.
struct Folders {
    language: Option<PathBuf>,
    classifier: Option<PathBuf>,
    segmenter: Option<PathBuf>,
}

fn load(about: &About, options: &LoadOptions, folders: &Folders) -> Result<Models> {
    let device = options.device;
    let image = TextToImage::load(&about.model.folder, options)?;
    image.require_rgb()?;
    let language = LanguageOptions { device, ..LanguageOptions::default() };
    let text = folders.language.as_ref().map(|folder| LanguageModel::open(folder, &language));
    let classifier = folders.classifier.as_ref().map(|folder| Classifier::open(folder, device));
    let segmenter = folders.segmenter.as_ref().map(|folder| {
        let model = PixelClassifier::open(folder, device)?;
        let palette = Palette::new(model.classes(), &[])?;
        Ok(worker::Segmenter { model, palette })
    });
    Ok(Models {
        image,
        text: text.transpose()?,
        classifier: classifier.transpose()?,
        segmenter: segmenter.transpose()?,
    })
}

/// Done when all is: after a signal nothing more is taken, and what was begun is finished while there is time.
async fn until_stopped(engine: Arc<Engine>, drain: Duration, mut over: oneshot::Receiver<()>) {
    let switch = interrupt::switch();
    while !switch.is_cancelled() {
        tokio::select! {
            _ = &mut over => return,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
    tracing::info!("stopping: nothing more is taken");
    if engine.state() == State::Ready {
        engine.set_state(State::Draining);
        let empty = async {
            while engine.load() != (0, 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(drain, empty).await.is_err() {
            tracing::warn!("what is not finished by now is handed back");
        }
    }
    engine.set_state(State::Stopped);
    let _ = over.await;
}
