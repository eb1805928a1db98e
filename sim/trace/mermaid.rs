//! A trace as a Mermaid sequence diagram.
//!
//! One guest and one disk, however many hosts; front-end, back-end and host
//! once for each host that occurs. What goes from one to another is an arrow,
//! what happens at one of them a note. Each begins with the number of its
//! scheduler event.

use super::text::sentence;
use super::{Lane, Moving, TraceEvent, What};
use core::fmt::{self, Write};

/// Arrows and notes that one diagram may have.
pub const LIMIT: usize = 200;

/// More than fits on a page, and what to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Arrows and notes there would be.
    pub drawn: u64,
    /// From this scheduler event on they would fit, if any does.
    pub fits_from: Option<u64>,
    /// The request that was named last.
    pub request: Option<u64>,
}

impl core::error::Error for TooLarge {}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} arrows and notes, a diagram may have {LIMIT}; try --lane disk", self.drawn)?;
        if let Some(request) = self.request {
            write!(f, ", --request {request}")?;
        }
        match self.fits_from {
            Some(seq) => write!(f, " or --from {seq}"),
            None => Ok(()),
        }
    }
}

/// Whom a line of the diagram is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Guest,
    Front(u8),
    Link(u8),
    Back(u8),
    Disk,
    Host(u8),
}

enum Row {
    /// From, to, and how it is drawn.
    Arrow(Who, Who, &'static str),
    Note(Who),
}

const ASKS: &str = "->>";
const ANSWERS: &str = "-->>";
const BREAKS: &str = "-x";

/// Render a slice of events. Pure: the same events give the same diagram.
pub fn render(events: &[TraceEvent]) -> Result<String, TooLarge> {
    if events.len() > LIMIT {
        return Err(too_large(events));
    }
    let rows: Vec<Row> = events.iter().map(row).collect();
    let mut who = Vec::new();
    for row in &rows {
        match *row {
            Row::Arrow(from, to, _) => who.extend([from, to]),
            Row::Note(at) => who.push(at),
        }
    }
    who.sort_by_key(|who| who.column());
    who.dedup();
    let hosts = events.iter().any(|e| e.host > 0);
    let mut out = String::from("sequenceDiagram\n");
    for who in who {
        let _ = writeln!(out, "    participant {} as {}", who.id(), who.name(hosts));
    }
    for (row, event) in rows.iter().zip(events) {
        let text = format!("{} {}", event.seq, escaped(&sentence(event.what)));
        let _ = match row {
            Row::Arrow(from, to, how) => {
                writeln!(out, "    {}{how}{}: {text}", from.id(), to.id())
            }
            Row::Note(at) => writeln!(out, "    Note over {}: {text}", at.id()),
        };
    }
    Ok(out)
}

fn too_large(events: &[TraceEvent]) -> TooLarge {
    // The first event whose group fits as a whole.
    let cut = events[events.len() - LIMIT - 1].seq;
    let fits_from = events.iter().rev().take(LIMIT).map(|e| e.seq).filter(|seq| *seq > cut).min();
    let request = events.iter().rev().find_map(|event| match event.what {
        What::Offered { request, .. }
        | What::Completed { request, .. }
        | What::Landing { request, .. }
        | What::Adrift { request, .. } => Some(request),
        _ => None,
    });
    TooLarge { drawn: events.len() as u64, fits_from, request }
}

fn row(event: &TraceEvent) -> Row {
    let host = event.host;
    let (front, link, back) = (Who::Front(host), Who::Link(host), Who::Back(host));
    match event.what {
        What::Published { kick: true, .. } => Row::Arrow(Who::Guest, back, ASKS),
        What::Call { .. } => Row::Arrow(back, Who::Guest, ANSWERS),
        What::Connecting => Row::Arrow(front, back, ASKS),
        What::Sent { to_back: true, .. } => Row::Arrow(front, back, ASKS),
        What::Sent { to_back: false, .. } => Row::Arrow(back, front, ANSWERS),
        What::Delivered { to_back: true, .. } => Row::Arrow(link, back, ASKS),
        What::Delivered { to_back: false, .. } => Row::Arrow(link, front, ANSWERS),
        What::Hangup { to_back: true } => Row::Arrow(front, back, BREAKS),
        What::Hangup { to_back: false } => Row::Arrow(back, front, BREAKS),
        What::Started { .. } => Row::Arrow(Who::Host(host), back, ASKS),
        What::Killed { .. } => Row::Arrow(Who::Host(host), back, BREAKS),
        What::Issued { .. } => Row::Arrow(back, Who::Disk, ASKS),
        What::Done { .. } => Row::Arrow(Who::Disk, back, ANSWERS),
        What::Moving { step: Moving::HandsOver, .. } => {
            Row::Arrow(Who::Host(host), Who::Host(1 - host.min(1)), ASKS)
        }
        _ => Row::Note(match event.lane {
            Lane::Guest => Who::Guest,
            Lane::Front => front,
            Lane::Link => link,
            Lane::Back => back,
            Lane::Disk => Who::Disk,
            Lane::Host => Who::Host(host),
        }),
    }
}

impl Who {
    /// Left to right: the guest, host A, the disk, host B mirrored.
    fn column(self) -> (u8, u8) {
        let beside = |host: u8, place: u8| if host == 0 { (1, place) } else { (3, 9 - place) };
        match self {
            Self::Guest => (0, 0),
            Self::Host(host) => beside(host, 0),
            Self::Front(host) => beside(host, 1),
            Self::Link(host) => beside(host, 2),
            Self::Back(host) => beside(host, 3),
            Self::Disk => (2, 0),
        }
    }

    /// Not a word that Mermaid knows itself, as `link` and `end` are.
    fn id(self) -> String {
        let of = |letter: char, host: u8| format!("{letter}{host}");
        match self {
            Self::Guest => "G".into(),
            Self::Front(host) => of('F', host),
            Self::Link(host) => of('L', host),
            Self::Back(host) => of('B', host),
            Self::Disk => "D".into(),
            Self::Host(host) => of('H', host),
        }
    }

    fn name(self, hosts: bool) -> String {
        let (lane, host) = match self {
            Self::Guest => return Lane::Guest.name().into(),
            Self::Disk => return Lane::Disk.name().into(),
            Self::Front(host) => (Lane::Front, host),
            Self::Link(host) => (Lane::Link, host),
            Self::Back(host) => (Lane::Back, host),
            Self::Host(host) => (Lane::Host, host),
        };
        let letter = if host == 0 { "A" } else { "B" };
        if hosts { format!("{} {letter}", lane.name()) } else { lane.name().into() }
    }
}

/// Both would end a message.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '#' => out += "#35;",
            ';' => out += "#59;",
            _ => out.push(c),
        }
    }
    out
}
