//! The reference of all interfaces: an OpenAPI document that the code gives, and the same as a page.

use std::fmt::Write;

use axum::Json as Reply;
use axum::response::Html;
use serde_json::Value;
use utoipa::OpenApi;

use super::{health, jobs, look, openai, sets, webui};
use nadir::io::html::escaped;

#[derive(OpenApi)]
#[openapi(
    info(title = "nadir", description = "Satellite imagery from text"),
    paths(
        jobs::server,
        jobs::create,
        jobs::list,
        jobs::get,
        jobs::delete,
        jobs::image,
        jobs::events,
        look::classify,
        look::segment,
        look::recipe,
        openai::generations,
        openai::edits,
        openai::completions,
        openai::models,
        webui::txt2img,
        webui::img2img,
        webui::samplers,
        webui::models,
        webui::options,
        webui::progress,
        webui::interrupt,
        health::live,
        health::ready,
        health::metrics,
        health::profile,
        sets::list,
        sets::picture,
        document,
    )
)]
struct Reference;

/// This reference, for programs
#[utoipa::path(get, path = "/api/openapi.json", tag = "server", responses((status = 200, body = Value)))]
pub async fn document() -> Reply<utoipa::openapi::OpenApi> {
    Reply(Reference::openapi())
}

/// This reference, for people.
pub async fn page() -> Html<String> {
    Html(rendered(&serde_json::to_value(Reference::openapi()).unwrap_or_default()))
}

/// A document as a page without scripts.
fn rendered(document: &Value) -> String {
    let mut out = String::from(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>nadir: reference</title><link rel=stylesheet href=/assets/reference.css><main><h1>nadir</h1>\
         <p>Interfaces of this server. For programs: <a href=/api/openapi.json>openapi.json</a>.</p>",
    );
    let empty = serde_json::Map::new();
    let map = |value: &'_ Value| value.as_object().cloned().unwrap_or_default();
    let text = |value: &Value, name: &str| escaped(value[name].as_str().unwrap_or_default());
    let paths = document["paths"].as_object().unwrap_or(&empty);
    for (path, methods) in paths {
        for (method, about) in map(methods) {
            let _ = write!(
                out,
                "<section><h2><code>{} {}</code></h2><p>{}</p><p>{}</p>",
                escaped(&method.to_uppercase()),
                escaped(path),
                text(&about, "summary"),
                text(&about, "description"),
            );
            for (kind, content) in map(&about["requestBody"]["content"]) {
                let _ =
                    write!(out, "<p>Body: {}, {}</p>", escaped(&kind), named(&content["schema"]));
            }
            out += "<ul>";
            for (status, reply) in map(&about["responses"]) {
                let _ = write!(out, "<li>{}: {}", escaped(&status), text(&reply, "description"));
                for content in map(&reply["content"]).values() {
                    let _ = write!(out, " {}", named(&content["schema"]));
                }
                out += "</li>";
            }
            out += "</ul></section>";
        }
    }
    for (name, schema) in map(&document["components"]["schemas"]) {
        let name = escaped(&name);
        let _ = write!(
            out,
            "<section id=\"{name}\"><h2>{name}</h2><p>{}</p>",
            text(&schema, "description")
        );
        out += "<table>";
        for (field, about) in map(&schema["properties"]) {
            let _ = write!(
                out,
                "<tr><th><code>{}</code><td>{}<td>{}",
                escaped(&field),
                named(&about),
                text(&about, "description")
            );
        }
        out += "</table></section>";
    }
    out += "</main></html>";
    out
}

/// What a schema is called.
fn named(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        let name = escaped(name);
        return format!("<a href=\"#{name}\">{name}</a>");
    }
    let several = schema["oneOf"].as_array().or(schema["anyOf"].as_array());
    if let Some(several) = several {
        return several.iter().map(named).collect::<Vec<_>>().join(" or ");
    }
    if schema["type"] == "array" {
        return format!("list of {}", named(&schema["items"]));
    }
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.clone(),
        one => vec![one.clone()],
    };
    let kinds: Vec<_> = kinds.iter().filter_map(Value::as_str).map(escaped).collect();
    kinds.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let document = serde_json::to_value(Reference::openapi()).unwrap();
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name}");
        }
        let page = rendered(&document);
        for path in ["/api/jobs/{id}/events", "/v1/images/edits", "/sdapi/v1/txt2img"] {
            assert!(page.contains(path), "{path}");
        }
        assert!(page.contains("<code>num_inference_steps</code>"));
    }
}
