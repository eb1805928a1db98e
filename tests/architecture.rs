//! The module rule of DESIGN.md, section 4, read off the source.
//!
//! Who may name whom is the architecture; this test fails on any other arrow.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Module, and the modules of the crate it may name.
const RULE: &[(&str, &[&str])] = &[
    ("time", &[]),
    ("handle", &[]),
    ("bugs", &[]),
    ("marks", &[]),
    ("wire", &["handle", "bugs", "marks"]),
    ("memory", &["wire", "bugs"]),
    ("iommu", &["memory"]),
    ("dirty", &["iommu", "bugs", "marks"]),
    ("words", &[]),
    ("vring", &["memory", "dirty", "words", "bugs", "marks"]),
    ("inflight", &["wire", "vring", "bugs", "marks"]),
    ("blk", &["vring", "memory", "bugs", "marks"]),
    (
        "backend",
        &[
            "wire", "memory", "vring", "inflight", "blk", "time", "handle", "bugs", "marks",
            "dirty", "iommu",
        ],
    ),
    ("migration", &["inflight", "vring"]),
    ("frontend", &["wire", "time", "handle", "bugs"]),
    ("driver", &["words"]),
];

/// Parts of the standard library that only `src/adapter` may name.
const OUTSIDE: &[&str] = &[
    "std::net",
    "std::os",
    "std::fs",
    "std::thread::",
    "std::time",
    "std::process",
    "std::io",
    "libc::",
    "rustix::",
    "unsafe ",
];

fn rust_files(at: &Path, into: &mut Vec<PathBuf>) {
    if at.is_dir() {
        for entry in fs::read_dir(at).unwrap() {
            rust_files(&entry.unwrap().path(), into);
        }
    } else if at.extension().is_some_and(|e| e == "rs") {
        into.push(at.to_owned());
    }
}

/// Files of a module: `src/name.rs` or everything under `src/name/`.
fn files_of(module: &str) -> Vec<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for at in [src.join(module), src.join(format!("{module}.rs"))] {
        if at.exists() {
            rust_files(&at, &mut files);
        }
    }
    files.sort();
    assert!(!files.is_empty(), "module {module} of the rule has no file");
    files
}

/// The lines that are code: no comments, nothing from the unit tests on.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Every `crate::…` path, with groups spread out.
fn crate_paths(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let group = group.split('}').next().unwrap();
            found.extend(group.split(',').map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()));
        } else {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
            found.insert(rest[..end.unwrap_or(rest.len())].trim_end_matches(':').to_owned());
        }
    }
    found
}

#[test]
fn architecture_modules_name_only_whom_they_may() {
    let mut wrong = Vec::new();
    for (module, allowed) in RULE {
        for file in files_of(module) {
            for path in crate_paths(&code(&file)) {
                let top = path.split("::").next().unwrap();
                let own = top == *module;
                let handle = top == "Handle";
                let listed = allowed.iter().any(|a| *a == top || path.starts_with(a));
                if !(own || handle || listed) {
                    wrong.push(format!("{}: crate::{path}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that DESIGN.md does not have:\n{}", wrong.join("\n"));
}

#[test]
fn architecture_only_the_adapter_touches_the_outside() {
    let mut wrong = Vec::new();
    for (module, _) in RULE {
        for file in files_of(module) {
            let code = code(&file);
            for outside in OUTSIDE.iter().filter(|o| code.contains(**o)) {
                wrong.push(format!("{}: {outside}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "the core must stay without input and output:\n{}", wrong.join("\n"));
}

#[test]
fn architecture_nothing_is_dispatched_dynamically_in_the_core() {
    let mut wrong = Vec::new();
    for (module, _) in RULE {
        wrong.extend(files_of(module).into_iter().filter(|f| code(f).contains("dyn ")));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn architecture_every_module_has_a_rule() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let ruled: BTreeSet<&str> =
        RULE.iter().map(|(m, _)| *m).chain(["lib", "main", "adapter"]).collect();
    for entry in fs::read_dir(src).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.trim_end_matches(".rs");
        assert!(ruled.contains(module), "src/{name} is not in the module rule");
    }
}

#[test]
fn architecture_oracles_share_nothing_with_the_core() {
    let sim = Path::new(env!("CARGO_MANIFEST_DIR")).join("sim/oracle");
    let mut files = Vec::new();
    rust_files(&sim, &mut files);
    assert!(!files.is_empty());
    for file in files {
        let code = code(&file);
        assert!(!code.contains("midflight::"), "{} uses the core", file.display());
    }
}
