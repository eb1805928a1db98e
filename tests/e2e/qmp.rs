//! QEMU's control socket.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A connection in command mode.
pub struct Qmp {
    stream: UnixStream,
    lines: Receiver<Value>,
    events: VecDeque<Value>,
    next: u64,
}

impl Qmp {
    /// Takes the greeting and leaves negotiation mode.
    pub fn connect(stream: UnixStream) -> Result<Self, String> {
        let reader =
            BufReader::new(stream.try_clone().map_err(|error| format!("qmp socket: {error}"))?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                let Ok(value) = serde_json::from_str(&line) else {
                    return;
                };
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let mut qmp = Self { stream, lines, events: VecDeque::new(), next: 0 };
        let greeting = qmp.receive(Instant::now() + Duration::from_secs(10), "its greeting")?;
        if greeting.get("QMP").is_none() {
            return Err(format!("expected a qmp greeting, got {greeting}"));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn receive(&mut self, end: Instant, what: &str) -> Result<Value, String> {
        let left = end.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(left).map_err(|error| match error {
            RecvTimeoutError::Timeout => format!("timed out waiting for {what} from qemu"),
            RecvTimeoutError::Disconnected => format!("qemu closed qmp before {what}"),
        })
    }

    /// Runs a command and returns what it returned.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "execute": command, "id": id });
        if arguments.as_object().is_some_and(|object| !object.is_empty()) {
            message["arguments"] = arguments;
        }
        self.stream
            .write_all(format!("{message}\n").as_bytes())
            .map_err(|error| format!("cannot send {command} to qemu: {error}"))?;
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let value = self.receive(end, &format!("the answer to {command}"))?;
            if value.get("event").is_some() {
                self.events.push_back(value);
            } else if value["id"] == json!(id) {
                return match value.get("return") {
                    Some(result) => Ok(result.clone()),
                    None => Err(format!("{command} failed: {}", value["error"]["desc"])),
                };
            }
        }
    }

    /// Waits for the next event `name`; earlier ones of other names are dropped.
    pub fn wait_event(&mut self, name: &str, limit: Duration) -> Result<Value, String> {
        let end = Instant::now() + limit;
        loop {
            let value = match self.events.pop_front() {
                Some(value) => value,
                None => self.receive(end, &format!("event {name}"))?,
            };
            if value["event"] == json!(name) {
                return Ok(value);
            }
        }
    }

    /// The time of the last event `name` that has come, in microseconds of the
    /// host's clock.
    pub fn last_event_us(&mut self, name: &str) -> Option<u64> {
        while let Ok(value) = self.lines.try_recv() {
            self.events.push_back(value);
        }
        let event = self.events.iter().rev().find(|value| value["event"] == json!(name))?;
        let time = &event["timestamp"];
        Some(time["seconds"].as_u64()? * 1_000_000 + time["microseconds"].as_u64()?)
    }

    /// Forgets the events that have come so far.
    pub fn forget_events(&mut self) {
        self.events.clear();
        while let Ok(value) = self.lines.try_recv() {
            drop(value);
        }
    }
}
