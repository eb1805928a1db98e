//! The line protocol with the guest program.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard};
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

/// How often somebody who waits for an answer looks whether the guest has moved.
const SLICE: Duration = Duration::from_millis(3);

struct Line {
    stream: UnixStream,
    answers: Receiver<String>,
    next: u64,
}

struct Shared {
    line: Mutex<Line>,
    /// Where the guest has moved to, until somebody follows it.
    moved: Mutex<Option<UnixStream>>,
}

/// The command channel of one guest. Clones share it; one command at a time.
#[derive(Clone)]
pub struct Guest(Arc<Shared>);

fn listen(stream: &UnixStream) -> Result<Receiver<String>, String> {
    let reader = stream.try_clone().map_err(|error| format!("guest channel: {error}"))?;
    let (sender, answers) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    Ok(answers)
}

impl Guest {
    pub fn connect(stream: UnixStream) -> Result<Self, String> {
        let answers = listen(&stream)?;
        let line = Mutex::new(Line { stream, answers, next: 0 });
        Ok(Self(Arc::new(Shared { line, moved: Mutex::default() })))
    }

    /// The guest has moved to another machine, whose channel this is. A command
    /// that was not answered on the old one is given again; whoever asks while
    /// a guest moves asks for something that may be asked twice.
    pub fn move_to(&self, stream: UnixStream) {
        *self.0.moved.lock().unwrap_or_else(|error| error.into_inner()) = Some(stream);
    }

    /// Goes on at the guest's new place if it has moved.
    fn follow(&self, line: &mut Line) -> Result<bool, String> {
        let moved = self.0.moved.lock().unwrap_or_else(|error| error.into_inner()).take();
        let Some(stream) = moved else { return Ok(false) };
        line.answers = listen(&stream)?;
        line.stream = stream;
        // Ends what the guest may have received of a command.
        line.stream.write_all(b"\n").map_err(|error| format!("guest channel: {error}"))?;
        Ok(true)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.line.lock().unwrap_or_else(|error| error.into_inner())
    }

    /// Sends a command and waits for its answer.
    pub fn ask(&self, command: &str) -> Result<Answer, String> {
        self.ask_within(command, LIMIT)
    }

    pub fn ask_within(&self, command: &str, limit: Duration) -> Result<Answer, String> {
        let mut line = self.line();
        self.follow(&mut line)?;
        let mut number = line.send(command)?;
        let end = Instant::now() + limit;
        loop {
            let text = match line.answers.recv_timeout(SLICE) {
                Ok(text) => text,
                Err(_) if self.follow(&mut line)? => {
                    number = line.send(command)?;
                    continue;
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => continue,
                Err(RecvTimeoutError::Disconnected) if Instant::now() < end => {
                    // The old machine is gone, the new one not yet there.
                    std::thread::sleep(SLICE);
                    continue;
                }
                Err(_) => {
                    return Err(format!(
                        "guest did not answer `{command}` within {} ms",
                        limit.as_millis()
                    ));
                }
            };
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
        let mut line = self.line();
        self.follow(&mut line)?;
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
