//! Pages that need no other file.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// How all of them look.
pub const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1340px;margin:2em auto;padding:0 1em;\
color:#1c2430;background:#fff}.curves,.pictures{display:flex;flex-wrap:wrap;gap:12px}figure{margin:0}\
.curves figure{width:640px;max-width:100%}figcaption{font-size:13px;max-width:640px}svg{width:100%}\
.pictures figcaption{max-width:192px}pre{white-space:pre-wrap;margin:0;max-width:640px}img{width:192px;image-rendering:pixelated;display:block}\
polyline{fill:none;stroke:#1f6feb;stroke-width:1.5}polygon{fill:#1f6feb;opacity:.18}circle{fill:#1f6feb}\
.grid{stroke:#d0d7de;stroke-width:.7}svg text{font-size:11px;fill:#57606a}th{text-align:left;font-weight:normal;\
color:#57606a;padding-right:2em}";

/// A text as HTML shows it.
pub fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
        out
    })
}

/// A PNG within a page, with a line below it.
pub fn figure(png: &[u8], caption: &str) -> String {
    format!(
        "<figure><img alt=\"\" src=\"data:image/png;base64,{}\"><figcaption>{}</figcaption></figure>",
        BASE64.encode(png),
        escaped(caption)
    )
}
