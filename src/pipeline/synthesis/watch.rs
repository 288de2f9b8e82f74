//! How far a data set is that another process is making.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Verdict;
use super::records::{DRAWS, Draw, INDEX, QUOTA, SETTINGS};
use crate::error::Result;
use crate::io::config::Config;
use crate::io::read_bounded;
use crate::pipeline::language::classes::PromptClass;

const MAX_RECORDS: u64 = 1 << 30;

/// A data set as it is now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Growth {
    /// In the order in which they are filled.
    pub classes: Vec<ClassGrowth>,
    /// Whether nothing more is drawn.
    pub finished: bool,
    /// The latest pictures that were accepted, the newest first.
    #[serde(skip)]
    pub recent: Vec<PathBuf>,
}

/// Of a class.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClassGrowth {
    /// Its name.
    pub class: String,
    /// How many there are to be.
    pub wanted: usize,
    /// How many there are.
    pub accepted: usize,
    /// How many were drawn besides, by what was wrong with them.
    pub rejected: BTreeMap<&'static str, usize>,
}

impl Growth {
    /// Looks into the folder of a data set, with up to `recent` of its pictures. It is not locked: a record that is being
    /// written is not there yet.
    ///
    /// # Errors
    /// `folder` is none that `nadir synthesize` began.
    pub fn of(folder: &Path, recent: usize) -> Result<Self> {
        let settings = Config::open(folder.join(SETTINGS))?;
        let expected = "the classes of a data set";
        let classes: Vec<PromptClass> = settings
            .get("classes", expected)?
            .ok_or_else(|| settings.wrong("classes", expected))?;
        let wanted = match Config::open(folder.join(QUOTA)) {
            Ok(quota) => quota.get("per_class", "a number")?.unwrap_or(0),
            Err(_) => 0,
        };
        let class =
            |class: PromptClass| ClassGrowth { class: class.name, wanted, ..Default::default() };
        let mut growth = Self {
            classes: classes.into_iter().map(class).collect(),
            finished: folder.join(INDEX).is_file(),
            recent: Vec::new(),
        };
        let records = read_bounded(&folder.join(DRAWS), MAX_RECORDS)?;
        for line in records.split_inclusive(|byte| *byte == b'\n') {
            let Ok(draw) = serde_json::from_slice::<Draw>(line) else { continue };
            let Some(class) = growth.classes.get_mut(draw.label) else { continue };
            match draw.verdict {
                Verdict::Accepted => {
                    class.accepted += 1;
                    growth.recent.extend(draw.file.map(|file| folder.join(file)));
                }
                other => *class.rejected.entry(other.name()).or_default() += 1,
            }
        }
        growth.recent.reverse();
        growth.recent.truncate(recent);
        Ok(growth)
    }
}
