//! The interfaces: our own, OpenAI's and the web UI's. They differ in words; what they ask for is the same.

pub mod health;
pub mod jobs;
pub mod look;
pub mod openai;
pub mod reference;
pub mod sets;
pub mod webui;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::RgbImage;
use tokio::sync::mpsc;

use super::App;
use super::engine::{News, What};
use super::fault::Fault;
use super::guard::Peer;
use super::picture::Ready;
use super::queue::{Client, Priority};

impl Peer {
    /// Who takes turns with others.
    pub fn client(self) -> Client {
        Client(self.0.to_string())
    }
}

/// A picture in JSON: base64, with or without the beginning of a `data:` URL.
pub fn decoded(field: &str, text: &str) -> Result<Vec<u8>, Fault> {
    let data = match text.strip_prefix("data:") {
        Some(rest) => rest.split_once(";base64,").map(|(_, data)| data),
        None => Some(text),
    };
    let bytes = data.and_then(|data| BASE64.decode(data.trim()).ok());
    bytes.ok_or_else(|| Fault::field(field, "expected a picture in base64"))
}

/// Draws while the client waits: when it goes, so does the work.
pub async fn draw(
    app: &std::sync::Arc<App>,
    peer: Peer,
    ready: Ready,
    mut watch: impl FnMut(usize, &What),
) -> Result<Vec<RgbImage>, Fault> {
    let (to, mut news) = mpsc::unbounded_channel();
    let Ready { works, cancel, .. } = ready;
    let many = works.len();
    let priority = Priority::Interactive;
    let _ticket = app.engine.submit(&peer.client(), priority, None, works, &cancel, &to)?;
    drop(to);
    let mut pictures = vec![None; many];
    while pictures.iter().any(Option::is_none) {
        let Some(News { index, what }) = news.recv().await else {
            return Err(super::engine::Failure::HandedBack.into());
        };
        watch(index, &what);
        match what {
            What::Drawn(picture) => pictures[index] = Some(picture),
            What::Failed(failure) => return Err(failure.into()),
            _ => {}
        }
    }
    Ok(pictures.into_iter().flatten().collect())
}
