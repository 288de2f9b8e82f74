//! Progress on standard error: a bar on a terminal, now and then a line elsewhere.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::terminal;

/// Lines in a log are this far apart.
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts steps and says how fast they go.
pub struct Progress {
    kind: Kind,
    done: usize,
    total: usize,
    started: Instant,
}

enum Kind {
    Quiet,
    Lines { last: Instant },
    Bar(ProgressBar),
}

impl Progress {
    /// `quiet` shows nothing but warnings.
    pub fn new(quiet: bool) -> Self {
        let now = Instant::now();
        let kind = match () {
            () if quiet => Kind::Quiet,
            () if std::io::stderr().is_terminal() => {
                Kind::Bar(ProgressBar::new(0).with_style(style("{spinner} {msg}")))
            }
            () => Kind::Lines { last: now },
        };
        Self { kind, done: 0, total: 0, started: now }
    }

    /// Shows that something goes on that has no steps.
    pub fn busy(&self, what: &str) {
        if let Kind::Bar(bar) = &self.kind {
            bar.set_message(terminal::printable(what));
            bar.enable_steady_tick(Duration::from_millis(100));
        }
    }

    /// `total` steps are ahead; the first call starts the clock.
    pub fn start(&mut self, total: usize) {
        if self.total > 0 {
            return;
        }
        self.total = total;
        self.started = Instant::now();
        match &mut self.kind {
            Kind::Quiet => {}
            Kind::Lines { last } => *last = self.started,
            Kind::Bar(bar) => {
                bar.disable_steady_tick();
                bar.set_style(style("{wide_bar:.cyan/dim} {pos}/{len}  {msg}  {eta} left"));
                bar.set_message("");
                bar.reset();
                bar.set_length(total as u64);
            }
        }
    }

    /// One step is done.
    pub fn step(&mut self) {
        self.done += 1;
        let rate = self.rate();
        match &mut self.kind {
            Kind::Quiet => {}
            Kind::Bar(bar) => {
                bar.set_message(pace(rate));
                bar.inc(1);
            }
            Kind::Lines { last } => {
                if last.elapsed() >= INTERVAL {
                    *last = Instant::now();
                    let left = self.total.saturating_sub(self.done) as f64 / rate;
                    let pace = pace(rate);
                    terminal::say(&format!(
                        "step {}/{}, {pace}, {left:.0} s left",
                        self.done, self.total
                    ));
                }
            }
        }
    }

    /// Steps a second since the start.
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.started.elapsed().as_secs_f64()
    }

    /// A line above the bar.
    pub fn say(&self, line: &str) {
        match &self.kind {
            Kind::Quiet => {}
            Kind::Lines { .. } => terminal::say(line),
            Kind::Bar(bar) => bar.suspend(|| terminal::say(line)),
        }
    }

    /// A line of the result, on standard output.
    pub fn print(&self, line: impl Display) {
        let print = || {
            // Nobody may be reading.
            let _ = writeln!(std::io::stdout(), "{line}");
        };
        match &self.kind {
            Kind::Bar(bar) => bar.suspend(print),
            Kind::Quiet | Kind::Lines { .. } => print(),
        }
    }

    /// A line above the bar that is shown even when all else is quiet.
    pub fn warn(&self, message: &str) {
        let line = format!("warning: {message}");
        match &self.kind {
            Kind::Bar(bar) => bar.suspend(|| terminal::say(&line)),
            Kind::Quiet | Kind::Lines { .. } => terminal::say(&line),
        }
    }

    /// Removes the bar, and says how fast it went when any step was done.
    pub fn finish(&self) {
        self.clear();
        if self.done > 0 {
            let seconds = self.started.elapsed().as_secs_f64();
            self.say(&format!("{} steps in {seconds:.1} s ({})", self.done, pace(self.rate())));
        }
    }
}

impl Progress {
    fn clear(&self) {
        if let Kind::Bar(bar) = &self.kind {
            bar.finish_and_clear();
        }
    }
}

/// Whatever ends the work, its message stands on a line of its own.
impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Speeds as people say them: above one a second in it/s, below in s/it.
pub fn pace(rate: f64) -> String {
    if rate >= 1.0 || rate == 0.0 {
        format!("{rate:.1} it/s")
    } else {
        format!("{:.1} s/it", 1.0 / rate)
    }
}

fn style(template: &str) -> ProgressStyle {
    // A template that does not parse costs the looks, not the picture.
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_reads_well() {
        assert_eq!(pace(12.34), "12.3 it/s");
        assert_eq!(pace(0.25), "4.0 s/it");
        assert_eq!(pace(0.0), "0.0 it/s");
    }

    #[test]
    fn no_step_needs_no_time() {
        let mut progress = Progress::new(true);
        progress.start(0);
        progress.finish();
        progress.start(2);
        progress.step();
        assert!(progress.rate() > 0.0);
    }
}
