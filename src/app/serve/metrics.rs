//! Counters in Prometheus' form.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// What the server counts.
pub struct Metrics {
    registry: Registry,
    pub pictures: Counter,
    pub steps: Counter,
    pub tokens: Counter,
    /// Pictures that were finished behind their deadline.
    pub missed: Counter,
    requests: Family<Reply, Counter>,
    seconds: Histogram,
    queued: Gauge,
    in_work: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reply {
    route: String,
    status: u16,
}

impl Metrics {
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("nadir");
        let [pictures, steps, tokens, missed] = [
            ("pictures", "Pictures drawn"),
            ("steps", "Denoising steps of pictures"),
            ("tokens", "Tokens written"),
            ("deadlines_missed", "Pictures that were finished behind their deadline"),
        ]
        .map(|(name, help)| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        });
        let requests = Family::<Reply, Counter>::default();
        registry.register("requests", "Replies by route and status", requests.clone());
        let bounds = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
        let seconds = Histogram::new(bounds);
        registry.register_with_unit("request", "Time to a reply", Unit::Seconds, seconds.clone());
        let [queued, in_work] =
            [("queued", "Pictures and texts that wait"), ("in_work", "Those in work")].map(
                |(name, help)| {
                    let gauge = Gauge::default();
                    registry.register(name, help, gauge.clone());
                    gauge
                },
            );
        Arc::new(Self {
            registry,
            pictures,
            steps,
            tokens,
            missed,
            requests,
            seconds,
            queued,
            in_work,
        })
    }

    /// Counts a reply; `route` is the pattern, not what was asked for.
    pub fn replied(&self, route: String, status: u16, seconds: f64) {
        self.requests.get_or_create(&Reply { route, status }).inc();
        self.seconds.observe(seconds);
    }

    /// All of it as text; `load` is what waits and what is in work.
    pub fn text(&self, load: (usize, usize)) -> Result<String, std::fmt::Error> {
        self.queued.set(load.0 as i64);
        self.in_work.set(load.1 as i64);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
