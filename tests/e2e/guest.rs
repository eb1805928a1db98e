//! The line protocol with the guest program.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest a command may take: far more than any takes on an emulated
/// processor, and shorter than anybody's patience.
const LIMIT: Duration = Duration::from_secs(40);

/// An answer: its `name=value` words.
#[derive(Clone, Debug, Default)]
pub struct Answer(BTreeMap<String, String>);

impl Answer {
    pub fn text(&self, name: &str) -> Result<&str, String> {
        self.0.get(name).map(String::as_str).ok_or_else(|| format!("guest did not say {name}="))
    }

    /// A decimal or 0x-hexadecimal number.
    pub fn number(&self, name: &str) -> Result<u64, String> {
        let text = self.text(name)?;
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        }
        .map_err(|_| format!("guest said {name}={text}, expected a number"))
    }
}

struct Line {
    stream: UnixStream,
    answers: Receiver<String>,
    next: u64,
}

/// The command channel of one guest. Clones share it; one command at a time.
#[derive(Clone)]
pub struct Guest(Arc<Mutex<Line>>);

impl Guest {
    pub fn connect(stream: UnixStream) -> Result<Self, String> {
        let reader = stream.try_clone().map_err(|error| format!("guest channel: {error}"))?;
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Self(Arc::new(Mutex::new(Line { stream, answers, next: 0 }))))
    }

    /// Sends a command and waits for its answer.
    pub fn ask(&self, command: &str) -> Result<Answer, String> {
        self.ask_within(command, LIMIT)
    }

    pub fn ask_within(&self, command: &str, limit: Duration) -> Result<Answer, String> {
        let mut line = self.0.lock().unwrap_or_else(|error| error.into_inner());
        let number = line.send(command)?;
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let text = line.answers.recv_timeout(left).map_err(|_| {
                format!("guest did not answer `{command}` within {} ms", limit.as_millis())
            })?;
            // Answers to commands given up earlier are not this one's.
            let Some(rest) = text.trim().strip_prefix(&format!("{number} ")) else {
                continue;
            };
            let (verdict, words) = rest.split_once(' ').unwrap_or((rest, ""));
            if verdict != "ok" {
                return Err(format!("guest refused `{command}`: {words}"));
            }
            let mut answer = Answer::default();
            let mut last: Option<String> = None;
            for word in words.split_whitespace() {
                match (word.split_once('='), &last) {
                    // Free text comes last in an answer and may hold anything.
                    (_, Some(name)) if name == "lines" => {
                        let value = answer.0.entry(name.clone()).or_default();
                        *value += " ";
                        *value += word;
                    }
                    (Some((name, value)), _) => {
                        answer.0.insert(name.to_string(), value.to_string());
                        last = Some(name.to_string());
                    }
                    (None, _) => return Err(format!("guest answered `{words}` to `{command}`")),
                }
            }
            return Ok(answer);
        }
    }

    /// Sends a command that will not be answered.
    pub fn tell(&self, command: &str) -> Result<(), String> {
        let mut line = self.0.lock().unwrap_or_else(|error| error.into_inner());
        line.send(command).map(|_| ())
    }

    /// Fails if the guest's kernel log has anything that means trouble.
    pub fn check_log(&self) -> Result<(), String> {
        let answer = self.ask("complaints")?;
        match answer.number("count")? {
            0 => Ok(()),
            count => Err(format!(
                "{count} complaints in the guest's kernel log: {}",
                answer.text("lines")?
            )),
        }
    }
}

impl Line {
    fn send(&mut self, command: &str) -> Result<u64, String> {
        self.next += 1;
        let number = self.next;
        self.stream
            .write_all(format!("{number} {command}\n").as_bytes())
            .map_err(|error| format!("cannot send `{command}` to the guest: {error}"))?;
        Ok(number)
    }
}
