//! Init of the test guest, and its only program.
//!
//! It obeys commands that come line by line on the second serial port and
//! answers each with one line: `ok ...` or `err ...`. Arguments are
//! `name=value`. What the commands are is the `match` in [`obey`].

// This is a real program on a real machine: clocks, threads and files are its
// business.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)]

mod block;
mod disk;
mod io;
mod job;
mod memory;
mod ring;
mod system;
mod zones;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::time::Duration;

use job::{Job, Plan};

/// Words of a command after the first, as `name=value`.
struct Arguments(BTreeMap<String, String>);

impl Arguments {
    fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        words
            .map(|word| {
                word.split_once('=')
                    .map(|(name, value)| (name.to_string(), value.to_string()))
                    .ok_or_else(|| format!("expected name=value, got {word}"))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn text(&self, name: &str) -> Result<&str, String> {
        self.0.get(name).map(String::as_str).ok_or_else(|| format!("{name}= is missing"))
    }

    fn number(&self, name: &str) -> Result<u64, String> {
        let text = self.text(name)?;
        text.parse().map_err(|_| format!("{name}={text} is no number"))
    }

    fn plan(&self) -> Result<Plan, String> {
        let plan = Plan {
            disk: self.text("disk")?.to_string(),
            offset: self.number("offset")?,
            len: self.number("len")?,
            block: self.number("block")?,
            depth: self.number("depth")?,
            most: self.number("most")?,
            seed: self.number("seed")?,
            writes: self.number("writes")?,
            flushes: self.number("flushes")?,
            keep: self.number("keep")?,
            frail: self.0.contains_key("frail"),
        };
        if plan.block == 0 || !plan.block.is_multiple_of(block::SECTOR as u64) || plan.depth == 0 {
            return Err("the block must be whole sectors and the depth not 0".to_string());
        }
        Ok(plan)
    }

    fn range(&self, write: bool) -> Result<(std::fs::File, u64, u64), String> {
        let file = io::open(self.text("disk")?, write)?;
        Ok((file, self.number("offset")?, self.number("len")?))
    }
}

fn obey(line: &str, current: &mut Option<Job>) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let command = words.next().unwrap_or("");
    let arguments = Arguments::parse(words)?;
    let job = |job: &mut Option<Job>| -> Result<String, String> {
        job.as_ref().map(Job::status).ok_or("no job".to_string())
    };
    let plain = |result: std::io::Result<()>| match result {
        Ok(()) => Ok(String::new()),
        Err(error) => Err(error.to_string()),
    };
    match command {
        "ping" => Ok(format!("boot={} processors={}", system::boot_id(), system::processors())),
        "disks" => disk::list().map(|names| format!("disks={names}")),
        "info" => disk::info(arguments.text("disk")?),
        "complaints" => system::kernel_complaints(),
        "memory" => memory::state(),
        "online" => memory::online(),
        "reboot" => Err(system::reboot()),
        "device" => disk::virtio_name(arguments.text("disk")?).map(|name| format!("device={name}")),
        "unbind" => disk::bind(arguments.text("device")?, false).map(|()| String::new()),
        "bind" => disk::bind(arguments.text("device")?, true).map(|()| String::new()),
        "cache" => {
            let mode = arguments.text("mode")?.replace('_', " ");
            disk::set_cache(arguments.text("disk")?, &mode).map(|()| String::new())
        }
        "start" => {
            if current.as_ref().is_some_and(Job::is_running) {
                return Err("a job is running".to_string());
            }
            let fresh = arguments.number("fresh")? != 0;
            *current = Some(Job::start(arguments.plan()?, fresh, current.take())?);
            Ok(String::new())
        }
        "scan" => {
            if current.as_ref().is_some_and(Job::is_running) {
                return Err("a job is running".to_string());
            }
            *current = Some(Job::scan(arguments.plan()?)?);
            job(current)
        }
        "status" => job(current),
        "mark" => current.as_ref().map(Job::mark).ok_or("no job".to_string()),
        "gap" => current.as_ref().map(Job::gap).ok_or("no job".to_string()),
        "stop" => {
            let wait = Duration::from_secs(arguments.number("wait")?);
            current.as_mut().ok_or("no job")?.stop(wait)?;
            job(current)
        }
        "verify" => {
            let (right, wrong, first) = current.as_ref().ok_or("no job")?.verify()?;
            Ok(format!("right={right} wrong={wrong} first={}", first.replace(' ', "_")))
        }
        "generations" => {
            let (start, count) = (arguments.number("start")?, arguments.number("count")?);
            let job = current.as_ref().ok_or("no job")?;
            job.generations(start as usize, count as usize).map(|list| format!("list={list}"))
        }
        "flush" => plain(io::open(arguments.text("disk")?, true)?.sync_data()),
        "fill" => {
            let (file, offset, len) = arguments.range(true)?;
            io::fill(&file, offset, len, arguments.number("byte")? as u8).map(|()| String::new())
        }
        "expect" => {
            let (file, offset, len) = arguments.range(false)?;
            io::expect(&file, offset, len, arguments.number("byte")? as u8).map(|()| String::new())
        }
        "discards" => {
            let (file, offset, len) = arguments.range(true)?;
            let step = arguments.number("step")?;
            let before = disk::discards(arguments.text("disk")?)?;
            ring::discard_all(&file, offset, len, step, arguments.number("count")?)?;
            let after = disk::discards(arguments.text("disk")?)?;
            Ok(format!("requests={} merged={}", after.0 - before.0, after.1 - before.1))
        }
        "zones" => zones::report(&io::open(arguments.text("disk")?, false)?),
        "zone" => {
            let (file, offset, len) = arguments.range(true)?;
            plain(zones::act(&file, arguments.text("action")?, offset, len))
        }
        "discard" | "zeroout" | "punch" | "erase" => {
            let (file, offset, len) = arguments.range(true)?;
            plain(match command {
                "discard" => io::discard(&file, offset, len),
                "erase" => io::secure_discard(&file, offset, len),
                "zeroout" => io::zero_out(&file, offset, len),
                _ => io::punch(&file, offset, len),
            })
        }
        _ => Err(format!("unknown command {command}")),
    }
}

fn serve() -> Result<(), String> {
    system::mount_all()?;
    system::load_modules()?;
    let mut answers = system::open_channel("/dev/ttyS1")?;
    let commands =
        answers.try_clone().map_err(|error| format!("cannot clone the channel: {error}"))?;
    let mut current = None;
    for line in BufReader::new(commands).lines() {
        let line = line.map_err(|error| format!("cannot read a command: {error}"))?;
        // The number in front lets the host drop answers it no longer waits for.
        let (number, command) = line.trim().split_once(' ').unwrap_or(("0", line.trim()));
        let answer = match obey(command, &mut current) {
            Ok(text) => format!("{number} ok {text}\n"),
            Err(text) => format!("{number} err {}\n", text.replace('\n', " ")),
        };
        answers.write_all(answer.as_bytes()).map_err(|error| format!("cannot answer: {error}"))?;
    }
    Err("the command channel ended".to_string())
}

fn main() {
    if let Err(what) = serve() {
        // Console output is what the host shows of a guest that failed.
        println!("guest: {what}");
        std::thread::sleep(Duration::from_secs(1));
    }
    println!("guest: init ends");
}
