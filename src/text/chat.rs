//! From a conversation to a prompt, by the template in a model's folder.
//!
//! Templates are Jinja as transformers renders them (`utils/chat_template_utils.py`): blocks take the white space before and
//! the line's end behind them, and `raise_exception` refuses a conversation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::error::{Error, Result};
use crate::io::caught;
use crate::io::config::{read_json, read_text};

/// Steps that a template may take: those of models take some hundreds a message.
const FUEL: u64 = 10_000_000;

/// A turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// What makes prompts of conversations.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    /// `bos_token` and the like.
    tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// The template of a model's folder: `chat_template.jinja`, or the field `chat_template` of `tokenizer_config.json`.
    /// `None` where there is neither.
    ///
    /// # Errors
    /// A file is damaged, or the template is none.
    pub fn open(folder: &Path) -> Result<Option<Self>> {
        let (file, about) =
            (folder.join("chat_template.jinja"), folder.join("tokenizer_config.json"));
        let config = if about.is_file() { read_json(&about)? } else { Json::Null };
        let (path, source) = match &config["chat_template"] {
            _ if file.is_file() => (file.clone(), read_text(&file)?),
            Json::String(source) => (about, source.clone()),
            // Several, by name: the one for plain conversations.
            Json::Array(several) => {
                let plain = several.iter().find(|one| one["name"] == "default");
                let source = plain.and_then(|one| one["template"].as_str()).ok_or_else(|| {
                    let advice = "Put the template to use into chat_template.jinja.";
                    Error::file(&about, "chat_template", "one named default", "none", advice)
                })?;
                (about.clone(), source.to_owned())
            }
            _ => return Ok(None),
        };
        let mut tokens = BTreeMap::new();
        for name in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            let value = &config[name];
            if let Some(token) = value.as_str().or_else(|| value["content"].as_str()) {
                tokens.insert(name.to_owned(), token.to_owned());
            }
        }
        let template = Self { path, source, tokens };
        template.environment()?;
        Ok(Some(template))
    }

    /// The prompt that an assistant's answer to `messages` goes on from.
    ///
    /// # Errors
    /// The template refuses the conversation, or cannot be carried out.
    pub fn prompt(&self, messages: &[Message]) -> Result<String> {
        let environment = self.environment()?;
        let text = |text: &str| Value::from(text.to_owned());
        let turns = messages.iter().map(|message| {
            Value::from_pairs([("role", text(&message.role)), ("content", text(&message.content))])
        });
        let tokens = self.tokens.iter().map(|(name, token)| (name.as_str(), text(token)));
        let conversation =
            [("messages", turns.collect()), ("add_generation_prompt", Value::from(true))];
        let values = Value::from_pairs(tokens.chain(conversation));
        caught(|| environment.get_template(NAME)?.render(values))
            .and_then(|done| done.map_err(|e| message(&e)))
            .map_err(|found| self.wrong("a prompt for the conversation", found))
    }

    fn environment(&self) -> Result<Environment<'_>> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| self.wrong("a template", message(&e)))?);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", |message: String| -> Result<String, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.set_unknown_method_callback(unknown_method_callback);
        caught(|| environment.add_template(NAME, &self.source))
            .and_then(|done| done.map_err(|e| message(&e)))
            .map_err(|found| self.wrong("a template", found))?;
        Ok(environment)
    }

    fn wrong(&self, expected: &str, found: String) -> Error {
        let advice = "Leave --chat out, or write the prompt as the model wants it.";
        Error::file(&self.path, "chat template", expected, found, advice)
    }
}

const NAME: &str = "chat";

/// What went wrong, and in which line.
fn message(error: &minijinja::Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
        let message = |&(role, content): &(&str, &str)| Message {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        turns.iter().map(message).collect()
    }

    /// A folder with this template, where transformers puts it and where its earlier releases did.
    fn folders(template: &str) -> [tempfile::TempDir; 2] {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let about = |template: Json| {
            serde_json::json!({
                "bos_token": {"content": "<s>"},
                "eos_token": "</s>",
                "chat_template": template,
            })
            .to_string()
        };
        let write = |folder: &tempfile::TempDir, name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        write(&folders[0], "tokenizer_config.json", &about(Json::Null));
        write(&folders[0], "chat_template.jinja", template);
        write(&folders[1], "tokenizer_config.json", &about(template.into()));
        folders
    }

    /// What the golden folder's prompt is for transformers, `tests/decoder.rs` asks.
    #[test]
    fn templates_are_jinja_with_the_methods_of_python() {
        let template = "{{ bos_token }}{% for m in messages %}\n  {% if m['role'] == 'system' %}\n\
                        [{{ m.content.strip() | upper }}]\n  {% else %}\n\
                        {{ loop.index0 }}:{{ m.content.split('/')[-1] }}{{ eos_token }}\n  {% endif %}\n\
                        {% endfor %}{% if add_generation_prompt %}>{% endif %}";
        for folder in folders(template) {
            let template = ChatTemplate::open(folder.path()).unwrap().unwrap();
            let prompt = template.prompt(&messages(&[("system", " be brief "), ("user", "a/b")]));
            assert_eq!(prompt.unwrap(), "<s>[BE BRIEF]\n1:b</s>\n>");
        }
    }

    #[test]
    fn a_conversation_may_be_refused() {
        let template = "{{ raise_exception('no ' + messages[0].role) }}";
        for folder in folders(template) {
            let template = ChatTemplate::open(folder.path()).unwrap().unwrap();
            let error = template.prompt(&messages(&[("tool", "")])).unwrap_err().to_string();
            assert!(error.contains("no tool") && error.contains("line 1"), "{error}");
        }
    }

    #[test]
    fn what_is_no_template_or_does_not_end_is_an_error() {
        for folder in folders("{% for %}") {
            let error = ChatTemplate::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains("a template") && error.contains("line 1"), "{error}");
        }
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        for folder in folders(endless) {
            let template = ChatTemplate::open(folder.path()).unwrap().unwrap();
            template.prompt(&[]).unwrap_err();
        }
        assert!(ChatTemplate::open(tempfile::tempdir().unwrap().path()).unwrap().is_none());
    }
}
