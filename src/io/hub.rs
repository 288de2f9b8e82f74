//! The Hugging Face hub's local cache, read without network.
//!
//! The cache's layout is `models--ORG--NAME/{refs/REVISION, snapshots/COMMIT/...}`, under `HF_HUB_CACHE`,
//! `$HF_HOME/hub`, or `~/.cache/huggingface/hub`
//! (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>).

use std::env;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// The revision that is meant when none is named.
const MAIN: &str = "main";

/// Turns what a user calls a model, a folder or `org/name[@revision]`, into a folder.
///
/// # Errors
/// There is neither such a folder nor such a model in the cache; the error says where it was looked for and
/// how to fetch it.
pub fn locate(reference: &str) -> Result<PathBuf> {
    let path = Path::new(reference);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    match Repository::parse(reference) {
        Some(repository) => Cache::from_env().find(&repository),
        None => {
            let expected = "an existing folder, or org/name of a model in the hub cache";
            Err(Error::file(path, "model", expected, "neither", "Check the spelling."))
        }
    }
}

/// Turns what a user calls a file or a folder beside a model into its path: one that exists, or `org/name[@revision]` in the
/// cache, or `org/name[@revision]/...`, a file or folder in that. What is neither stays as it is, for whoever opens it to miss.
///
/// # Errors
/// `org/name` is not in the cache, and `org` is no folder here either: how to fetch it.
pub fn locate_beside(reference: &Path) -> Result<PathBuf> {
    let names: Option<Vec<&str>> = match reference.exists() {
        true => None,
        false => reference
            .components()
            .map(|part| match part {
                Component::Normal(name) => name.to_str(),
                _ => None,
            })
            .collect(),
    };
    let [org, name, inner @ ..] = names.as_deref().unwrap_or_default() else {
        return Ok(reference.to_owned());
    };
    let Some(repository) = Repository::parse(&format!("{org}/{name}")) else {
        return Ok(reference.to_owned());
    };
    match Cache::from_env().find(&repository) {
        Ok(snapshot) => Ok(inner.iter().fold(snapshot, |path, name| path.join(name))),
        Err(_) if !inner.is_empty() || Path::new(org).exists() => Ok(reference.to_owned()),
        Err(missing) => Err(missing),
    }
}

/// A model on the hub: `org/name`, and a revision (branch, tag or commit).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    name: String,
    revision: String,
}

impl Repository {
    /// `org/name`, `name`, or either with `@revision`; `None` for anything else, paths among them.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let word = |w: &str| {
            w.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && w.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
                && !w.contains("..")
                && !w.contains("--")
        };
        let plain = Path::new(revision).components().all(|c| matches!(c, Component::Normal(_)));
        let valid = name.split('/').count() <= 2
            && name.split('/').all(word)
            && !revision.is_empty()
            && plain;
        valid.then(|| Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}

/// A cache folder of huggingface_hub.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The cache that huggingface_hub would use in this environment.
    pub fn from_env() -> Self {
        let folder = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| folder("HF_HOME").map(|home| home.join("hub")))
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
            .unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".cache/huggingface/hub"));
        Self { root }
    }

    /// Its folder, which need not exist.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The snapshot folder of a model.
    ///
    /// # Errors
    /// The model, or this revision of it, is not in the cache.
    pub fn find(&self, repository: &Repository) -> Result<PathBuf> {
        let Repository { name, revision } = repository;
        let folder = self.root.join(format!("models--{}", name.replace('/', "--")));
        let missing = |what: &str, found: String| {
            let at =
                if revision == MAIN { String::new() } else { format!(" --revision {revision}") };
            let advice = format!(
                "Fetch it first: hf download {name}{at} (older: huggingface-cli download {name}{at})"
            );
            Err(Error::file(
                &folder,
                what,
                format!("{name}@{revision} in the hub cache"),
                found,
                advice,
            ))
        };
        if !folder.is_dir() {
            return missing("model", "no such folder".to_owned());
        }
        // A branch or tag is a file that holds the commit; a commit names its snapshot directly.
        let reference = folder.join("refs").join(revision);
        let commit = match fs::read_to_string(&reference) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => revision.clone(),
        };
        let named = Path::new(&commit).components().all(|c| matches!(c, Component::Normal(_)))
            && !commit.is_empty();
        let snapshot = folder.join("snapshots").join(&commit);
        if named && snapshot.is_dir() {
            Ok(snapshot)
        } else {
            missing("revision", format!("no snapshot {commit:?}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        let parse = |text: &str| Repository::parse(text).map(|r| (r.name, r.revision));
        let some = |n: &str, r: &str| Some((n.to_owned(), r.to_owned()));
        assert_eq!(parse("org/name"), some("org/name", "main"));
        assert_eq!(parse("gpt2"), some("gpt2", "main"));
        assert_eq!(parse("org/name@fp16"), some("org/name", "fp16"));
        assert_eq!(parse("org/name@refs/pr/1"), some("org/name", "refs/pr/1"));
        for path in [
            "",
            "./x",
            "/a/b",
            "a/b/c",
            "../x",
            "org/",
            "a/..",
            "org/name@",
            "org/name@../../x",
            "a--b/c",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn finds_branches_and_commits() {
        let root = tempfile::tempdir().unwrap();
        let model = root.path().join("models--org--name");
        for folder in ["refs", "snapshots/abc123"] {
            fs::create_dir_all(model.join(folder)).unwrap();
        }
        fs::write(model.join("refs/main"), "abc123\n").unwrap();
        let cache = Cache::at(root.path());
        let find = |text: &str| cache.find(&Repository::parse(text).unwrap());
        assert_eq!(find("org/name").unwrap(), model.join("snapshots/abc123"));
        assert_eq!(find("org/name@abc123").unwrap(), model.join("snapshots/abc123"));

        let error = find("org/name@v2").unwrap_err().to_string();
        assert!(error.contains("hf download org/name --revision v2"), "{error}");
        let error = find("org/other").unwrap_err().to_string();
        assert!(
            error.contains("models--org--other") && error.contains("hf download org/other"),
            "{error}"
        );
        // A hostile ref does not lead out of the cache.
        fs::write(model.join("refs/main"), "../../..").unwrap();
        let error = find("org/name").unwrap_err().to_string();
        assert!(error.contains("found no snapshot \"../../..\""), "{error}");
    }
}
