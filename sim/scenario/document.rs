//! A scenario as text: one thing a line, `#` begins a comment.
//!
//! ```text
//! midflight scenario
//! from 3:storm:0x8f3a21c04be7d915
//! choices calm
//!
//! [topology]
//! queues = 1
//!
//! [actions]
//! request vring 0 write 3 @12
//! kill after 37 stores
//!
//! [choices]
//! disk latency 3 = 11
//! ```
//!
//! A setting that is not named has its plain value. A choice is written by who
//! decides, what, the how manyth time, and the value.

use super::action::{self, FORMS};
use super::{Expected, Scenario};
use crate::choices::{Choices, Component, Key, Source};
use crate::profile::parse_number;
use crate::topology::Topology;
use core::fmt;
use core::str::FromStr;

/// First line of every document.
const TITLE: &str = "midflight scenario";

/// A document was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct DocumentError {
    /// Line, from 1.
    pub line: u64,
    /// What was expected and what came.
    pub what: String,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{TITLE}")?;
        if let Some(seed) = self.origin {
            writeln!(f, "from {seed}")?;
        }
        if let Some(mistake) = &self.mistake {
            writeln!(f, "mistake {mistake}")?;
        }
        if let Some(Expected { oracle, cause }) = &self.expect {
            writeln!(f, "expect {oracle}: {cause}")?;
        }
        match self.choices.source {
            Source::Drawn(number) => writeln!(f, "choices drawn {number:#x}")?,
            Source::Calm => writeln!(f, "choices calm")?,
        }
        writeln!(f, "\n[topology]")?;
        for (key, value) in self.topology.entries() {
            writeln!(f, "{key} = {value}")?;
        }
        writeln!(f, "\n[actions]")?;
        for action in &self.actions {
            writeln!(f, "{action}")?;
        }
        if !self.choices.written.is_empty() {
            writeln!(f, "\n[choices]")?;
        }
        for (Key { component, name, ordinal }, value) in &self.choices.written {
            writeln!(f, "{} {name} {ordinal} = {value}", component.name())?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Section {
    Head,
    Topology,
    Actions,
    Choices,
}

impl FromStr for Scenario {
    type Err = DocumentError;

    fn from_str(text: &str) -> Result<Self, DocumentError> {
        let mut scenario = Self {
            origin: None,
            mistake: None,
            expect: None,
            topology: Topology::plain(),
            actions: Vec::new(),
            choices: Choices::calm(),
        };
        let mut section = None;
        for (number, line) in (1u64..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or("").trim();
            let refuse = |what: String| DocumentError { line: number, what };
            section = Some(match (section, line) {
                (_, "") => continue,
                (None, TITLE) => Section::Head,
                (None, other) => return Err(refuse(format!("expected {TITLE}, got {other}"))),
                (Some(_), "[topology]") => Section::Topology,
                (Some(_), "[actions]") => Section::Actions,
                (Some(_), "[choices]") => Section::Choices,
                (Some(section), line) => {
                    scenario.line(section, line).map_err(refuse)?;
                    section
                }
            });
        }
        if section.is_none() {
            return Err(DocumentError { line: 1, what: format!("expected {TITLE}, got nothing") });
        }
        scenario.check().map_err(|what| DocumentError { line: 1, what })?;
        Ok(scenario)
    }
}

impl Scenario {
    fn line(&mut self, section: Section, line: &str) -> Result<(), String> {
        match section {
            Section::Head => self.head(line),
            Section::Topology => {
                let (key, value) = line
                    .split_once('=')
                    .ok_or_else(|| format!("expected KEY = VALUE, got {line}"))?;
                self.topology.change(key.trim(), value.trim()).map_err(|e| e.to_string())
            }
            Section::Actions => {
                let action =
                    action::parse(line).ok_or_else(|| format!("expected {FORMS}; got {line}"))?;
                self.actions.push(action);
                Ok(())
            }
            Section::Choices => {
                let (key, value) = choice(line).ok_or_else(|| {
                    format!("expected a choice such as disk latency 3 = 11, got {line}")
                })?;
                self.choices.written.insert(key, value);
                Ok(())
            }
        }
    }

    fn head(&mut self, line: &str) -> Result<(), String> {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match (key, value) {
            // A seed of another schema says where it came from all the same, but
            // nothing could be drawn from it.
            ("from", seed) => self.origin = seed.parse().ok(),
            ("mistake", name) => self.mistake = Some(name.into()),
            ("expect", what) => {
                let (oracle, cause) = what
                    .split_once(": ")
                    .ok_or_else(|| format!("expected an oracle and a cause, got {what}"))?;
                self.expect = Some(Expected { oracle: oracle.into(), cause: cause.into() });
            }
            ("choices", "calm") => self.choices.source = Source::Calm,
            ("choices", drawn) => {
                let number = drawn
                    .strip_prefix("drawn ")
                    .ok_or_else(|| format!("expected calm or drawn NUMBER, got {drawn}"))?;
                self.choices.source = Source::Drawn(parse_number(number)?);
            }
            _ => {
                return Err(format!(
                    "expected from, mistake, expect, choices or a section, got {line}"
                ));
            }
        }
        Ok(())
    }
}

fn choice(line: &str) -> Option<(Key, u64)> {
    let (key, value) = line.split_once('=')?;
    let mut words = key.split_whitespace();
    let (component, ordinal) = (words.next()?, words.next_back()?.parse().ok()?);
    let component = Component::LIVE.into_iter().find(|c| c.name() == component)?;
    let name = words.collect::<Vec<_>>().join(" ");
    let value = value.trim().parse().ok()?;
    (!name.is_empty()).then_some((Key { component, name, ordinal }, value))
}
