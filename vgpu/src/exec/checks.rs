//! Which checks a launch runs.

/// What the device looks for besides accesses that it cannot execute at all: bounds, lifetime and alignment
/// are always checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Values that nobody defined, where they matter.
    pub undefined: bool,
    /// Races between warps in shared memory.
    pub race_shared: bool,
    /// Races between blocks in global memory.
    pub race_global: bool,
    /// Races between the lanes of a warp in shared memory.
    pub race_warp: bool,
    /// Data of asynchronous copies that was not waited for.
    pub async_copy: bool,
    /// Page-locked memory that changes under an asynchronous copy.
    pub host: bool,
}

impl Checks {
    /// All checks.
    pub const ALL: Self = Self::of(true);
    /// Only what cannot be turned off.
    pub const NONE: Self = Self::of(false);

    const fn of(on: bool) -> Self {
        Self {
            undefined: on,
            race_shared: on,
            race_global: on,
            race_warp: on,
            async_copy: on,
            host: on,
        }
    }

    /// Reads `on`, `off` or a list: `race,-race-warp`. A list that begins with a minus starts from all
    /// checks, any other from none.
    ///
    /// # Errors
    /// The word that is no check, and what there is.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut checks = Self::of(text.starts_with('-'));
        for word in text.split(',').map(str::trim) {
            let (name, on) = match word.strip_prefix('-') {
                Some(name) => (name, false),
                None => (word, true),
            };
            match name {
                "on" | "all" => checks = Self::of(on),
                "off" => checks = Self::of(!on),
                "undefined" => checks.undefined = on,
                "race" => {
                    (checks.race_shared, checks.race_global, checks.race_warp) = (on, on, on);
                }
                "race-shared" => checks.race_shared = on,
                "race-global" => checks.race_global = on,
                "race-warp" => checks.race_warp = on,
                "async" => checks.async_copy = on,
                "host" => checks.host = on,
                _ => {
                    return Err(format!(
                        "'{name}' is none of on, off, undefined, race, race-shared, race-global, race-warp, async, host"
                    ));
                }
            }
        }
        Ok(checks)
    }

    /// Some check needs to know who touched shared memory.
    pub(super) fn shadows_shared(&self) -> bool {
        self.race_shared || self.race_warp || self.async_copy
    }

    /// Some check needs to know what is ordered with what.
    pub(super) fn races(&self) -> bool {
        self.race_shared || self.race_warp || self.race_global
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_start_from_all_or_from_nothing() {
        assert_eq!(Checks::parse("on"), Ok(Checks::ALL));
        assert_eq!(Checks::parse("off"), Ok(Checks::NONE));
        let races =
            Checks { race_shared: true, race_global: true, race_warp: true, ..Checks::NONE };
        assert_eq!(Checks::parse("race,-undefined"), Ok(races));
        assert_eq!(Checks::parse("race, -race-warp"), Ok(Checks { race_warp: false, ..races }));
        assert_eq!(Checks::parse("-host"), Ok(Checks { host: false, ..Checks::ALL }));
        for nonsense in ["", "races", "race,,async", "--race"] {
            assert!(Checks::parse(nonsense).is_err(), "{nonsense}");
        }
    }
}
