//! The table of instructions in INSTRUCTIONS.md is what the decoder says, and ptxas agrees that they exist.
#![cfg(vgpu_supported)]

mod common;

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// Patterns of PTX statements: `{a,b}` stands for either. Operands as `vgpu::supports` has them.
const CATALOGUE: &str = include_str!("golden/catalogue.txt");
const BEGIN: &str = "<!-- made by `VGPU_WRITE_TABLE=1 cargo test -p vgpu --test conformance` -->\n";
const END: &str = "<!-- end -->";

/// All texts of a pattern.
fn expand(pattern: &str) -> Vec<String> {
    let Some(open) = pattern.find('<') else { return vec![pattern.to_string()] };
    let close = open + pattern[open..].find('>').expect("every < has its >");
    let tails = expand(&pattern[close + 1..]);
    let mut out = Vec::new();
    for choice in pattern[open + 1..close].split(',') {
        out.extend(tails.iter().map(|tail| format!("{}{choice}{tail}", &pattern[..open])));
    }
    out
}

struct Row {
    pattern: String,
    supported: Vec<String>,
    refused: Vec<String>,
}

fn rows() -> Vec<Row> {
    CATALOGUE
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(|pattern| {
            let (supported, refused) =
                expand(pattern).into_iter().partition(|s| vgpu::supports(s).is_ok());
            Row { pattern: pattern.to_string(), supported, refused }
        })
        .collect()
}

/// The opcode of a statement or pattern.
fn opcode(text: &str) -> &str {
    text.split([' ', ';']).next().unwrap_or(text)
}

/// The first part of a pattern; of alternatives, all.
fn instruction(pattern: &str) -> &str {
    match pattern.strip_prefix('{') {
        Some(rest) => rest.split('}').next().unwrap_or(rest),
        None => pattern.split(['.', '{']).next().unwrap_or(pattern),
    }
}

fn table(rows: &[Row]) -> String {
    let mut out = String::from("| instruction | forms | executed |\n|---|---|---|\n");
    for row in rows {
        let total = row.supported.len() + row.refused.len();
        let verdict = match (row.supported.len(), row.refused.len()) {
            (_, 0) => "yes".to_string(),
            (0, _) => "refused".to_string(),
            (n, _) if row.refused.len() <= 3 => {
                let refused: Vec<&str> = row.refused.iter().map(|s| opcode(s)).collect();
                format!("{n} of {total}, not `{}`", refused.join("`, `"))
            }
            (n, _) => format!("{n} of {total}"),
        };
        let pattern = opcode(&row.pattern).replace('<', "{").replace('>', "}");
        let _ = writeln!(out, "| `{}` | `{pattern}` | {verdict} |", instruction(&pattern));
    }
    out
}

#[test]
fn the_table_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("INSTRUCTIONS.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let start = text.find(BEGIN).expect("the file marks the table's begin") + BEGIN.len();
    let end = text.find(END).expect("the file marks the table's end");
    let made = table(&rows());
    if std::env::var_os("VGPU_WRITE_TABLE").is_some() {
        std::fs::write(&path, format!("{}{made}{}", &text[..start], &text[end..])).unwrap();
        return;
    }
    assert!(text[start..end] == *made, "the table in INSTRUCTIONS.md is out of date: {BEGIN}");
}

#[test]
fn ptxas_knows_every_supported_form() {
    let Some(ptxas) = common::beside_nvcc("ptxas") else {
        eprintln!("SKIPPED: no ptxas, so the forms were not assembled");
        return;
    };
    let mut text = String::from(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry forms(.param .u64 arg) {\n.reg .pred %p<8>;\n.reg .b16 %h<8>;\n\
         .reg .b32 %r<16>;\n.reg .b64 %d<16>;\n.shared .align 16 .b8 arena[1024];\nlabel:\n",
    );
    for statement in rows().iter().flat_map(|r| &r.supported) {
        let _ = writeln!(text, "{statement}");
    }
    text += "ret;\n}\n";
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("forms.ptx");
    std::fs::write(&file, &text).unwrap();
    let output =
        Command::new(ptxas).args(["-arch=sm_90a", "-o", "/dev/null"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let explained: Vec<String> = said
        .lines()
        .filter_map(|l| {
            let number: usize = l.split("line ").nth(1)?.split(';').next()?.parse().ok()?;
            Some(format!("{l}\n    {}", text.lines().nth(number - 1)?))
        })
        .collect();
    assert!(output.status.success(), "{}\n{said}", explained.join("\n"));
}
