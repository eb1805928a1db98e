//! The table of features names tests that exist, in every row.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn names_in(at: &Path, into: &mut BTreeSet<String>) {
    if at.is_dir() {
        for entry in fs::read_dir(at).unwrap() {
            names_in(&entry.unwrap().path(), into);
        }
        return;
    }
    if at.extension().is_none_or(|e| e != "rs") {
        return;
    }
    let text = fs::read_to_string(at).unwrap();
    let word = |rest: &str| -> String {
        rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        // A scenario is listed by its name, a test is a function behind its mark.
        if let Some((_, rest)) = line.split_once("name: \"") {
            into.insert(word(rest));
        }
        is_test |= line.starts_with("#[test]");
        if let Some(rest) = line.strip_prefix("fn ") {
            // Also those that a `proptest!` block has, whose mark comes before.
            if std::mem::take(&mut is_test) {
                into.insert(word(rest));
            }
        }
    }
}

#[test]
fn features_every_row_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = BTreeSet::new();
    for part in ["src", "tests", "sim"] {
        names_in(&root.join(part), &mut known);
    }
    let table = fs::read_to_string(root.join("tests/FEATURES.md")).unwrap();
    let rows = table.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| feature"));
    let mut count = 0;
    for row in rows {
        let tests = row.split('|').nth(3).unwrap();
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {row}");
        for name in named {
            assert!(known.contains(name), "there is no test {name}, named in: {row}");
        }
        count += 1;
    }
    assert!(count > 30, "{count} rows");
}
