//! Typed reading of the `config.json` files in model folders.
//!
//! A configuration has many fields, most at their neutral value. Reading one that is not neutral and not
//! implemented as if it were would give a silently wrong picture, so every field is either read, or
//! declared [`neutral`](Config::neutral), or found by [`finish`](Config::finish).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{TensorSource, read_bounded};
use crate::error::{Error, Result};

/// No configuration comes near this size.
const MAX_BYTES: u64 = 4 << 20;

/// The text of a configuration file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_bounded(path, MAX_BYTES)?).map_err(|e| {
        Error::file(path, "content", "UTF-8 text", e.to_string(), "Is this the right file?")
    })
}

/// The value of a configuration file's text.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(text)
        .map_err(|e| Error::file(path, "content", "JSON", e.to_string(), "Is the file complete?"))
}

/// The value of a JSON file no larger than configurations are.
///
/// # Errors
/// It cannot be read, is larger, or no JSON.
pub fn read_json(path: &Path) -> Result<Value> {
    parse(path, &read_text(path)?)
}

/// The fields of one JSON object, and which of them have been asked for.
pub struct Config {
    path: PathBuf,
    fields: Map<String, Value>,
    /// What no count exceeds, and why.
    limit: Option<(usize, String)>,
    seen: Mutex<BTreeSet<String>>,
}

impl Config {
    /// Reads a JSON file.
    ///
    /// # Errors
    /// The file cannot be read, or holds no JSON object.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_value(path, parse(path, &read_text(path)?)?)
    }

    /// The object `value`; errors will say that it came from `path`.
    ///
    /// # Errors
    /// `value` is not an object.
    pub fn from_value(path: impl AsRef<Path>, value: Value) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        match value {
            Value::Object(fields) => Ok(Self { path, fields, limit: None, seen: Mutex::default() }),
            other => Err(Error::file(
                path,
                "content",
                "a JSON object",
                kind(&other),
                "Is this the right file?",
            )),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all fields, but for private ones (`_class_name`, ...).
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str).filter(|name| !name.starts_with('_'))
    }

    /// The whole object.
    pub(crate) fn to_value(&self) -> Value {
        self.fields.clone().into()
    }

    /// The value as it stands; null counts as absent.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        self.fields.get(name).filter(|v| !v.is_null())
    }

    /// The field `name` as a `T`, which errors call `expected`; `None` when absent or null.
    ///
    /// # Errors
    /// The field has another type.
    pub fn get<T: DeserializeOwned>(&self, name: &str, expected: &str) -> Result<Option<T>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|_| self.wrong(name, expected))
    }

    /// Bounds every count that is read from here on by the weights that the configuration comes with: none can exceed
    /// both their longest side and their number.
    #[must_use]
    pub fn bounded_by(mut self, weights: &impl TensorSource) -> Self {
        let names = weights.names();
        let sides = names.iter().filter_map(|name| weights.info(name)?.shape.into_iter().max());
        let limit = sides.max().unwrap_or(0).max(names.len());
        let file = names.first().map(|name| weights.origin(name)).unwrap_or_default();
        self.limit =
            Some((limit, format!("neither sides nor numbers of tensors in {file} exceed")));
        self
    }

    /// A count.
    ///
    /// # Errors
    /// The field has another type, or is [out of bounds](Self::bounded_by); likewise below.
    pub fn usize(&self, name: &str, default: usize) -> Result<usize> {
        let found = self.get(name, "a non-negative integer")?;
        self.check_counts(name, found.as_slice())?;
        Ok(found.unwrap_or(default))
    }

    fn check_counts(&self, name: &str, counts: &[usize]) -> Result<()> {
        let Some((limit, why)) = &self.limit else { return Ok(()) };
        if counts.len() <= *limit && counts.iter().all(|count| count <= limit) {
            return Ok(());
        }
        Err(self.wrong(name, &format!("at most {limit}, which {why}")))
    }

    /// A number.
    pub fn f64(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.get(name, "a number")?.unwrap_or(default))
    }

    /// A number, in the precision that layers hold it.
    pub fn f32(&self, name: &str, default: f32) -> Result<f32> {
        Ok(self.f64(name, f64::from(default))? as f32)
    }

    /// A truth value.
    pub fn bool(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.get(name, "true or false")?.unwrap_or(default))
    }

    /// A text.
    pub fn string(&self, name: &str, default: &str) -> Result<String> {
        Ok(self.get(name, "a string")?.unwrap_or_else(|| default.to_owned()))
    }

    /// A list of counts.
    pub fn usizes(&self, name: &str, default: &[usize]) -> Result<Vec<usize>> {
        let found: Option<Vec<usize>> = self.get(name, "a list of non-negative integers")?;
        self.check_counts(name, found.as_deref().unwrap_or_default())?;
        Ok(found.unwrap_or_else(|| default.to_vec()))
    }

    /// A list of texts.
    pub fn strings(&self, name: &str, default: &[&str]) -> Result<Vec<String>> {
        Ok(self
            .get(name, "a list of strings")?
            .unwrap_or_else(|| default.iter().map(|&s| s.to_owned()).collect()))
    }

    /// One count for each of `n` levels; a single number stands for `n` equal ones. `None` when absent.
    ///
    /// # Errors
    /// Another type, or a list of another length.
    pub fn per_level(&self, name: &str, n: usize) -> Result<Option<Vec<usize>>> {
        let expected = format!("a non-negative integer or a list of {n} of them");
        let counts = match self.value(name) {
            None => None,
            Some(Value::Array(_)) => match self.get::<Vec<usize>>(name, &expected)? {
                Some(list) if list.len() == n => Some(list),
                _ => return Err(self.wrong(name, &expected)),
            },
            Some(_) => self.get(name, &expected)?.map(|one: usize| vec![one; n]),
        };
        self.check_counts(name, counts.as_deref().unwrap_or_default())?;
        Ok(counts)
    }

    /// Counts for the parts of each level, of which `parts` says how many there are; a number stands for all parts of a level,
    /// or of all levels. What a list has beyond its level's parts is passed over, as in diffusers. `None` when absent.
    ///
    /// # Errors
    /// Another type, or a list that is too short.
    pub fn per_part(&self, name: &str, parts: &[usize]) -> Result<Option<Vec<Vec<usize>>>> {
        let Some(Value::Array(levels)) = self.value(name) else {
            let counts = self.per_level(name, parts.len())?;
            return Ok(counts.map(|counts| {
                counts.iter().zip(parts).map(|(&count, &n)| vec![count; n]).collect()
            }));
        };
        let count = |value: &Value| value.as_u64().and_then(|count| usize::try_from(count).ok());
        let level = |(value, &n): (&Value, &usize)| match value {
            Value::Array(list) if list.len() >= n => list[..n].iter().map(count).collect(),
            value => Some(vec![count(value)?; n]),
        };
        let counts = (levels.len() == parts.len())
            .then(|| levels.iter().zip(parts).map(level).collect::<Option<Vec<Vec<usize>>>>());
        let Some(counts) = counts.flatten() else {
            let expected =
                format!("a number for each of {} levels, or lists of {parts:?}", parts.len());
            return Err(self.wrong(name, &expected));
        };
        self.check_counts(name, &counts.concat())?;
        Ok(Some(counts))
    }

    /// One of the named choices.
    ///
    /// # Errors
    /// The field is none of them; the message lists them.
    pub fn choice<T: Copy>(&self, name: &str, default: &str, choices: &[(&str, T)]) -> Result<T> {
        let found = self.string(name, default)?;
        let chosen = choices.iter().find(|(name, _)| *name == found).map(|&(_, choice)| choice);
        chosen.ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            self.wrong(name, &format!("one of {}", names.join(", ")))
        })
    }

    /// Declares that only these values of a field (or its absence, or null) are implemented.
    ///
    /// # Errors
    /// The field has another value.
    pub fn neutral(&self, name: &str, values: &[Value]) -> Result<()> {
        match self.value(name) {
            Some(v)
                if !values
                    .iter()
                    .any(|n| n == v || n.as_f64().is_some() && n.as_f64() == v.as_f64()) =>
            {
                let names: Vec<_> = values.iter().map(Value::to_string).collect();
                Err(self.wrong(
                    name,
                    &if names.is_empty() { "null".to_owned() } else { names.join(" or ") },
                ))
            }
            _ => Ok(()),
        }
    }

    /// Marks fields that do not change what a model computes.
    pub fn ignore(&self, names: &[&str]) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.extend(names.iter().map(|&name| name.to_owned()));
    }

    /// Ends the reading: no field may be left that nobody asked for, unless it is null, false or private
    /// (`_class_name`, ...).
    ///
    /// # Errors
    /// Names the first such field.
    pub fn finish(&self) -> Result<()> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let unknown = self.fields.iter().find(|(name, value)| {
            !name.starts_with('_')
                && !seen.contains(*name)
                && !matches!(value, Value::Null | Value::Bool(false))
        });
        match unknown {
            None => Ok(()),
            Some((name, value)) => Err(Error::file(
                &self.path,
                format!("field \"{name}\""),
                "a field that nadir knows",
                value.to_string(),
                "It may change what the model computes, so it is not passed over.",
            )),
        }
    }

    /// The error of a field that is not what was expected.
    pub fn wrong(&self, name: &str, expected: &str) -> Error {
        let found = self.fields.get(name).map_or_else(
            || "nothing".to_owned(),
            |value| {
                let text = value.to_string();
                if text.chars().count() > 80 {
                    text.chars().take(80).chain("...".chars()).collect()
                } else {
                    text
                }
            },
        );
        let advice = "nadir does not guess: correct the file, or use a model of a supported kind.";
        Error::file(&self.path, format!("field \"{name}\""), expected, found, advice)
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::io::TensorInfo;
    use crate::tensor::{DType, Tensor};

    fn config(value: Value) -> Config {
        Config::from_value("unet/config.json", value).unwrap()
    }

    #[test]
    fn fields_are_typed() {
        let c = config(json!({ "n": 3, "x": "three", "list": [1, 2], "null": null, "eps": 1e-6 }));
        assert_eq!(c.usize("n", 1).unwrap(), 3);
        assert_eq!(c.usize("null", 7).unwrap(), 7);
        assert_eq!(c.f32("eps", 0.0).unwrap(), 1e-6);
        assert_eq!(c.per_level("n", 2).unwrap(), Some(vec![3, 3]));
        assert_eq!(c.per_level("list", 2).unwrap(), Some(vec![1, 2]));
        let message = c.per_level("list", 3).unwrap_err().to_string();
        assert!(message.contains("\"list\"") && message.contains("a list of 3"), "{message}");
        let message = c.usize("x", 1).unwrap_err().to_string();
        assert_eq!(
            message.split(". ").next().unwrap(),
            "unet/config.json: field \"x\": expected a non-negative integer, found \"three\""
        );
        assert!(
            c.choice("x", "", &[("one", 1), ("two", 2)])
                .unwrap_err()
                .to_string()
                .contains("one of one, two")
        );
    }

    #[test]
    fn parts_of_levels_are_counted_by_numbers_and_lists() {
        let c = config(json!({
            "one": 3, "levels": [1, 2], "parts": [[1], [2, 3]], "mixed": [4, [5, 6, 7]], "short": [1, [2]],
            "deep": [[[1]], 2], "long": [1, 2, 3], "text": [1, "2"],
        }));
        let found = |name| c.per_part(name, &[1, 2]).unwrap();
        assert_eq!(found("none"), None);
        assert_eq!(found("one"), Some(vec![vec![3], vec![3, 3]]));
        assert_eq!(found("levels"), Some(vec![vec![1], vec![2, 2]]));
        assert_eq!(found("parts"), Some(vec![vec![1], vec![2, 3]]));
        assert_eq!(found("mixed"), Some(vec![vec![4], vec![5, 6]]));
        for wrong in ["short", "deep", "long", "text"] {
            let error = c.per_part(wrong, &[1, 2]).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("[1, 2]"), "{error}");
        }
    }

    #[test]
    fn what_would_change_the_result_is_not_passed_over() {
        let c = config(json!({ "_class_name": "X", "a": false, "b": 1.0, "new_trick": "on" }));
        c.neutral("a", &[]).unwrap_err();
        c.neutral("b", &[json!(1)]).unwrap();
        assert!(c.finish().unwrap_err().to_string().contains("new_trick"));
        c.ignore(&["new_trick"]);
        c.finish().unwrap();
    }

    struct Narrow;

    impl TensorSource for Narrow {
        fn names(&self) -> Vec<String> {
            vec!["a".into(), "b".into()]
        }
        fn info(&self, _: &str) -> Option<TensorInfo> {
            Some(TensorInfo { shape: vec![3, 7, 5], dtype: DType::F32 })
        }
        fn read(&self, _: &str) -> Result<Tensor> {
            unreachable!("nothing is read to know its shape")
        }
        fn origin(&self, _: &str) -> String {
            "narrow.safetensors".into()
        }
    }

    #[test]
    fn counts_are_bounded_by_the_weights() {
        let fields = json!({ "n": 7, "wide": 8, "list": [7, 8], "long": [1, 1, 1, 1, 1, 1, 1, 1] });
        let c = config(fields).bounded_by(&Narrow);
        assert_eq!(c.usize("n", 1).unwrap(), 7);
        assert_eq!(c.usize("absent", 100).unwrap(), 100);
        for error in [
            c.usize("wide", 1).unwrap_err(),
            c.usizes("list", &[]).unwrap_err(),
            c.usizes("long", &[]).unwrap_err(),
            c.per_level("wide", 2).unwrap_err(),
            c.per_level("list", 2).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.contains("unet/config.json: field \""), "{error}");
            assert!(error.contains("at most 7") && error.contains("narrow.safetensors"), "{error}");
        }
    }

    #[test]
    fn only_objects_are_configurations() {
        let error = |c: Result<Config>| c.err().unwrap().to_string();
        let message = error(Config::from_value("c.json", json!([1])));
        assert!(message.contains("c.json") && message.contains("found a list"), "{message}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, "{ \"a\": ").unwrap();
        let message = error(Config::open(&path));
        assert!(message.contains("config.json") && message.contains("JSON"), "{message}");
        let message = error(Config::open(dir.path().join("none.json")));
        assert!(message.contains("none.json") && message.contains("No such file"), "{message}");
    }
}
